"""Compares Eqn 3 with central differences in float64, a step computed by hand, and Keras's optimizers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.training import exactness, unroll, update_rules

SHAPE = (32, 32, 1)


def _detector(width=16):
    keras.utils.set_random_seed(0)
    return retinanet.small(SHAPE, 2, sizes=(8.0, 16.0, 24.0), width=width)


def _labelled(seed, n=2, dtype=tf.float64):
    rng = np.random.default_rng(seed)
    images = tf.constant(rng.uniform(-1, 1, (n, *SHAPE)), dtype)
    corner = rng.integers(0, 16, (n, 2, 2)).astype(np.float32)
    boxes = np.concatenate([corner, corner + rng.integers(6, 14, (n, 2, 2))], -1).astype(np.float32)
    labels = np.array([[0, 1], [1, -1]], np.int32)[:n]
    return Labelled(images, tf.constant(boxes * (labels[..., None] >= 0)), tf.constant(labels))


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def _optimizer(DET, momentum, clipnorm=None):
    optimizer = keras.optimizers.SGD(0.05, momentum=momentum, global_clipnorm=clipnorm)
    optimizer.build(DET.network.trainable_variables)
    return optimizer


@pytest.mark.slow
@pytest.mark.parametrize("momentum,clipnorm", [(0.0, None), (0.9, 0.5)])
def test_gradient_equals_central_differences(float64, momentum, clipnorm):
    DET, y, syn, y2 = _detector(), _labelled(1), _labelled(2), _labelled(3)
    optimizer = _optimizer(DET, momentum, clipnorm)
    # The state is not zero, so that momentum has an effect.
    update_rules.commit(optimizer, unroll.unrolled_step(DET, optimizer, y, syn, None).update)

    def losses(x_syn):
        unrolled = unroll.unrolled_step(DET, optimizer, y, syn._replace(images=x_syn), None)
        targets = DET.targets(y2)
        return DET.loss(unrolled.update.W, y2.images, targets, DET.positives(targets)), unrolled.L_syn

    exact = unroll.unrolled_step(DET, optimizer, y, syn, y2)
    assert exact.d_L_real_unrolled.dtype == tf.float64
    np.testing.assert_allclose((exact.L_real_unrolled, exact.L_syn), losses(syn.images), rtol=1e-12)
    size = np.random.default_rng(0).normal(size=syn.images.shape)
    h = 1e-7  # with 1e-5, the kink of some of the thousands of ReLUs lies between the two points
    for k, gradient in enumerate((exact.d_L_real_unrolled, exact.d_L_syn)):
        v = exactness._direction(gradient, size)
        plus, minus = losses(syn.images + h * v), losses(syn.images - h * v)
        central = (plus[k] - minus[k]) / (2 * h)
        np.testing.assert_allclose(tf.reduce_sum(gradient * v), central, rtol=1e-5)


def test_gradient_equals_a_step_computed_by_hand():
    """A linear 'detector' L(W; x, t) = (W x - t)^2 / 2, for which Eqn 3 has a closed form.

    W' = W - lr [(W y - t) y + (W s - t) s];  dL(W'; y2)/ds = (W' y2 - t) y2 * (-lr) (2 W s - t).
    """
    W, y, s, y2, t, lr = 0.7, 0.3, -0.4, 1.1, 0.5, 0.1
    variable = keras.Variable(W, dtype="float64")
    optimizer = keras.optimizers.SGD(lr)
    optimizer.build([variable])
    w = tf.convert_to_tensor(variable)
    with tf.GradientTape() as outer:
        x = tf.constant(s, tf.float64)
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(w)
            loss = (w * y - t) ** 2 / 2 + (w * x - t) ** 2 / 2
        update = update_rules.advance(optimizer, [w], [inner.gradient(loss, w)])
        L_unrolled = (update.W[0] * y2 - t) ** 2 / 2
    W_updated = W - lr * ((W * y - t) * y + (W * s - t) * s)
    np.testing.assert_allclose(update.W[0], W_updated, rtol=1e-8)
    expected = (W_updated * y2 - t) * y2 * -lr * (2 * W * s - t)
    # Keras stores rates in float32.
    np.testing.assert_allclose(outer.gradient(L_unrolled, x), expected, rtol=1e-7)


@pytest.mark.parametrize("momentum,clipnorm", [(0.0, None), (0.9, 1.0)])
def test_committed_steps_equal_keras_sgd(momentum, clipnorm):
    DET, y, syn = _detector(), _labelled(1, dtype=tf.float32), _labelled(2, dtype=tf.float32)
    start = [w.numpy() for w in DET.weights]
    optimizer = _optimizer(DET, momentum, clipnorm)
    for _ in range(2):
        update_rules.commit(optimizer, unroll.unrolled_step(DET, optimizer, y, syn, None).update)
    ours = [w.numpy() for w in DET.weights]
    for w, value in zip(DET.weights, start, strict=True):
        w.assign(value)
    keras_optimizer = _optimizer(DET, momentum, clipnorm)
    variables = DET.network.trainable_variables
    for _ in range(2):
        with tf.GradientTape() as tape:
            parts = [unroll._loss_on(DET, one)(DET.weights, one.images) for one in (y, syn)]
            loss = parts[0] + parts[1]
        keras_optimizer.apply(tape.gradient(loss, variables), variables)
    assert int(optimizer.iterations) == int(keras_optimizer.iterations) == 2
    for a, b in zip(ours, DET.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


RULES = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=0.1),
    "nesterov": lambda: keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda: keras.optimizers.Adam(0.01, epsilon=1e-3, clipnorm=0.1),
    "adamw": lambda: keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.01, 9), weight_decay=0.1, epsilon=1e-3
    ),
}
# (K unrolled steps, recompute). Every rule is tested with the first form, the other forms with AdamW only.
FORMS = [(1, False), (1, True), (3, False), (3, True)]
PAIRS = [*((rule, FORMS[0]) for rule in RULES), *(("adamw", form) for form in FORMS[1:])]


def _toy(tiny, rule, form=FORMS[0], dtype=tf.float64, layer=None):
    """Returns DET and its optimizer after two steps, the function that unrolls a third, and its x_syn."""
    DET, optimizer = tiny.ToyDetector(layer), RULES[rule]()
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2, third, fourth = (_labelled(k, dtype=dtype) for k in range(5))
    steps, recompute = form
    later = (third, fourth)[: steps - 1]
    for _ in range(2):
        update_rules.commit(optimizer, unroll.unrolled_step(DET, optimizer, y, syn, None).update)

    def unrolled(x_syn=syn.images):
        step = unroll.unrolled_step(DET, optimizer, y, syn._replace(images=x_syn), y2, later, recompute)
        return step.L_real_unrolled, step.L_syn, step.d_L_real_unrolled, step.d_L_syn

    return DET, optimizer, unrolled, syn.images


@pytest.mark.parametrize("rule,form", PAIRS)
def test_gradients_equal_central_differences_for_every_rule_and_form(float64, tiny, rule, form):
    """In the direction of the gradient."""
    *_, unrolled, x_syn = _toy(tiny, rule, form)
    _, _, d_unrolled, d_syn = unrolled()
    h = 1e-5
    for k, d in ((0, d_unrolled), (1, d_syn)):
        v = d / tf.reduce_max(tf.abs(d))
        central = (unrolled(x_syn + h * v)[k] - unrolled(x_syn - h * v)[k]) / (2 * h)
        np.testing.assert_allclose(tf.reduce_sum(d * v), central, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_loss_after_k_steps_equals_the_loss_after_keras_takes_them(float64, tiny, rule):
    """Three unrolled steps, which the Keras optimizer then applies."""
    DET, optimizer = tiny.ToyDetector(), RULES[rule]()
    variables = DET.network.trainable_variables
    optimizer.build(variables)
    y, syn, y2, third, fourth = (_labelled(k) for k in range(5))
    update_rules.commit(optimizer, unroll.unrolled_step(DET, optimizer, y, syn, None).update)
    unrolled = unroll.unrolled_step(DET, optimizer, y, syn, y2, later=(third, fourth))
    for labelled in (y, third, fourth):
        with tf.GradientTape() as tape:
            loss = tf.add_n([unroll._loss_on(DET, one)(DET.weights, one.images) for one in (labelled, syn)])
        optimizer.apply(tape.gradient(loss, variables), variables)
    expected = unroll._loss_on(DET, y2)(DET.weights, y2.images)
    np.testing.assert_allclose(unrolled.L_real_unrolled, expected, rtol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_eager_graph_and_xla_agree(tiny, form):
    *_, unrolled, x_syn = _toy(tiny, "adamw", form, tf.float32)
    eager = unrolled()
    # XLA takes half a minute for three steps (decision 0073).
    for compiled in (False, True) if form[0] == 1 else (False,):
        found = tf.function(unrolled, autograph=False, jit_compile=compiled)(x_syn)
        for a, b in zip(found, eager, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


@pytest.mark.slow
def test_k_steps_eager_graph_and_xla_agree_in_float64(float64, tiny):
    DET, optimizer = tiny.ToyDetector(), RULES["momentum"]()
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2, third = (_labelled(k) for k in range(4))

    def gradient(x_syn):
        synthetic = syn._replace(images=x_syn)
        return unroll.unrolled_step(DET, optimizer, y, synthetic, y2, later=(third,)).d_L_real_unrolled

    eager = gradient(syn.images)
    for compiled in (False, True):
        found = tf.function(gradient, autograph=False, jit_compile=compiled)(syn.images)
        np.testing.assert_allclose(found, eager, rtol=1e-9, atol=1e-10 * np.abs(eager).max())


@pytest.mark.parametrize("rule,form", PAIRS)
def test_unrolled_step_changes_no_variable(tiny, rule, form):
    """Weights, moments, iterations, and moving statistics, which a call in training mode would change."""
    DET, optimizer, unrolled, x_syn = _toy(tiny, rule, form, tf.float32, keras.layers.BatchNormalization())
    statistics = [v for v in DET.network.variables if "moving" in v.path]
    old = [v.numpy() for v in statistics]
    DET.network(x_syn, training=True)
    assert [np.any(v.numpy() != value) for v, value in zip(statistics, old, strict=True)] == [True, True]
    before = [v.numpy() for v in (*DET.network.variables, *optimizer.variables)]
    unrolled()
    tf.function(unrolled, autograph=False)()
    after = [v.numpy() for v in (*DET.network.variables, *optimizer.variables)]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_update_of_k_steps_is_the_first_step(tiny):
    """DET's own training does not depend on the number of steps; L~_real does."""
    DET, optimizer = tiny.ToyDetector(), RULES["adam"]()
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2, third = (_labelled(k, dtype=tf.float32) for k in range(4))
    one = unroll.unrolled_step(DET, optimizer, y, syn, y2)
    two = unroll.unrolled_step(DET, optimizer, y, syn, y2, later=(third,))
    for a, b in zip(tf.nest.flatten(one.update), tf.nest.flatten(two.update), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.L_real == two.L_real
    assert one.L_real_unrolled != two.L_real_unrolled


def test_optimizer_built_in_another_order_raises(tiny):
    DET, optimizer, y = tiny.ToyDetector(), RULES["adam"](), _labelled(0, dtype=tf.float32)
    optimizer.build(DET.network.trainable_variables[::-1])
    with pytest.raises(ValueError, match="Adam is built on 4 variables .* in another order"):
        unroll.unrolled_step(DET, optimizer, y, y, y)


class _Gathered(keras.layers.Layer):
    """Multiplies by the mean of gathered rows of a table, whose gradient is a tf.IndexedSlices."""

    def build(self, input_shape):
        self.table = self.add_weight(shape=(5, input_shape[-1]), initializer="ones", name="table")

    def call(self, inputs):
        return inputs * tf.reduce_mean(tf.gather(self.table, [0, 3, 3]), 0)


@pytest.mark.parametrize("form", [(1, False), (1, True), (2, False)])
def test_gradient_through_a_gathered_weight_equals_central_differences(float64, tiny, form):
    DET, optimizer = tiny.ToyDetector(_Gathered()), RULES["momentum"]()
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2, third = (_labelled(k) for k in range(4))
    steps, recompute = form

    def unrolled(x_syn=syn.images):
        synthetic, later = syn._replace(images=x_syn), (third,)[: steps - 1]
        return unroll.unrolled_step(DET, optimizer, y, synthetic, y2, later, recompute)

    d = unrolled().d_L_real_unrolled
    v, h = d / tf.reduce_max(tf.abs(d)), 1e-5
    plus, minus = (unrolled(syn.images + sign * h * v).L_real_unrolled for sign in (1, -1))
    np.testing.assert_allclose(tf.reduce_sum(d * v), (plus - minus) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_weight_without_a_gradient_raises_with_its_name(tiny, recompute):
    DET, optimizer = tiny.ToyDetector(keras.layers.Lambda(tf.stop_gradient)), RULES["adam"]()
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2, third = (_labelled(k, dtype=tf.float32) for k in range(4))
    with pytest.raises(RuntimeError, match="L_real has no gradient for: .*conv2d/kernel, .*conv2d/bias$"):
        unroll.unrolled_step(DET, optimizer, y, syn, y2, (third,), recompute)


def test_exact_group_normalization_has_the_second_derivative_that_keras_lacks(float64):
    """With Keras's layer, the relative error to central differences is more than 1e-4."""

    def error(layer):
        keras.utils.set_random_seed(1)
        layer.build((None, 4, 4, 8))
        rng = np.random.default_rng(0)
        x, v = (tf.constant(rng.normal(size=(2, 4, 4, 8))) for _ in range(2))
        w, target = tf.constant(rng.normal(size=(8,))), tf.constant(rng.normal(size=(2, 4, 4, 8)))

        def loss_after_step(x):
            with tf.GradientTape() as tape:
                tape.watch(w)
                loss = tf.reduce_mean((layer(x * w) - target) ** 2)
            updated = w - 0.5 * tape.gradient(loss, w)
            return tf.reduce_mean((layer(x[:, ::-1] * updated) - target) ** 2)

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = loss_after_step(x)
        exact = tf.reduce_sum(tape.gradient(value, x) * v)
        central = (loss_after_step(x + 1e-5 * v) - loss_after_step(x - 1e-5 * v)) / 2e-5
        return float(abs(exact - central) / abs(central))

    from tf_detectorgan.models.layers import ExactGroupNormalization

    assert error(ExactGroupNormalization(groups=4)) < 1e-6
    assert error(keras.layers.GroupNormalization(groups=4)) > 1e-4
