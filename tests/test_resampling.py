"""Compares resampling with NumPy slices, hand arithmetic, TensorFlow's crop and central differences."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.resampling import crop, cut, resample, valid_mask


def run(image, scale, offset, size=None):
    image = np.asarray(image, np.float32)
    size = size or image.shape
    scale, offset = tf.constant([scale], tf.float32), tf.constant([offset], tf.float32)
    return resample(image[None, :, :, None], scale, offset, tf.constant([size]))[0, :, :, 0].numpy()


def test_whole_pixel_shift_copies_pixels_and_repeats_the_edge():
    image = np.arange(16).reshape(4, 4)
    moved = run(image, (1, 1), (1, -2))
    expected = image[[0, 0, 1, 2]][:, [2, 3, 3, 3]]
    np.testing.assert_array_equal(moved, expected)


def test_mirroring_copies_pixels_of_the_valid_content():
    image = np.arange(16).reshape(4, 4)
    mirrored = run(image, (1, -1), (0, 3), size=(4, 3))  # width 3: x goes to 3 - x
    np.testing.assert_array_equal(mirrored[:, :3], image[:, [2, 1, 0]])
    assert np.isin(mirrored[:, 3], image[:, :3]).all(), "there is padding in the content"


def test_half_pixel_shift_gives_means_of_neighbours():
    np.testing.assert_allclose(run([[0.0, 1.0, 3.0]] * 3, (1, 1), (0, 0.5))[0], [0.0, 0.5, 2.0])


def test_zoom_two_by_hand():
    # Pixel centres 0.5, 1.5, 2.5, 3.5 come from 0.25, 0.75, 1.25, 1.75, a quarter pixel from the centres.
    np.testing.assert_allclose(run([[0.0, 1.0, 0.0, 0.0]] * 4, (2, 2), (0, 0))[0], [0, 0.25, 0.75, 0.75])


def test_valid_mask_is_true_on_the_content():
    mask = valid_mask(tf.constant([[2, 3], [4, 1]]), 4).numpy()
    assert mask.shape == (2, 4, 4, 1)
    assert mask[0, :2, :3].all()
    assert mask[1, :, :1].all()
    assert mask.sum(axis=(1, 2, 3)).tolist() == [6, 4]


def ramp(height, width):
    """Returns an image with the pixel centres' x in channel 0 and y in channel 1."""
    y, x = np.mgrid[:height, :width] + 0.5
    return tf.constant(np.stack([x, y], -1)[None], tf.float32)


def test_crop_of_a_ramp_by_hand():
    """A box of 16 x 8 pixels has 4 x 4 samples, one in the middle of each 4 x 2 pixels."""
    found = crop(ramp(32, 48), tf.constant([[10.0, 4.0, 26.0, 12.0]]), 4, 0.0)
    x, y = np.meshgrid([12, 16, 20, 24], [5, 7, 9, 11])
    np.testing.assert_allclose(found[0], np.stack([x, y], -1), rtol=1e-5)


def test_crop_with_context_by_hand():
    """The context is 4 px (1/4 of the longer side): 6 to 30 and 0 to 16, in 8 x 8 samples of 3 x 2 pixels."""
    found = crop(ramp(32, 48), tf.constant([[10.0, 4.0, 26.0, 12.0]]), 8, 0.25)
    x, y = np.meshgrid(6 + 3 * (np.arange(8) + 0.5), 2 * (np.arange(8) + 0.5))
    np.testing.assert_allclose(found[0], np.stack([x, y], -1), rtol=1e-5)


def test_crop_of_a_box_of_the_crop_size_copies_its_pixels():
    images = tf.random.normal([2, 20, 24, 3])
    found = crop(images, tf.constant([[2.0, 3.0, 10.0, 11.0], [16.0, 12.0, 24.0, 20.0]]), 8, 0.0)
    np.testing.assert_allclose(found[0], images[0, 3:11, 2:10], atol=1e-5)
    np.testing.assert_allclose(found[1], images[1, 12:20, 16:24], atol=1e-5)


@pytest.mark.parametrize("box", [[3.2, 4.7, 4.1, 5.5], [0.0, 0.0, 48.0, 32.0], [10.0, 1.0, 11.0, 31.0]])
def test_crop_of_boxes_of_any_size(box):
    """A pixel, the whole image, a line: the mean of a linear ramp is its value at the box's centre."""
    found = crop(ramp(32, 48), tf.constant([box]), 16, 0.0)
    inner = found[:, 1:-1, 1:-1] if box[0] == 0 else found  # samples outside the outermost centres are 0
    assert found.shape == (1, 16, 16, 2)
    centre = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]
    np.testing.assert_allclose(tf.reduce_mean(inner, [0, 1, 2]), centre, rtol=1e-4)


