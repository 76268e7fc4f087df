import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import augmentation
from tf_detectorgan.data.augmentation import DRAWS, IDENTITY, Augmentation, augment

S, N = 48, 64
ALL = Augmentation(shift=0.2, scale=0.3, intensity=0.3)


@pytest.fixture(scope="module")
def rectangles():
    """N padded images, each with one white rectangle on black, its box, two padded boxes, and draws."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(S // 2, S + 1, (N, 2)).astype(np.int32)
    images = np.full((N, S, S, 1), 0.3, np.float32)  # padding
    boxes = np.zeros((N, 3, 4), np.float32)
    for image, box, (h, w) in zip(images, boxes, sizes, strict=True):
        image[:h, :w] = -1.0
        bh, bw = rng.integers(6, 14, 2)
        y, x = rng.integers(0, h - bh + 1), rng.integers(0, w - bw + 1)
        image[y : y + bh, x : x + bw] = 1.0
        box[0] = x, y, x + bw, y + bh
    labels = np.tile(np.int32([1, -1, -1]), (N, 1))
    return images, boxes, labels, sizes, rng.uniform(0, 1, (N, DRAWS)).astype(np.float32)


def extent(image):
    """Returns the box around all pixels of at least 0."""
    rows, columns = (np.flatnonzero((image[..., 0] >= 0).any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


@pytest.mark.parametrize(
    "options",
    [
        Augmentation(shift=0.0, scale=0.0, intensity=0.0),
        Augmentation(flip=False, scale=0.0, intensity=0.0),
        Augmentation(flip=False, shift=0.0, intensity=0.0),
        Augmentation(shift=0.2, scale=0.3, intensity=0.0),
    ],
    ids=["flip", "shift", "scale", "all"],
)
def test_the_box_moves_with_the_rectangle(rectangles, options):
    images, boxes, labels, sizes, draws = rectangles
    new_images, new_boxes, new_labels = (
        t.numpy() for t in augment(images, boxes, labels, sizes, draws, options)
    )
    moved = compared = 0
    for image, old, box, (h, w) in zip(new_images, boxes[:, 0], new_boxes[:, 0], sizes, strict=True):
        rectangle = extent(image[:h, :w])
        # If the rectangle touches the border, the repeated edge extends it outside of its box.
        inside = (old[:2] > 0).all() and old[2] < w and old[3] < h
        if inside:
            compared += 1
            np.testing.assert_allclose(box, rectangle, atol=1.0)
        assert (box >= 0).all()
        assert box[2] <= w
        assert box[3] <= h
        moved += not np.array_equal(box, old)
    assert moved > N / 4
    assert compared > N / 2
    assert (new_labels[:, 0] == 1).all()
    assert (new_labels[:, 1:] == -1).all()
    assert not new_boxes[:, 1:].any()


def test_padding_is_unchanged(rectangles):
    images, boxes, labels, sizes, draws = rectangles
    new_images = augment(images, boxes, labels, sizes, draws, ALL)[0].numpy()
    for image, (h, w) in zip(new_images, sizes, strict=True):
        assert (image[h:] == np.float32(0.3)).all()
        assert (image[:, w:] == np.float32(0.3)).all()


def test_identity_changes_no_bit(rectangles):
    changed = augment(*rectangles, IDENTITY)
    for new, old in zip(changed, rectangles, strict=False):
        np.testing.assert_array_equal(new, old)


def test_all_options_with_draws_of_a_half_are_the_identity(rectangles):
    *data, draws = rectangles
    changed = augment(*data, np.full_like(draws, 0.5), ALL)
    for new, old in zip(changed, data, strict=False):
        np.testing.assert_allclose(new, old, atol=2e-6)


def test_flipping_twice_is_the_identity(rectangles):
    images, boxes, labels, sizes, draws = rectangles
    flipped = augment(images, boxes, labels, sizes, draws, augmentation.FLIP)
    mirrored = draws[:, 1] < 0.5
    assert (np.any(flipped[0] != images, axis=(1, 2, 3)) <= mirrored).all()
    back = augment(*flipped, sizes, draws, augmentation.FLIP)
    for new, old in zip(back, (images, boxes, labels), strict=True):
        np.testing.assert_array_equal(new, old)


def shifted_right(boxes, labels, by):
    """Returns boxes and labels of one 40x40 image after a shift by `by` pixels to the right."""
    draws = np.full((1, DRAWS), 0.5, np.float32)
    draws[0, 4] = 0.5 + by / 40 / 2  # shift 1: 2 * draw - 1 is a fraction of the side
    options = Augmentation(flip=False, shift=1.0, scale=0.0, intensity=0.0)
    image = np.zeros((1, 40, 40, 1), np.float32)
    result = augment(image, np.float32([boxes]), np.int32([labels]), np.int32([[40, 40]]), draws, options)
    return result[1][0].numpy(), result[2][0].numpy().tolist()


def test_boxes_are_clipped_and_dropped_if_too_little_remains():
    given = [[26, 0, 40, 9], [25, 0, 40, 9], [4, 4, 8, 8]], [0, 1, 0]
    # After 10 pixels 4 of 14 columns remain (29 %), 5 of 15 (33 %), all.
    boxes, labels = shifted_right(*given, 10)
    np.testing.assert_allclose(boxes, [[36, 0, 40, 9], [35, 0, 40, 9], [14, 4, 18, 8]], atol=1e-4)
    assert labels == [0, 1, 0]
    # After 12, 2 of 14 (14 %) and 3 of 15 (20 %): both are dropped, and the remaining box comes first.
    boxes, labels = shifted_right(*given, 12)
    np.testing.assert_allclose(boxes, [[16, 4, 20, 8], [0, 0, 0, 0], [0, 0, 0, 0]], atol=1e-4)
    assert labels == [0, -1, -1]


def test_a_box_clipped_to_a_sliver_is_dropped():
    boxes, labels = shifted_right([[28.5, 0, 30.5, 9], [4, 4, 8, 8]], [0, 1], 11)  # 0.5 of 2 columns remain
    np.testing.assert_allclose(boxes[0], [15, 4, 19, 8], atol=1e-4)
    assert labels == [1, -1]


def test_a_thin_box_that_is_not_clipped_is_kept():
    boxes, labels = shifted_right([[12.3, 0, 12.8, 40], [4, 4, 8, 8]], [0, 1], 5)
    np.testing.assert_allclose(boxes[0], [17.3, 0, 17.8, 40], atol=1e-4)
    assert labels == [0, 1]


def test_no_image_loses_its_last_box(rectangles):
    images, boxes, labels, sizes, draws = rectangles
    options = Augmentation(shift=1.0, scale=0.3, intensity=0.0)
    _, new_boxes, new_labels = augment(images, boxes, labels, sizes, draws, options)
    assert (new_labels[:, 0].numpy() == 1).all()
    sides = (new_boxes[:, 0, 2:] - new_boxes[:, 0, :2]).numpy()
    assert (sides >= 1).all()
    kept_in_place = np.isclose(sides, boxes[:, 0, 2:] - boxes[:, 0, :2]).all(axis=1).mean()
    assert 0.2 < kept_in_place < 0.9  # both cases happen


def test_an_image_that_would_lose_all_boxes_is_not_moved():
    boxes, labels = shifted_right([[30, 0, 40, 9], [20, 0, 31, 9]], [0, 1], 30)
    np.testing.assert_allclose(boxes, [[30, 0, 40, 9], [20, 0, 31, 9]])
    assert labels == [0, 1]


def test_intensity_by_hand():
    image = np.float32([[[[0.0], [0.4]], [[0.9], [0.9]]]])  # 2x2, valid: the first row, mean 0.2
    draws = np.full((1, DRAWS), 0.5, np.float32)
    draws[0, 5], draws[0, 6] = 1.0, 0.75  # brightness +0.2, contrast 1 + 0.1
    options = Augmentation(flip=False, shift=0.0, scale=0.0, intensity=0.2)
    none = np.zeros((1, 1, 4), np.float32), np.full((1, 1), -1, np.int32)
    changed = augment(image, *none, np.int32([[1, 2]]), draws, options)[0].numpy()[0, ..., 0]
    # 0.2 + 1.1 * (v - 0.2) + 0.2
    np.testing.assert_allclose(changed, [[0.18, 0.62], [0.9, 0.9]], atol=1e-6)


def test_intensity_stays_in_range(rectangles):
    *data, draws = rectangles
    changed = augment(*data, draws, Augmentation(intensity=1.0))[0]
    assert float(tf.reduce_max(tf.abs(changed))) <= 1.0


def test_half_of_the_images_are_not_zoomed_and_keep_their_pixel_values():
    """Whole-pixel shifts without zoom copy values; a zoom interpolates new ones, which smooths the grain."""
    images = tf.random.stateless_uniform([64, 40, 40, 1], [1, 2], -1, 1)
    boxes, labels = tf.zeros([64, 1, 4]), -tf.ones([64, 1], tf.int32)
    sizes = tf.fill([64, 2], 40)
    draws = tf.random.stateless_uniform([64, DRAWS], [3, 4])
    options = Augmentation(flip=True, shift=0.1, scale=0.2, intensity=0.0)
    changed, _, _ = augment(images, boxes, labels, sizes, draws, options)
    copied = [np.isin(a, b).all() for a, b in zip(changed.numpy(), images.numpy(), strict=True)]
    zoomed = np.abs(2 * draws[:, 2].numpy() - 1) > 0.5
    np.testing.assert_array_equal(copied, ~zoomed)
    assert 0.3 < np.mean(copied) < 0.7
