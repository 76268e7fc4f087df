"""Compares our layers with Keras's, with NumPy and with central differences."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.models import layers
from tf_detectorgan.models.convolutions import DoublingConv2D, NarrowConv2D


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


def images(seed, shape=(2, 5, 7, 12)):
    return tf.constant(np.random.default_rng(seed).normal(3, 2, shape))


def with_random_weights(layer, channels=12):
    layer.build((None, None, None, channels))
    rng = np.random.default_rng(9)
    layer.set_weights([rng.normal(1, 0.5, channels), rng.normal(0, 1, channels)])
    return layer


@pytest.mark.parametrize("groups", [1, 3, 12, -1])
def test_group_normalization_equals_keras_up_to_the_first_derivative(float64, groups):
    ours = with_random_weights(layers.ExactGroupNormalization(groups, epsilon=1e-5))
    keras_layer = with_random_weights(keras.layers.GroupNormalization(groups, epsilon=1e-5))
    x, v = images(0), images(1)
    results = []
    for layer in (ours, keras_layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            out = layer(x)
            value = tf.reduce_sum(out * v)
        results.append([out, *tape.gradient(value, [x, *layer.trainable_variables])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [1, 3, None])
def test_instance_normalization_equals_one_group_per_channel(count):
    """Compares the fused op and its derivative with the explicit formula; number of images known or not."""
    x, v = (tf.cast(images(seed, (count or 2, 5, 7, 12)), tf.float32) for seed in (0, 1))
    results = []
    for layer in (layers.InstanceNormalization(), layers.ExactGroupNormalization(-1)):
        layer = with_random_weights(layer)

        @tf.function(input_signature=[tf.TensorSpec([count, 5, 7, 12])] * 2, autograph=False)
        def once(x, v, layer=layer):
            with tf.GradientTape() as tape:
                tape.watch(x)
                out = layer(x)
            return out, *tape.gradient(out, [x, layer.gamma.value, layer.beta.value], v)

        results.append(once(x, v))
        assert (
            "FusedBatchNormV3" in {op.type for op in once.get_concrete_function().graph.get_operations()}
        ) == (type(layer) is layers.InstanceNormalization)
    for found, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_instance_normalization_is_saved_with_its_epsilon():
    layer = layers.InstanceNormalization(1e-3, name="norm")
    assert layers.InstanceNormalization.from_config(layer.get_config()).epsilon == 1e-3


@pytest.mark.parametrize("groups", [3, -1])
def test_second_derivative_equals_central_differences(float64, groups):
    """Checks d/dx of the derivative along v, along v: the second derivative that Eqn 3 needs."""
    x, v, w = images(0), images(1), images(2)

    def slope(layer, point):
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = tf.reduce_sum(layer(point) ** 2 * w)
        return tf.reduce_sum(tape.gradient(value, point) * v)

    def error(layer):
        with tf.GradientTape() as tape:
            tape.watch(x)
            first = slope(layer, x)
        exact = tf.reduce_sum(tape.gradient(first, x) * v)
        central = (slope(layer, x + 1e-5 * v) - slope(layer, x - 1e-5 * v)) / 2e-5
        return float(tf.abs(exact - central) / tf.abs(central))

    assert error(with_random_weights(layers.ExactGroupNormalization(groups))) < 1e-7
    assert error(with_random_weights(keras.layers.GroupNormalization(groups))) > 1e-4


def test_group_normalization_by_hand():
    """Channels (1, 3) of one pixel: mean 2, variance 1, so (-1, 1); then gamma 2 and beta 5."""
    layer = layers.ExactGroupNormalization(groups=1, epsilon=0.0)
    layer.build((None, 1, 1, 2))
    layer.set_weights([np.array([2.0, 2.0]), np.array([5.0, 5.0])])
    np.testing.assert_allclose(layer(tf.constant([[[[1.0, 3.0]]]])), [[[[3.0, 7.0]]]])


def test_groups_that_do_not_divide_channels_raise():
    with pytest.raises(ValueError, match="groups=8 does not divide 12 channels"):
        layers.ExactGroupNormalization(8).build((None, None, None, 12))


@pytest.mark.parametrize("size", [1, 3])
def test_reflection_padding_is_undone_by_slicing(size):
    x = tf.cast(images(0), tf.float32)
    layer = layers.ReflectionPadding(size)
    padded = layer(x)
    np.testing.assert_array_equal(padded[:, size:-size, size:-size], x)
    mirrored = np.pad(x, [(0, 0), (size, size), (size, size), (0, 0)], mode="reflect")
    np.testing.assert_array_equal(padded, mirrored)


def test_doubling_equals_keras_with_its_derivative():
    x, upstream = tf.cast(images(0), tf.float32), tf.cast(images(1, (2, 10, 14, 12)), tf.float32)
    found = []
    for layer in (layers.Doubling(), keras.layers.UpSampling2D(2)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        found.append((y, tape.gradient(y, x, upstream)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-5)


@pytest.mark.parametrize("which", ["doubling", "one filter", "three filters"])
def test_convolutions_by_phases_equal_keras_with_derivatives(float64, which):
    conv = keras.layers.Conv2D
    ours, theirs = {
        "doubling": (DoublingConv2D(4), [keras.layers.UpSampling2D(2), conv(4, 3, padding="same")]),
        "one filter": (NarrowConv2D(1, 7), [conv(1, 7)]),
        "three filters": (NarrowConv2D(3, 3, activation="tanh"), [conv(3, 3, activation="tanh")]),
    }[which]
    found, x = [], images(0, (2, 14, 10, 5))
    for layer in (ours, keras.Sequential(theirs)):
        layer.build(x.shape)
        rng = np.random.default_rng(1)
        layer.set_weights([rng.normal(size=w.shape) / 10 for w in layer.weights])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        assert y.shape == layer.compute_output_shape(x.shape)
        found.append([y, *tape.gradient(y, [x, *layer.trainable_variables], images(2, y.shape))])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_convolutions_by_phases_raise_on_indivisible_sides():
    with pytest.raises(ValueError, match="14x12 must be divisible by 4"):
        NarrowConv2D(1, 3)(tf.zeros([1, 16, 14, 2]))


@pytest.mark.parametrize(
    "layer",
    [
        layers.ExactGroupNormalization(3, 1e-3),
        layers.ReflectionPadding(2),
        layers.Doubling(),
        DoublingConv2D(2),
    ],
)
def test_layers_are_equal_after_saving_and_loading(tmp_path, layer):
    inputs = keras.Input((4, 4, 6))
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    x = tf.random.normal([1, 4, 4, 6])
    np.testing.assert_array_equal(keras.saving.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize("exact", [False, True])
def test_derivative_of_too_high_order_raises(exact):
    """The second derivative of InstanceNormalization and the third of ExactGroupNormalization raise."""
    norm = layers.ExactGroupNormalization(3) if exact else layers.InstanceNormalization()
    layer = with_random_weights(norm)
    x = tf.cast(images(0), tf.float32)

    def slope(function):
        def along(point):
            with tf.GradientTape() as tape:
                tape.watch(point)
                value = tf.reduce_sum(function(point) ** 2)
            return tape.gradient(value, point)

        return along

    last = slope(slope(layer)) if exact else slope(layer)
    assert np.isfinite(last(x)).all()
    with pytest.raises(RuntimeError, match="GroupNormalization has no third" if exact else "has no second"):
        slope(last)(x)
