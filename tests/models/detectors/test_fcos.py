"""FCOS: layout and matching of points by hand, order of outputs, loss and decoding by arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Labelled
from tf_detectorgan.losses import BACKGROUND
from tf_detectorgan.models.detectors import fcos
from tf_detectorgan.models.detectors import points as lib

SHAPE = (32, 48, 1)


def boxes_of(*rows):
    return tf.constant(rows, tf.float32)


def test_layout_by_hand():
    """8 x 16 pixels, strides 4 and 8: the centres of 2 x 4 and 1 x 2 cells, row by row."""
    points = lib.make_points(8, 16, (4, 8), (10.0,))
    expected = [[x, y] for y in (2, 6) for x in (2, 6, 10, 14)] + [[4, 4], [12, 4]]
    np.testing.assert_array_equal(points.centers, expected)
    np.testing.assert_array_equal(points.strides, [4] * 8 + [8] * 2)
    np.testing.assert_array_equal(points.reach, [[0, 10]] * 8 + [[10, np.inf]] * 2)


def test_match_by_hand():
    """A 6 x 4 box on the fine level; one of 14 px, with points 10 and 12 px from its sides, on the coarse."""
    points = lib.make_points(8, 16, (4, 8), (7.5,))
    boxes = boxes_of([[0, 0, 6, 4], [2, -6, 16, 8], [0, 0, 0, 0]])
    targets = lib.match(points, boxes, tf.constant([[1, 0, -1]]), radius=1.5)
    none = [BACKGROUND] * 4
    # (6, 2), (10, 2) and those below are 8 px or more from some side of the large box: beyond 7.5.
    np.testing.assert_array_equal(targets.classes[0, :4], [1, BACKGROUND, BACKGROUND, BACKGROUND])
    np.testing.assert_array_equal(targets.classes[0, 4:8], none)
    np.testing.assert_array_equal(targets.classes[0, 8:], [0, 0])
    np.testing.assert_allclose(targets.distances[0, 0], [0.5, 0.5, 1, 0.5])
    np.testing.assert_allclose(targets.distances[0, 8], [2 / 8, 10 / 8, 12 / 8, 4 / 8])
    np.testing.assert_array_equal(targets.distances[0, 1], np.ones(4))
    np.testing.assert_allclose(targets.centerness.numpy()[0, [0, 8]], np.sqrt([2 / 4 * 1, 2 / 12 * 4 / 10]))
    assert np.count_nonzero(targets.centerness) == 3


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_point_in_two_boxes_is_assigned_to_the_smaller(order):
    points = lib.make_points(4, 4, (4,), ())
    boxes, labels = boxes_of([-5, -5, 9, 9], [0, 0, 4, 4]), np.array([0, 1])
    targets = lib.match(points, tf.gather(boxes, order)[None], labels[order][None], radius=1.5)
    np.testing.assert_array_equal(targets.classes, [[1]])
    np.testing.assert_array_equal(targets.distances, [[[0.5] * 4]])


def test_only_points_near_the_box_centre_are_positive():
    """Of 11 points in a box of 44 px, those within 1.5 strides of 22 (16 to 28): 18, 22, 26."""
    points = lib.make_points(4, 44, (4,), ())
    targets = lib.match(points, boxes_of([[0, 0, 44, 4]]), tf.constant([[0]]), radius=1.5)
    np.testing.assert_array_equal(points.centers.numpy()[targets.classes[0] >= 0, 0], [18, 22, 26])


def test_decode_inverts_match():
    points = lib.make_points(32, 32, (4, 8, 16), (16.0, 32.0))
    boxes = boxes_of([[3, 5, 9, 17], [8, 2, 31, 30]])
    targets = lib.match(points, boxes, tf.constant([[0, 1]]), radius=1.5)
    decoded, classes = lib.decode(points, targets.distances).numpy(), targets.classes.numpy()
    for label in (0, 1):
        assert np.any(classes == label)
        np.testing.assert_allclose(
            decoded[classes == label], np.tile(boxes[0, label], [np.sum(classes == label), 1]), atol=1e-5
        )


def test_giou_by_hand():
    """2 x 2 and 4 x 1, moved to the right; equal boxes have loss 0; background is ignored."""
    predicted = tf.constant([[[1.0, 1, 1, 1], [1, 2, 3, 4], [9, 9, 9, 9]]])
    target = tf.constant([[[1.0, 0.5, 3, 0.5], [1, 2, 3, 4], [1, 1, 1, 1]]])
    # Intersection 2 x 1, union 4 + 4 - 2, enclosing box 4 x 2.
    expected = 1 - 2 / 6 + (8 - 6) / 8
    np.testing.assert_allclose(losses.giou(predicted, target, tf.constant([[0, 1, BACKGROUND]])), [expected])


def test_centerness_by_hand():
    """At logit 0 the loss is ln 2 for every target; background has loss 0."""
    found = losses.centerness(
        tf.constant([[0.0, 0.0, 5.0]]), tf.constant([[0.3, 1.0, 0.0]]), tf.constant([[0, 2, BACKGROUND]])
    )
    np.testing.assert_allclose(found, [2 * np.log(2)], rtol=1e-6)


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return fcos.small(SHAPE, 2, width=16)


def test_outputs_are_in_the_order_of_the_points():
    """Pixels are their coordinates (x, y), features the means over cells, heads the identity."""
    height, width, _ = SHAPE
    image = keras.Input((height, width, 2))
    levels = {f"P{s}": keras.layers.AveragePooling2D(s, name=f"P{s}")(image) for s in (4, 8, 16)}
    backbone = keras.Model(image, list(levels.values()))
    backbone.pyramid_level_inputs = {level: level for level in levels}
    features = {level: keras.Input(tensor.shape[1:]) for level, tensor in levels.items()}
    pyramid = keras.Model(features, [keras.layers.Activation("linear")(f) for f in features.values()])
    DET = fcos.FCOS(
        (height, width, 2),
        1,
        backbone=backbone,
        pyramid=pyramid,
        head_filters=2,
        head_layers=0,
        strides=(4, 8, 16),
    )
    heads = [layer for layer in DET.network.layers if isinstance(layer, keras.Model)][-2:]
    assert {head.output.shape[-1] for head in heads} == {1, 5}  # logits; distances and centre-ness
    for head in heads:
        channels = head.output.shape[-1]
        kernel = np.zeros((3, 3, 2, channels))
        kernel[1, 1, :, :2] = np.eye(2, channels)[:, :2]
        head.set_weights([kernel, np.arange(channels) // 2])
    y, x = np.mgrid[:height, :width] + 0.5
    out = DET.call(DET.weights, tf.constant(np.stack([x, y], -1)[None], tf.float32))
    np.testing.assert_allclose(out["classification"][0, :, 0], DET.points.centers[:, 0], atol=1e-4)
    np.testing.assert_allclose(out["distance"][0, :, :2], DET.points.centers, atol=1e-4)
    np.testing.assert_allclose(out["distance"][0, :, 2:], np.ones([126, 2]))
    np.testing.assert_allclose(out["centerness"][0], np.full(126, 2.0))


def test_loss_by_arithmetic(small):
    """All weights are 0, so logits are 0 and distances one stride; the loss follows from the targets."""
    W = [tf.zeros_like(w) for w in small.weights]
    labelled = Labelled(
        tf.zeros([1, *SHAPE]), boxes_of([[8, 8, 16, 16], [20, 4, 26, 10]]), tf.constant([[1, 0]])
    )
    targets = small.targets(labelled)
    count = float(small.positives(targets))
    assert count == np.sum(targets.classes.numpy() >= 0) >= 5
    places = len(small.points.centers)
    focal = np.log(2) / 4 * (count * (0.25 + 0.75) + (places - count) * 2 * 0.75)
    ones = tf.ones_like(targets.distances)
    box = losses.giou(ones, targets.distances, targets.classes).numpy().sum()
    assert box > 0
    expected = (focal + box + count * np.log(2)) / count
    np.testing.assert_allclose(small.loss(W, labelled.images, targets, count), expected, rtol=1e-5)


def test_every_weight_takes_part(small):
    labelled = Labelled(tf.random.normal([1, *SHAPE]), boxes_of([[8, 8, 16, 16]]), tf.constant([[1]]))
    W = [tf.convert_to_tensor(w) for w in small.weights]
    with tf.GradientTape() as tape:
        tape.watch(W)
        loss = small.loss(W, labelled.images, small.targets(labelled), 1.0)
    assert all(g is not None and np.abs(g).max() > 0 for g in tape.gradient(loss, W))


def test_detect_by_hand(small, monkeypatch):
    """Point (22, 14) has logit 2 of class 1, centre-ness logit 1, distances (1, 2, 3, 1) strides of 4."""
    places = len(small.points.centers)
    raw = {
        "classification": np.full((1, places, 2), -20.0, np.float32),
        "distance": np.zeros((1, places, 4), np.float32),
        "centerness": np.full((1, places), 1.0, np.float32),
    }
    chosen = 3 * 12 + 5
    raw["classification"][0, chosen, 1] = 2.0
    raw["distance"][0, chosen] = np.log([1, 2, 3, 1])
    monkeypatch.setattr(small, "call", lambda W, images: {k: tf.constant(v) for k, v in raw.items()})
    found = small.detect(tf.zeros([1, *SHAPE]))
    np.testing.assert_array_equal(found.labels[0, :2], [1, -1])
    np.testing.assert_allclose(found.boxes[0, 0], [18, 6, 34, 18], atol=1e-3)
    np.testing.assert_allclose(found.scores[0, 0], tf.sigmoid(2.0) * tf.sigmoid(1.0), rtol=1e-5)


def test_coverage_by_hand(small):
    """A box of 1 px between four points is not covered; a box of 8 px is."""
    covered, rule = small.coverage(boxes_of([3.5, 3.5, 4.5, 4.5], [8, 8, 16, 16]))
    np.testing.assert_array_equal(covered, [False, True])
    assert "points" in rule
    assert small.coverage(tf.zeros([0, 4])).covered.shape == (0,)
