"""PatchGANs see what they should, crops show what is in the box."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.models.discriminators import crop, patch_gan, receptive_field
from tf_detectorgan.models.layers import ExactGroupNormalization

NORMS = (ExactGroupNormalization, keras.layers.GroupNormalization)


def test_receptive_field_by_hand():
    """Backwards from one logit: 1 -> 4 -> 7 -> 16 -> 34 -> 70, each field = (field - 1) * stride + 4."""
    assert [receptive_field(layers) for layers in (1, 2, 3)] == [16, 34, 70]


@pytest.mark.parametrize("layers,side", [(2, 80), (3, 128)])
def test_receptive_field_is_what_the_gradient_says(layers, side):
    """Pixels that one interior logit depends on, through the model's own convolutions.

    Instance norm looks at whole channels, so each norm is replaced by the identity. All weights are made
    positive, so that no two paths cancel and no ReLU is shut.
    """
    discriminator = keras.models.clone_model(
        patch_gan((side, side, 1), filters=2, layers=layers),
        clone_function=lambda layer: (
            keras.layers.Activation("linear", name=layer.name)
            if isinstance(layer, NORMS)
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    assert any(isinstance(layer, keras.layers.Activation) for layer in discriminator.layers)
    discriminator.set_weights([np.full(w.shape, 0.1) for w in discriminator.get_weights()])
    x = tf.ones([1, side, side, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = discriminator(x)
        row, column = logits.shape[1] // 2, logits.shape[2] // 2 - 1
        one = logits[0, row, column, 0]
    seen = tape.gradient(one, x)[0, :, :, 0].numpy() > 0
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    for found in (rows, columns):
        assert 0 < found[0] and found[-1] < side - 1  # noqa: PT018  # interior: the border does not cut it
        assert len(found) == found[-1] - found[0] + 1 == receptive_field(layers)
    assert seen.sum() == receptive_field(layers) ** 2


def test_architecture_is_the_70_pixel_patch_gan():
    """C64-C128-C256-C512: 4x4 kernels, strides 2, 2, 2, 1, 1; no norm on the first layer and the last."""
    D = patch_gan((128, 96, 3))
    convolutions = [layer for layer in D.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.strides[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert [layer.use_bias for layer in convolutions] == [True, False, False, False, True]
    assert sum(isinstance(layer, NORMS) for layer in D.layers) == 3
    assert D.output_shape == (None, 16, 12, 1)


def ramp(height, width):
    """Channel 0 holds each pixel's centre x, channel 1 its y."""
    y, x = np.mgrid[:height, :width] + 0.5
    return tf.constant(np.stack([x, y], -1)[None], tf.float32)


def test_crop_of_a_ramp_by_hand():
    """A box of 16 x 8 into 4 x 4 samples: one in the middle of each 4 x 2 pixels."""
    found = crop(ramp(32, 48), tf.constant([[10.0, 4.0, 26.0, 12.0]]), 4, 0.0)
    x, y = np.meshgrid([12, 16, 20, 24], [5, 7, 9, 11])
    np.testing.assert_allclose(found[0], np.stack([x, y], -1), rtol=1e-5)


def test_crop_with_context_by_hand():
    """4 px, a quarter of the longer side, around it: 6 to 30 and 0 to 16, in 8 samples of 3 x 2 pixels."""
    found = crop(ramp(32, 48), tf.constant([[10.0, 4.0, 26.0, 12.0]]), 8, 0.25)
    x, y = np.meshgrid(6 + 3 * (np.arange(8) + 0.5), 2 * (np.arange(8) + 0.5))
    np.testing.assert_allclose(found[0], np.stack([x, y], -1), rtol=1e-5)


def test_crop_of_a_box_of_the_crops_size_copies_its_pixels():
    images = tf.random.normal([2, 20, 24, 3])
    found = crop(images, tf.constant([[2.0, 3.0, 10.0, 11.0], [16.0, 12.0, 24.0, 20.0]]), 8, 0.0)
    np.testing.assert_allclose(found[0], images[0, 3:11, 2:10], atol=1e-5)
    np.testing.assert_allclose(found[1], images[1, 12:20, 16:24], atol=1e-5)


@pytest.mark.parametrize("box", [[3.2, 4.7, 4.1, 5.5], [0.0, 0.0, 48.0, 32.0], [10.0, 1.0, 11.0, 31.0]])
def test_crop_takes_boxes_of_any_size(box):
    """A pixel, the whole image, a line: the mean of a linear ramp is its value at the box's centre."""
    found = crop(ramp(32, 48), tf.constant([box]), 16, 0.0)
    inner = found[:, 1:-1, 1:-1] if box[0] == 0 else found  # samples beyond the outermost pixel centres are 0
    assert found.shape == (1, 16, 16, 2)
    centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    np.testing.assert_allclose(tf.reduce_mean(inner, [0, 1, 2]), centre, rtol=1e-4)


def test_crop_outside_of_the_image_is_grey():
    found = crop(tf.ones([1, 16, 16, 1]), tf.constant([[8.0, 8.0, 24.0, 24.0]]), 16, 0.0)[0, :, :, 0]
    np.testing.assert_array_equal(found, np.pad(np.ones((8, 8)), (0, 8)))


def test_crop_passes_the_first_derivative_to_the_pixels_in_the_box():
    images = tf.random.normal([1, 16, 16, 1])
    with tf.GradientTape() as tape:
        tape.watch(images)
        total = tf.reduce_sum(crop(images, tf.constant([[4.0, 4.0, 12.0, 12.0]]), 8, 0.0))
    gradient = tape.gradient(total, images)[0, :, :, 0].numpy()
    np.testing.assert_allclose(gradient, np.pad(np.ones((8, 8)), 4), atol=1e-5)