def test_crop_outside_of_the_image_is_zero():
    found = crop(tf.ones([1, 16, 16, 1]), tf.constant([[8.0, 8.0, 24.0, 24.0]]), 16, 0.0)[0, :, :, 0]
    np.testing.assert_array_equal(found, np.pad(np.ones((8, 8)), (0, 8)))


# The whole image, a corner, one pixel, narrower than a pixel, larger than the crop, outside the image.
REFERENCE_BOXES = (
    [0.0, 0.0, 48.0, 32.0],
    [36.5, 20.25, 48.0, 32.0],
    [7.0, 9.0, 8.0, 10.0],
    [20.3, 11.2, 20.6, 30.7],
    [2.1, 1.3, 47.2, 31.4],
    [-8.0, 6.0, 12.0, 40.0],
)


@pytest.mark.parametrize("context", [0.0, 0.3])
@pytest.mark.parametrize("size", [7, 16])
def test_crop_equals_crop_and_resize(size, context):
    """The arguments of TensorFlow's op are the first and last samples' places; pixel centres span 0 to 1."""
    images = tf.random.stateless_uniform([len(REFERENCE_BOXES), 32, 48, 3], [1, 2], -1.0, 1.0)
    boxes = np.array(REFERENCE_BOXES)
    sides = boxes[:, 2:] - boxes[:, :2]
    margin = context * sides.max(1, keepdims=True)
    low, high = boxes[:, :2] - margin, boxes[:, 2:] + margin
    half = (high - low) / (2 * size)
    places = np.concatenate([(low + half)[:, ::-1], (high - half)[:, ::-1]], 1) - 0.5
    expected = tf.image.crop_and_resize(
        images, places / [31, 47, 31, 47], tf.range(len(boxes)), [size, size], extrapolation_value=0.0
    )
    found = crop(images, tf.constant(boxes, tf.float32), size, context)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradient_of_crop_and_cut_equals_central_differences():
    boxes = tf.constant([[1.3, 2.1, 7.9, 6.2], [0.0, 0.0, 3.0, 8.0]])
    images, upstream = (np.random.default_rng(s).normal(size=(2, 8, 9, 2)) for s in (0, 1))

    def value(pixels):
        cropped, (moved, _) = crop(pixels, boxes, 5, 0.1), cut(pixels, boxes)
        return tf.reduce_sum(cropped * upstream[:, :5, :5]) + tf.reduce_sum(moved**2 * upstream)

    x = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = value(x)
    assert total.dtype == tf.float64
    found = tape.gradient(total, x).numpy()
    eps, rng = 1e-6, np.random.default_rng(2)
    for index in zip(*(rng.integers(0, n, 40) for n in images.shape), strict=True):
        up, down = images.copy(), images.copy()
        up[index] += eps
        down[index] -= eps
        difference = (value(tf.constant(up)) - value(tf.constant(down))) / (2 * eps)
        np.testing.assert_allclose(found[index], difference, atol=1e-8)


def test_crop_has_no_gradient_with_respect_to_boxes():
    images, boxes = tf.ones([1, 8, 8, 1]), tf.constant([[1.0, 1.0, 5.0, 6.0]])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(boxes)
        cropped, moved = tf.reduce_sum(crop(images, boxes, 4)), tf.reduce_sum(cut(images, boxes)[0])
    assert tape.gradient(cropped, boxes) is None
    assert tape.gradient(moved, boxes) is None


BOXES = tf.constant([[2.2, 3.0, 9.5, 14.1], [0.0, 0.0, 24.0, 24.0], [20.7, 22.9, 21.0, 24.0]])
SLICES = [np.s_[3:15, 2:10], np.s_[0:24, 0:24], np.s_[22:24, 20:21]]  # the pixels that overlap with the boxes


def test_cut_equals_a_numpy_slice():
    x = tf.random.stateless_normal([3, 24, 24, 2], [1, 24])
    found, sizes = cut(x, BOXES)
    for i, slices in enumerate(SLICES):
        expected = np.zeros((24, 24, 2), np.float32)
        piece = x[i].numpy()[slices]
        expected[: piece.shape[0], : piece.shape[1]] = piece
        np.testing.assert_array_equal(found[i], expected)
        assert tuple(sizes[i].numpy()) == piece.shape[:2]
