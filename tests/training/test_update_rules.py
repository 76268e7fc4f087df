"""Every rule against the live Keras optimizer, step for step, and Adam where its second moment is 0."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training import update_rules

SHAPES = {"kernel": (3, 4), "gain": (4,), "bias": (4,)}
SCHEDULE = keras.optimizers.schedules.CosineDecay(0.0, 6, warmup_target=0.1, warmup_steps=2)


def variables(dtype="float32"):
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape), dtype=dtype, name=name) for name, shape in SHAPES.items()]


def gradients(step, dtype="float32"):
    """Of very different sizes; that of the bias is 0 in the first two steps."""
    rng = np.random.default_rng(10 + step)
    found = [size * rng.normal(size=shape) for size, shape in zip((3, 1e-3, 1), SHAPES.values(), strict=True)]
    return [tf.constant(g * (step > 1 or i < 2), dtype) for i, g in enumerate(found)]


def built(kind, spared=(), dtype="float32", **options):
    optimizer, W = kind(**options), variables(dtype)
    if spared:
        optimizer.exclude_from_weight_decay(var_names=list(spared))
    optimizer.build(W)
    return optimizer, W


SGD, Adam, AdamW = keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW
CASES = {
    "sgd": (SGD, {"learning_rate": 0.1}),
    "momentum": (SGD, {"learning_rate": 0.1, "momentum": 0.9}),
    "nesterov": (SGD, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True, "clipvalue": 0.5}),
    "decay": (SGD, {"learning_rate": 0.1, "weight_decay": 0.3, "spared": ("bias", "gain")}),
    "scheduled": (SGD, {"learning_rate": SCHEDULE, "momentum": 0.5, "clipnorm": 1.0}),
    "adam": (Adam, {"learning_rate": 0.1, "beta_1": 0.5, "global_clipnorm": 1.0}),
    "adamw": (AdamW, {"learning_rate": SCHEDULE, "weight_decay": 0.3, "spared": ("bias",), "clipnorm": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_equal_keras(case, dtype):
    """Committed one by one, and all at once from the state that each step hands to the next.

    Not closer in float64: Keras rounds rates, momentum and betas to float32 first.
    """
    kind, options = CASES[case]
    (theirs, W), (ours, V) = built(kind, dtype=dtype, **options), built(kind, dtype=dtype, **options)
    ahead = update_rules.Update([tf.convert_to_tensor(v) for v in V], update_rules.live(ours))
    for step in range(4):
        g = gradients(step, dtype)
        theirs.apply(g, W)
        ahead = update_rules.advance(ours, ahead.W, g, ahead.state)
        update_rules.commit(ours, update_rules.advance(ours, [tf.convert_to_tensor(v) for v in V], g))
        expected = [v.numpy() for v in (*W, *theirs.variables)]
        for found, value in zip((*V, *ours.variables), expected, strict=True):
            np.testing.assert_allclose(found.numpy(), value, rtol=1e-6, atol=1e-6)
        for found, value in zip(ahead.W, W, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-6)
    assert int(ahead.state.iterations) == int(ours.iterations) == 4


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_adam_is_differentiable_where_the_second_moment_is_zero(kind):
    """g = (x, 0 x): both moments are 0 before the step and, of the second weight, after it.

    The first weight's derivative is checked at x = 0 too, where W' is about -alpha (1 - beta_1) x / epsilon.
    """
    optimizer = kind(learning_rate=0.1, epsilon=1e-3)
    w = keras.Variable([0.7, 0.7], dtype="float64")
    optimizer.build([w])

    def ahead(x):
        return update_rules.advance(optimizer, [tf.convert_to_tensor(w)], [tf.stack([x, 0 * x])]).W[0]

    for start in (0.0, 2e-3):
        x = tf.constant(start, tf.float64)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            found = [tf.reduce_sum(part) for part in tf.split(ahead(x), 2)]
        exact = [tape.gradient(part, x) for part in found]
        h = 1e-9
        central = (ahead(x + h) - ahead(x - h)) / (2 * h)
        assert np.all(np.isfinite(exact))
        assert abs(exact[0]) > 1
        np.testing.assert_allclose(exact, central, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "kind,options,said",
    [
        (keras.optimizers.RMSprop, {}, "no update rule for RMSprop"),
        (SGD, {"use_ema": True}, "use_ema"),
        (SGD, {"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        (SGD, {"loss_scale_factor": 2.0}, "loss_scale_factor"),
        (Adam, {"amsgrad": True}, "amsgrad"),
    ],
)
def test_what_has_no_rule_is_refused(kind, options, said):
    optimizer, _ = built(kind, **options)
    with pytest.raises(ValueError, match=said):
        update_rules.live(optimizer)


def test_constraints_are_refused():
    optimizer, W = built(SGD)
    W[1].constraint = keras.constraints.NonNeg()
    with pytest.raises(ValueError, match=r"constraints; these weights have: gain"):
        update_rules.live(optimizer)
