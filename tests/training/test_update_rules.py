"""Compares each update rule with Keras's optimizer step by step, also Adam with a second moment of 0."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training import replicas, update_rules

SHAPES = {"kernel": (3, 4), "gain": (4,), "bias": (4,)}
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.0, 6, warmup_target=0.1, warmup_steps=2)


def variables(dtype="float32"):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape), dtype=dtype, name=name) for name, shape in SHAPES.items()]


def gradients(step, dtype="float32"):
    """Returns gradients of very different sizes; the bias's gradient is 0 in the first two steps."""
    rng = np.random.default_rng(10 + step)
    drawn = [size * rng.normal(size=shape) for size, shape in zip((3, 1e-3, 1), SHAPES.values(), strict=True)]
    return [tf.constant(g * (step > 1 or i < 2), dtype) for i, g in enumerate(drawn)]


def built(kind, no_decay=(), dtype="float32", **options):
    optimizer, W = kind(**options), variables(dtype)
    if no_decay:
        optimizer.exclude_from_weight_decay(var_names=list(no_decay))
    optimizer.build(W)
    return optimizer, W


SGD, Adam, AdamW = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW
CASES = {
    "sgd": (SGD, {"learning_rate": 0.1}),
    "momentum": (SGD, {"learning_rate": 0.1, "momentum": 0.9}),
    "nesterov": (SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "clipvalue": 0.5}),
    "decay": (SGD, {"learning_rate": 0.1, "weight_decay": 0.3, "no_decay": ("bias", "gain")}),
    "scheduled": (SGD, {"learning_rate": SCHEDULE, "momentum": 0.5, "clipnorm": 1.0}),
    "adam": (Adam, {"learning_rate": 0.1, "beta_1": 0.5, "global_clipnorm": 1.0}),
    "adamw": (
        AdamW,
        {"learning_rate": SCHEDULE, "weight_decay": 0.3, "no_decay": ("bias",), "clipnorm": 1.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_equal_keras(case, dtype):
    """Steps that are committed one by one, applied, and computed from state to state without a commit."""
    kind, options = CASES[case]
    (theirs, W), (ours, V), (applied, A), (fixed, U) = (built(kind, dtype=dtype, **options) for _ in range(4))
    before = [v.numpy() for v in (*U, *fixed.variables)]
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-13, "atol": 1e-15}
    update = update_rules.current(fixed)
    for step in range(4):
        g = gradients(step, dtype)
        theirs.apply(g, W)
        update = update_rules.advance(fixed, update.W, g, update.state)
        update_rules.commit(ours, update_rules.advance(ours, [tf.convert_to_tensor(v) for v in V], g))
        tf.function(update_rules.apply, autograph=False)(applied, g)
        expected = [v.numpy() for v in (*W, *theirs.variables)]
        for stepped in ((*V, *ours.variables), (*A, *applied.variables)):
            for found, value in zip(stepped, expected, strict=True):
                np.testing.assert_allclose(found.numpy(), value, **close)
        for found, value in zip(update.W, W, strict=True):
            np.testing.assert_allclose(found, value, **close)
    assert int(update.state.iterations) == int(ours.iterations) == 4
    for variable, value in zip((*U, *fixed.variables), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
def test_apply_on_two_replicas_equals_one_device_with_the_summed_gradients(kind, mirrored):
    """On both copies of every variable."""
    options = {"learning_rate": 0.1, "weight_decay": 0.3, "global_clipnorm": 0.5}
    one, W = built(kind, **options)
    with mirrored.scope():
        both, V = built(kind, **options)

    @tf.function(autograph=False)
    def step(g):
        part = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group + 1, tf.float32)
        update_rules.apply(both, replicas.total([part * v for v in g]))

    for number in range(3):
        g = gradients(number)
        mirrored.run(step, args=(g,))
        update_rules.apply(one, [3 * v for v in g])
        for variable, value in zip((*V, *both.variables), (*W, *one.variables), strict=True):
            for copy in mirrored.experimental_local_results(variable.value):
                np.testing.assert_allclose(copy.numpy(), value.numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam_is_differentiable_where_the_second_moment_is_zero(kind):
    """g = (x, 0 x): both moments are 0 before the step, and those of the second weight also after it.

    The first weight's derivative is also checked at x = 0, where W' is about -alpha (1 - beta_1) x / epsilon.
    """
    optimizer = kind(learning_rate=0.1, epsilon=1e-3)
    w = keras.Variable([0.7, 0.7], dtype="float64")
    optimizer.build([w])

    def updated(x):
        return update_rules.advance(optimizer, [tf.convert_to_tensor(w)], [tf.stack([x, 0 * x])]).W[0]

    for start in (0.0, 2e-3):
        x = tf.constant(start, tf.float64)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            weights = [tf.reduce_sum(part) for part in tf.split(updated(x), 2)]
        exact = [tape.gradient(weight, x) for weight in weights]
        h = 1e-9
        central = (updated(x + h) - updated(x - h)) / (2 * h)
        assert np.all(np.isfinite(exact))
        assert abs(exact[0]) > 1
        np.testing.assert_allclose(exact, central, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "kind,options,message",
    [
        (keras.optimizers.RMSprop, {}, "no update rule for RMSprop"),
        (SGD, {"use_ema": True}, "use_ema"),
        (SGD, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        (SGD, {"loss_scale_factor": 2.0}, "loss_scale_factor"),
        (Adam, {"amsgrad": True}, "amsgrad"),
        (SGD, {"learning_rate": lambda: 0.1}, "SGD: learning_rate .* use a LearningRateSchedule instead"),
    ],
)
def test_unsupported_optimizer_or_option_raises(kind, options, message):
    optimizer, _ = built(kind, **options)
    with pytest.raises(ValueError, match=message):
        update_rules.current_state(optimizer)


@pytest.mark.parametrize(
    "attribute,value", [("constraint", keras.constraints.NonNeg()), ("overwrite_with_gradient", True)]
)
def test_weight_with_unsupported_attribute_raises_with_its_name(attribute, value):
    optimizer, W = built(SGD)
    setattr(W[1], attribute, value)
    with pytest.raises(ValueError, match=f"does not support {attribute}; it is set on: .*gain"):
        update_rules.current_state(optimizer)


def test_optimizer_that_is_not_built_on_these_weights_in_this_order_raises():
    W = variables()
    for kind in (SGD, Adam):
        with pytest.raises(ValueError, match=rf"{kind.__name__} is not built; call its build"):
            update_rules.current(kind())
    optimizer, W = built(SGD)
    update_rules.require_built_on(optimizer, [w.value for w in W])
    for others in (W[::-1], W[:2], variables()):
        with pytest.raises(ValueError, match=r"built on 3 variables .* or are in another order"):
            update_rules.require_built_on(optimizer, [w.value for w in others])


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_negative_clip_limit_is_ignored_as_by_keras(limit):
    (theirs, W), (ours, V) = (built(SGD, learning_rate=0.1, **{limit: -1.0}) for _ in range(2))
    theirs.apply(gradients(2), W)
    update = update_rules.advance(ours, update_rules.current(ours).W, gradients(2))
    for found, value in zip(update.W, W, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-6)


@pytest.mark.parametrize("limit", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_clipping_is_differentiable_where_all_gradients_are_0(limit):
    """W' = w - 0.5 (x, 2x) near x = 0: the derivative of its sum is -1.5."""
    optimizer = SGD(0.5, **{limit: 1.0})
    w = keras.Variable([1.0, 2.0], dtype="float64")
    optimizer.build([w])
    x = tf.constant(0.0, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(update_rules.advance(optimizer, [w.value], [tf.stack([x, 2 * x])]).W[0])
    np.testing.assert_allclose(tape.gradient(total, x), -1.5, rtol=1e-12)


def test_nan_gradient_makes_all_updated_weights_nan():
    optimizer, W = built(SGD, global_clipnorm=1.0)
    g = [tf.fill(w.shape, float("nan")) if w is W[0] else tf.ones(w.shape) for w in W]
    assert all(np.all(np.isnan(w)) for w in update_rules.advance(optimizer, [w.value for w in W], g).W)


@pytest.mark.parametrize(
    "kind,options", [(SGD, {"momentum": 0.9}), (SGD, {"global_clipnorm": 1.0}), (Adam, {})]
)
def test_indexed_slices_of_another_dtype_update_as_in_keras(kind, options):
    """The gradient of a gather is a tf.IndexedSlices, here in float32 for a weight in float64."""
    (theirs, W), (ours, V) = (built(kind, dtype="float64", learning_rate=0.1, **options) for _ in range(2))
    rows = tf.IndexedSlices(tf.ones([2, 4]), tf.constant([0, 2]), tf.constant([3, 4]))
    g = [rows, tf.ones([4]), tf.ones([4])]
    theirs.apply(g, W)
    for found, value in zip(update_rules.advance(ours, [v.value for v in V], g).W, W, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-7)
    with pytest.raises(RuntimeError, match="the loss has no gradient for: gain"):
        update_rules.advance(ours, [v.value for v in V], [rows, None, g[2]])
