"""Anchors: layout, matching and coverage by hand; decode inverts encode; comparison with KerasCV."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tf_detectorgan.losses import BACKGROUND, IGNORED
from tf_detectorgan.models.detectors import anchors as lib

LN2 = float(np.log(2))


def boxes_of(*rows):
    return tf.constant(rows, tf.float32)


def test_layout_by_hand():
    """8 x 16 pixels, strides 4 and 8: 2 x 4 and 1 x 2 cells, two scales times two ratios (width/height)."""
    anchors = lib.make_anchors(8, 16, lib.Layout((4, 8), (2.0, 8.0), (1.0, 4.0), (1.0, 2.0))).numpy()
    assert anchors.shape == ((8 + 2) * 4, 4)
    # The first cell's centre is (2, 2): 2x2; width 4, height 1; then all that twice as large.
    np.testing.assert_allclose(
        anchors[:4], [[1, 1, 3, 3], [0, 1.5, 4, 2.5], [0, 0, 4, 4], [-2, 1, 6, 3]], atol=1e-6
    )
    centres = (anchors[::4, :2] + anchors[::4, 2:]) / 2
    along, down = [2, 6, 10, 14] * 2 + [4, 12], [2] * 4 + [6] * 4 + [4] * 2
    np.testing.assert_allclose(centres, np.stack([along, down], 1), atol=1e-5)
    np.testing.assert_allclose(anchors[32], [0, 0, 8, 8], atol=1e-6)


coordinate = st.floats(-50, 50, width=32)
side = st.floats(1, 60, width=32)  # `decode` allows at most 62.5 times the anchor


@given(*[st.tuples(coordinate, coordinate, side, side)] * 2)
def test_decode_inverts_encode(anchor, box):
    anchor, box = (boxes_of([x, y, x + w, y + h]) for x, y, w, h in (anchor, box))
    np.testing.assert_allclose(lib.decode(anchor, lib.encode(anchor, box)), box, rtol=1e-4, atol=1e-3)


@given(st.tuples(coordinate, coordinate, side, side), st.tuples(*[st.floats(-4, 4, width=32)] * 4))
def test_encode_inverts_decode(anchor, offsets):
    x, y, w, h = anchor
    anchor, offsets = boxes_of([x, y, x + w, y + h]), boxes_of(offsets)
    # A centre at 50 px has precision 4e-6, which is 4e-5 in units of a tenth of a 1 px anchor.
    np.testing.assert_allclose(lib.encode(anchor, lib.decode(anchor, offsets)), offsets, rtol=1e-3, atol=1e-3)


def test_encode_by_hand():
    """From 10 x 20 at (5, 10) to 20 x 20 at (7, 14): 4/20, 2/10, 0 and ln 2, each over its variance."""
    offsets = lib.encode(boxes_of([0, 0, 10, 20]), boxes_of([-3, 4, 17, 24]))
    np.testing.assert_allclose(offsets, [[2, 2, 0, LN2 / 0.2]], rtol=1e-6)


def test_decode_of_large_offsets_is_finite():
    """An anchor of 16 px becomes at most 1000 px."""
    decoded = lib.decode(boxes_of([0, 0, 16, 16]), boxes_of([0, 0, 1e4, 1e4]))
    np.testing.assert_allclose(decoded, [[-492, -492, 508, 508]], rtol=1e-5)


def match_one(anchors, boxes, labels):
    return lib.match(anchors, boxes[None], tf.constant([labels], tf.int32))


def test_match_by_hand():
    """IoU 1; 60/(100 + 200 - 60) = 1/4, but the highest of its box; 100/220 = 0.45: ignored."""
    anchors = boxes_of([0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 10, 22])
    boxes = boxes_of([0, 0, 10, 10], [24, 20, 44, 30], [0, 0, 0, 0])
    targets = match_one(anchors, boxes, [1, 0, -1])
    np.testing.assert_array_equal(targets.classes, [[1, 0, IGNORED]])
    # (34 - 25) / 10 to the right, twice as wide.
    np.testing.assert_allclose(
        targets.offsets, [[[0, 0, 0, 0], [0, 9, 0, LN2 / 0.2], [0, 0, 0, 0]]], rtol=1e-5
    )


@pytest.mark.parametrize(
    "width,expected", [(9.9, 0), (10.1, IGNORED), (12.4, IGNORED), (12.6, BACKGROUND), (100.0, BACKGROUND)]
)
def test_default_iou_thresholds(width, expected):
    """A 5 px box inside an anchor of `width` px has IoU 5 / width; another anchor is its best one."""
    anchors = boxes_of([0, 0, width, 1], [0, 0, 5, 1])
    np.testing.assert_array_equal(match_one(anchors, boxes_of([0, 0, 5, 1]), [0]).classes, [[expected, 0]])


@pytest.mark.parametrize("width,expected", [(16.6, 0), (16.8, IGNORED), (24.9, IGNORED), (25.1, BACKGROUND)])
def test_custom_iou_thresholds(width, expected):
    """Positive at IoU 0.3 and above, background below 0.2: 5 / 16.67 and 5 / 25."""
    anchors, box = boxes_of([0, 0, width, 1], [0, 0, 5, 1]), boxes_of([0, 0, 5, 1])
    targets = lib.match(anchors, box[None], tf.constant([[0]]), match_iou=(0.3, 0.2))
    np.testing.assert_array_equal(targets.classes, [[expected, 0]])


def test_padding_matches_no_anchor():
    """This holds also for an empty anchor, whose IoU with a padded box is 0 / 0."""
    anchors = boxes_of([0, 0, 0, 0], [0, 0, 10, 10])
    targets = match_one(anchors, tf.zeros([3, 4]), [-1, -1, -1])
    np.testing.assert_array_equal(targets.classes, [[BACKGROUND, BACKGROUND]])
    np.testing.assert_array_equal(targets.offsets, np.zeros([1, 2, 4]))


def test_box_without_overlapping_anchor_matches_none():
    targets = match_one(boxes_of([0, 0, 10, 10]), boxes_of([50, 50, 60, 60]), [0])
    np.testing.assert_array_equal(targets.classes, [[BACKGROUND]])


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_best_anchor_of_two_boxes_takes_the_higher_iou(order):
    """In either order of the boxes, the small one does not take the only anchor of the large one."""
    boxes, labels = boxes_of([0, 0, 10, 10], [8, 8, 11, 11]), np.array([0, 1])
    targets = match_one(boxes_of([0, 0, 10, 10]), tf.gather(boxes, order), labels[order])
    np.testing.assert_array_equal(targets.classes, [[0]])
    np.testing.assert_allclose(targets.offsets, np.zeros([1, 1, 4]), atol=1e-6)


def test_targets_have_no_gradient():
    anchors, boxes = boxes_of([0, 0, 10, 10]), boxes_of([1, 0, 11, 10])
    with tf.GradientTape() as tape:
        tape.watch([anchors, boxes])
        offsets = match_one(anchors, boxes, [0]).offsets
    assert np.abs(offsets).max() > 0
    assert tape.gradient(offsets, [anchors, boxes]) == [None, None]


def test_match_equals_keras_cv_without_forced_matches():
    """Two distant boxes, each a jittered anchor, so that the IoU of its best anchor exceeds the threshold."""
    height, width, layout = 64, 96, lib.Layout((4, 8), (10.0, 20.0), scales=(1.0, 1.26))
    encoder = keras_cv.models.retinanet.LabelEncoder("xyxy", layout.generator())
    anchors = lib.make_anchors(height, width, layout)
    rng = np.random.default_rng(0)
    centre = (anchors[:, 0] + anchors[:, 2]).numpy() / 2
    left, right = (np.flatnonzero(side) for side in (centre < 30, centre > 66))
    chosen = np.stack([rng.choice(left, 8), rng.choice(right, 8)], 1)
    boxes = anchors.numpy()[chosen] + rng.uniform(-1, 1, (8, 2, 4)).astype(np.float32)
    labels = rng.integers(0, 3, (8, 2))
    ours = lib.match(anchors, tf.constant(boxes), tf.constant(labels, tf.int32))
    their_offsets, their_classes = encoder(
        np.zeros((8, height, width, 1), np.float32), {"boxes": boxes, "classes": labels.astype(np.float32)}
    )
    np.testing.assert_array_equal(ours.classes, their_classes)
    positive = ours.classes.numpy() >= 0
    assert positive.sum() > 50
    assert (ours.classes.numpy() == IGNORED).sum() > 20
    np.testing.assert_allclose(
        ours.offsets.numpy()[positive], their_offsets.numpy()[positive], rtol=1e-4, atol=1e-4
    )


def test_coverage_by_hand():
    anchors = boxes_of([0, 0, 10, 10], [20, 20, 30, 30])
    boxes = boxes_of([0, 0, 10, 5], [20, 20, 40, 30], [100, 100, 110, 110])
    np.testing.assert_allclose(lib.coverage(anchors, boxes), [0.5, 0.5, 0])
    assert lib.coverage(anchors, tf.zeros([0, 4])).shape == (0,)
