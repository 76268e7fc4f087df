"""Compares the examples of docs/unroll.md, which are run unchanged, with central differences in float64."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def examples():
    """Names that the first and the third example define, and the code of the second, which uses the first."""
    text = (ROOT / "docs/unroll.md").read_text("utf-8")
    first, call, third = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: list[dict] = [{}, {}]
    for code, its in zip((first, third), names, strict=True):
        exec(compile(code, "docs/unroll.md", "exec"), its)
    return *names, call


@pytest.fixture
def problem():
    """(model, three pairs (x [6, 8], labels [6])), in float64."""
    keras.config.set_floatx("float64")
    rng = np.random.default_rng(0)
    layers = [keras.Input((8,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(3)]
    data = [(tf.constant(rng.normal(size=(6, 8))), tf.constant(rng.integers(0, 3, 6))) for _ in range(3)]
    yield keras.Sequential(layers), data
    keras.config.set_floatx("float32")


def built(kind, model, **options):
    optimizer = kind(**options)
    optimizer.build(model.trainable_variables)
    return optimizer


def central(function, at, direction, h=1e-5):
    return (function(at + h * direction) - function(at - h * direction)) / (2 * h)


def test_loss_after_k_steps_equals_keras_and_its_derivatives_equal_central_differences(examples, problem):
    model, ((x, labels), (x_test, labels_test), _) = problem
    optimizer = built(keras.optimizers.AdamW, model, learning_rate=0.01, epsilon=1e-3)
    penalty, v = tf.constant(0.01, tf.float64), np.random.default_rng(1).normal(size=x.shape)
    before = [v.numpy() for v in (*model.variables, *optimizer.variables)]

    def loss_after(x, penalty):
        return examples[0]["loss_after"](model, optimizer, 3, x, labels, penalty, x_test, labels_test)

    test_loss, (d_x, d_penalty) = examples[0]["derivatives"](
        model, optimizer, 3, x, labels, penalty, x_test, labels_test
    )
    expected = central(lambda x: loss_after(x, penalty), x, v)
    np.testing.assert_allclose(tf.reduce_sum(d_x * v), expected, rtol=1e-6)
    np.testing.assert_allclose(d_penalty, central(lambda p: loss_after(x, p), penalty, 1.0), rtol=1e-6)
    for variable, value in zip((*model.variables, *optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)

    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for _ in range(3):
        with tf.GradientTape() as tape:
            squares = tf.add_n([tf.reduce_sum(w.value**2) for w in model.trainable_variables])
            loss = cross_entropy(labels, model(x)) + penalty * squares
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    np.testing.assert_allclose(test_loss, cross_entropy(labels_test, model(x_test)), rtol=1e-12)


def test_example_call_returns_derivatives(examples):
    names, _, call = examples
    x, labels = tf.random.normal([4, 8]), tf.constant([0, 1, 2, 0])
    exec(call, given := names | {"x": x, "labels": labels, "x_test": x, "labels_test": labels})
    assert given["d_x"].shape == x.shape
    assert given["d_penalty"] > 0  # the penalty keeps the model from overfitting these four examples


def test_unrolled_step_of_a_classifier_is_committed_and_its_derivative_is_exact(examples, problem):
    model, (real, synthetic, held_out) = problem
    optimizer = built(keras.optimizers.SGD, model, learning_rate=0.1)
    first, v = model.get_weights(), np.random.default_rng(1).normal(size=synthetic[0].shape)

    def train_step(images):
        model.set_weights(first)
        return examples[1]["train_step"](model, optimizer, real, (images, synthetic[1]), held_out)

    loss, d = train_step(synthetic[0])
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    np.testing.assert_allclose(loss, cross_entropy(held_out[1], model(held_out[0])), rtol=1e-12)
    expected = central(lambda images: train_step(images)[0], synthetic[0], v)
    np.testing.assert_allclose(tf.reduce_sum(d * v), expected, rtol=1e-6)
