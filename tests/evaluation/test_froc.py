import numpy as np
import pytest

from tf_detectorgan.evaluation.average_precision import match
from tf_detectorgan.evaluation.froc import froc
from tf_detectorgan.evaluation.records import Found, Truth

HIT = [0, 0, 10, 10]


def image(image_id, objects, detections):
    """`detections`: (box number, score); box 0 is the object's, other boxes overlap with no other box."""
    boxes = np.array([[30 * n, 0, 30 * n + 10, 10] for n, _ in detections], float).reshape(-1, 4)
    truth = np.array([HIT] * objects, float).reshape(-1, 4)
    return (
        Truth(image_id, (), truth, np.zeros(objects, int), (400, 400)),
        Found(image_id, boxes, np.array([s for _, s in detections]), np.zeros(len(detections), int)),
    )


def test_froc_by_hand_with_a_clean_image():
    """4 images, 3 objects; scores: false .95 (clean), true .9, false .8, true .7, a second on one object .6.

    False positives per image: 1/4, 1/4, 2/4, 2/4, 3/4; sensitivity 0, 1/3, 1/3, 2/3, 2/3.
    """
    pairs = [
        image(1, 1, [(0, 0.9), (0, 0.6)]),
        image(2, 1, [(1, 0.8), (0, 0.7)]),
        image(3, 1, []),
        image(4, 0, [(1, 0.95)]),
    ]
    truth, found = zip(*pairs, strict=True)
    result = froc(match(truth, found, ["a"]), iou=0.1)
    assert result["sensitivity"] == {
        "0.125": 0.0,
        "0.25": pytest.approx(1 / 3),
        "0.5": pytest.approx(2 / 3),
        "1": pytest.approx(2 / 3),
        "2": pytest.approx(2 / 3),
        "4": pytest.approx(2 / 3),
        "8": pytest.approx(2 / 3),
    }
    assert result["mean"] == pytest.approx((0 + 1 / 3 + 5 * 2 / 3) / 7)
    assert result["curve"]["fp_per_image"] == [0.25, 0.5, 0.75]
    assert result["curve"]["sensitivity"] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert result["curve"]["score"] == [0.9, 0.7, 0.6]


def test_equal_scores_are_accepted_together():
    """A true and a false positive have equal scores, so the sensitivity is reached at 1 false positive."""
    truth, found = image(1, 1, [(0, 0.5), (1, 0.5)])
    result = froc(match([truth], [found], ["a"]))
    assert result["sensitivity"]["0.5"] == 0.0
    assert result["sensitivity"]["1"] == 1.0


def test_without_detections_and_without_truth():
    truth, found = image(1, 1, [])
    assert set(froc(match([truth], [found], ["a"]))["sensitivity"].values()) == {0.0}
    truth, found = image(1, 0, [(1, 0.5)])
    assert set(froc(match([truth], [found], ["a"]))["sensitivity"].values()) == {None}
