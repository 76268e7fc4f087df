"""The U-Net: number of parameters by hand, receptive field, invalid image sides, and `redraw`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.models.generators import Composition
from tf_detectorgan.models.unet import redraw, unet


def test_parameter_count_by_hand():
    """16 pixels, f = 2: halvings to 8, 4, 2, 1 with 2, 4, 8, 16 filters; back with 8, 4, 2, then 1."""
    encoder = sum(16 * a * b for a, b in [(1, 2), (2, 4), (4, 8), (8, 16)])
    decoder = sum(9 * a * b for a, b in [(16, 8), (8 + 8, 4), (4 + 4, 2), (2 + 2, 1)])
    norms = 2 * (4 + 8) + 2 * (8 + 4 + 2)  # none after the first convolution and at 1 x 1
    biases = 2 + 16 + 1  # where there is no normalisation
    assert unet((16, 16, 1), filters=2).count_params() == encoder + decoder + norms + biases


@pytest.mark.parametrize("side,halvings", [(64, 6), (256, 8)])
def test_smallest_map_is_one_pixel(side, halvings):
    strides = [layer.strides for layer in unet((side, side, 3), filters=1).layers if "conv2d" in layer.name]
    assert strides.count((2, 2)) == halvings
    assert unet((side, side, 3), filters=1).output_shape == (None, side, side, 3)


def test_every_output_pixel_depends_on_every_input_pixel():
    keras.utils.set_random_seed(0)
    G, x = unet((16, 16, 1), filters=4), tf.random.stateless_normal([1, 16, 16, 1], [1, 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        corner = G(x)[0, 0, 0, 0]
    assert np.all(tape.gradient(corner, x) != 0)


@pytest.mark.parametrize("shape", [(48, 48, 1), (64, 32, 1), (4, 4, 1)])
def test_side_that_is_no_power_of_2_raises(shape):
    with pytest.raises(ValueError, match="side a power of 2 >= 8"):
        unet(shape)


def test_redraw_by_hand():
    """With a generator whose output is 1: everywhere on the content, or in the box and 2 pixels around it."""
    noised, box = tf.zeros([1, 8, 8, 1]), tf.constant([[2.0, 2, 5, 5]])
    content = tf.constant([[0.0, 0, 8, 6]])
    whole = redraw(tf.ones_like, noised, box, content, Composition("full_image", "mask", 0.0, 1))[0, ..., 0]
    np.testing.assert_array_equal(whole, np.repeat([[1.0] * 8, [0.0] * 8], [6, 2], axis=0))
    near = redraw(tf.ones_like, noised, box, content, Composition("blend_in_box", "mask", 0.0, 1))[0, ..., 0]
    np.testing.assert_array_equal(near[2:5, 2:5], 1)
    # Pixel centres lie 1.5, 0.5, 0, 0, 0, 0.5, 1.5, 2.5 from the box: 1 - distance / 2.
    np.testing.assert_allclose(near[3], [0.25, 0.75, 1, 1, 1, 0.75, 0.25, 0])
    assert np.all(near[6:] == 0)
