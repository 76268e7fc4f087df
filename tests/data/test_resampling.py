import numpy as np
import tensorflow as tf

from tf_detectorgan.data.resampling import resample, valid_mask


def run(image, scale, offset, size=None):
    image = np.asarray(image, np.float32)
    size = size or image.shape
    scale, offset = tf.constant([scale], tf.float32), tf.constant([offset], tf.float32)
    return resample(image[None, :, :, None], scale, offset, tf.constant([size]))[0, :, :, 0].numpy()


def test_a_whole_shift_copies_and_repeats_the_edge():
    image = np.arange(16).reshape(4, 4)
    moved = run(image, (1, 1), (1, -2))
    expected = image[[0, 0, 1, 2]][:, [2, 3, 3, 3]]
    np.testing.assert_array_equal(moved, expected)


def test_mirrors_copy_pixels_within_the_valid_content():
    image = np.arange(16).reshape(4, 4)
    mirrored = run(image, (1, -1), (0, 3), size=(4, 3))  # width 3: x goes to 3 - x
    np.testing.assert_array_equal(mirrored[:, :3], image[:, [2, 1, 0]])
    assert np.isin(mirrored[:, 3], image[:, :3]).all(), "padding was dragged in"


def test_halfway_between_pixels_is_their_mean():
    np.testing.assert_allclose(run([[0.0, 1.0, 3.0]] * 3, (1, 1), (0, 0.5))[0], [0.0, 0.5, 2.0])


def test_zoom_two_by_hand():
    # Pixel centres 0.5, 1.5, 2.5, 3.5 come from 0.25, 0.75, 1.25, 1.75, a quarter beside the centres.
    np.testing.assert_allclose(run([[0.0, 1.0, 0.0, 0.0]] * 4, (2, 2), (0, 0))[0], [0, 0.25, 0.75, 0.75])


def test_valid_mask_counts_rows_and_columns():
    mask = valid_mask(tf.constant([[2, 3], [4, 1]]), 4).numpy()
    assert mask.shape == (2, 4, 4, 1)
    assert mask[0, :2, :3].all()
    assert mask[1, :, :1].all()
    assert mask.sum(axis=(1, 2, 3)).tolist() == [6, 4]
