import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import boxes


def some(count=50, seed=0):
    corner = np.random.default_rng(seed).uniform(0, 50, (count, 2))
    size = np.random.default_rng(seed + 1).uniform(0.1, 40, (count, 2))
    return tf.constant(np.concatenate([corner, corner + size], 1), tf.float32)


@pytest.mark.parametrize(
    "there, back, first, expected",
    [
        (boxes.to_xywh, boxes.from_xywh, [2.0, 3.0, 7.0, 5.0], [2.0, 3.0, 5.0, 2.0]),
        (boxes.to_center, boxes.from_center, [2.0, 3.0, 7.0, 5.0], [4.5, 4.0, 5.0, 2.0]),
    ],
)
def test_box_conversions_are_inverse_pairs(there, back, first, expected):
    np.testing.assert_array_equal(there(first), expected)
    np.testing.assert_allclose(back(there(some())), some(), rtol=1e-5)


def test_relative_coordinates_are_those_of_tensorflow():
    relative = boxes.to_relative_yxyx([[10.0, 20.0, 30.0, 60.0]], 80, 40)
    np.testing.assert_allclose(relative, [[0.25, 0.25, 0.75, 0.75]])
    image = tf.reshape(tf.range(80 * 40, dtype=tf.float32), [1, 80, 40, 1])
    drawn = tf.image.draw_bounding_boxes(tf.zeros_like(image), relative[None], [[1.0]])[0, :, :, 0].numpy()
    rows, columns = np.nonzero(drawn)
    assert abs(columns.min() - 10) <= 1
    assert abs(rows.max() - 60) <= 1


def test_iou_and_iobb_by_hand():
    a = tf.constant([[0.0, 0.0, 4.0, 2.0], [10.0, 10.0, 11.0, 11.0], [0.0, 0.0, 0.0, 0.0]])
    b = tf.constant([[2.0, 0.0, 6.0, 4.0]])
    np.testing.assert_array_equal(boxes.area(a), [8, 1, 0])
    np.testing.assert_array_equal(boxes.intersection(a, b), [[4], [0], [0]])
    np.testing.assert_allclose(boxes.iou(a, b), [[4 / (8 + 16 - 4)], [0], [0]])
    np.testing.assert_allclose(boxes.iobb(a, b), [[4 / 8], [0], [0]])  # divided by the first box's area
    np.testing.assert_allclose(boxes.iobb(b, a), [[4 / 16, 0, 0]])
    np.testing.assert_array_equal(boxes.iou(tf.zeros([1, 4]), tf.zeros([1, 4])), [[0]])  # not NaN


def test_iou_is_pairwise_in_batches_and_symmetric():
    a, b = some(12, 1), some(18, 5)
    batched = boxes.iou(tf.reshape(a, [3, 4, 4]), tf.reshape(b, [3, 6, 4]))
    assert batched.shape == (3, 4, 6)
    np.testing.assert_allclose(batched[1], boxes.iou(a[4:8], b[6:12]))
    np.testing.assert_allclose(boxes.iou(a, b), tf.transpose(boxes.iou(b, a)))
    np.testing.assert_allclose(tf.linalg.diag_part(boxes.iou(a, a)), np.ones(12), rtol=1e-5)
    assert boxes.iou(a, tf.zeros([0, 4])).shape == (12, 0)


def test_area_of_an_inverted_box_is_zero():
    np.testing.assert_array_equal(boxes.area(tf.constant([[5.0, 5.0, 1.0, 1.0]])), [0])


def test_shift_clip_dilate_by_hand():
    box = tf.constant([[2.0, 3.0, 7.0, 5.0]])
    np.testing.assert_array_equal(boxes.shift(box, 1, -2), [[3, 1, 8, 3]])
    np.testing.assert_array_equal(boxes.shift(box, [4], [0]), [[6, 3, 11, 5]])
    np.testing.assert_array_equal(boxes.dilate(box, 2.5), [[-0.5, 0.5, 9.5, 7.5]])
    np.testing.assert_array_equal(boxes.clip(boxes.dilate(box, 2.5), 6, 8), [[0, 0.5, 8, 6]])


def test_mask_is_1_where_the_pixel_centre_is_inside():
    expected = np.zeros([4, 5])
    expected[1:3, 2:4] = 1
    np.testing.assert_array_equal(boxes.mask(tf.constant([2.0, 1.0, 4.0, 3.0]), 4, 5), expected)
    # Boxes that are up to half a pixel larger or smaller contain the same centres.
    np.testing.assert_array_equal(boxes.mask(tf.constant([2.4, 0.6, 3.6, 3.4]), 4, 5), expected)
    assert boxes.mask(some(6), 4, 5).shape == (6, 4, 5)
    np.testing.assert_array_equal(boxes.mask(tf.zeros([4]), 4, 5), np.zeros([4, 5]))


def test_mask_of_a_whole_pixel_box_sums_to_its_area():
    whole = tf.round(some())
    np.testing.assert_array_equal(tf.reduce_sum(boxes.mask(whole, 100, 100), [1, 2]), boxes.area(whole))


def test_feathered_mask_decreases_linearly_with_the_distance_from_the_box():
    mask = boxes.feathered_mask(tf.constant([2.0, 2.0, 4.0, 4.0]), 8, 8, feather=2.0).numpy()
    np.testing.assert_allclose(mask[3], [0.25, 0.75, 1, 1, 0.75, 0.25, 0, 0])
    # The distance of the corner's diagonal neighbour is sqrt(0.5), that of the next pixel sqrt(4.5) > 2.
    np.testing.assert_allclose([mask[1, 1], mask[0, 0]], [1 - np.sqrt(0.5) / 2, 0], atol=1e-6)
    hard = boxes.feathered_mask(tf.constant([2.0, 2.0, 4.0, 4.0]), 8, 8, feather=1e-3)
    np.testing.assert_array_equal(hard, boxes.mask(tf.constant([2.0, 2.0, 4.0, 4.0]), 8, 8))


def test_affine_maps_boxes_and_keeps_corners_in_order():
    box = tf.constant([[2.0, 3.0, 7.0, 5.0]])
    # Mirrored left to right in an image of width 10: x -> 10 - x; half the height.
    scale, offset = tf.constant([[0.5, -1.0]]), tf.constant([[0.0, 10.0]])
    np.testing.assert_array_equal(boxes.affine(box, scale, offset), [[3, 1.5, 8, 2.5]])
    undone = boxes.affine(boxes.affine(some(), scale, offset), 1 / scale, -offset / scale)
    np.testing.assert_allclose(undone, some(), atol=1e-4)


def test_box_of_sizes_has_their_height_and_width():
    whole = boxes.of_sizes(tf.constant([[3, 5], [4, 2]]))
    np.testing.assert_array_equal(boxes.to_xywh(whole), [[0, 0, 5, 3], [0, 0, 2, 4]])
    np.testing.assert_array_equal(tf.reduce_sum(boxes.mask(whole, 6, 6), [1, 2]), [15, 8])
