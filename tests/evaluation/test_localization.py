"""Localization accuracy, checked by hand arithmetic."""

import numpy as np
import pytest
from scipy import stats

from tf_detectorgan.evaluation.localization import best_overlaps, localization, pool
from tf_detectorgan.evaluation.records import Found, Truth


def one(image_id, truth_boxes, boxes, scores, truth_labels=None, labels=None):
    truth_boxes, boxes = np.array(truth_boxes, float), np.array(boxes, float).reshape(-1, 4)
    truth_labels = np.zeros(len(truth_boxes), int) if truth_labels is None else np.array(truth_labels)
    labels = np.zeros(len(boxes), int) if labels is None else np.array(labels)
    return (
        Truth(image_id, (f"g{image_id}",), truth_boxes, truth_labels, (100, 100)),
        Found(image_id, boxes, np.array(scores, float), labels),
    )


def test_iou_divides_by_union_and_iobb_by_detected_area():
    """Truth 20x20 = 400, detected 10x20 = 200, shared 5x20 = 100: IoU 100/500, IoBB 100/200 (not 100/400)."""
    truth, found = one(1, [[0, 0, 20, 20]], [[15, 0, 25, 20]], [0.9])
    assert best_overlaps(truth, found, 0) == (pytest.approx(0.2), pytest.approx(0.5))
    result = localization([truth], [found], ["a"])[0]
    assert [result["iou"][t]["k"] for t in ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7")] == [1, 1] + [
        0
    ] * 5
    assert [result["iobb"][t]["k"] for t in ("0.1", "0.25", "0.5", "0.75", "0.9")] == [1, 1, 1, 0, 0]


def test_a_tiny_box_inside_a_large_truth_has_iobb_1():
    truth, found = one(1, [[0, 0, 40, 40]], [[5, 5, 9, 9]], [0.9])
    assert best_overlaps(truth, found, 0) == (pytest.approx(16 / 1600), pytest.approx(1.0))


def test_only_the_top_scoring_detection_counts():
    hit, miss = [0, 0, 10, 10], [50, 50, 60, 60]
    good = one(1, [hit], [miss, hit], [0.4, 0.6])
    bad = one(2, [hit], [miss, hit], [0.6, 0.4])
    none = one(3, [hit], [], [])
    clean = one(4, np.zeros((0, 4)), [miss], [0.9])
    truth, found = zip(good, bad, none, clean, strict=True)
    share = localization(truth, found, ["a"])[0]["iou"]["0.1"]
    assert (share["k"], share["n"]) == (1, 3)  # the clean image is not a trial
    assert share["value"] == pytest.approx(1 / 3)


def test_detection_may_match_any_object_of_its_class():
    truth, found = one(1, [[0, 0, 10, 10], [20, 20, 30, 30]], [[20, 20, 30, 30]], [0.9], truth_labels=[0, 0])
    assert best_overlaps(truth, found, 0) == (1.0, 1.0)
    truth, found = one(
        2,
        [[0, 0, 10, 10], [20, 20, 30, 30]],
        [[20, 20, 30, 30], [20, 20, 30, 30]],
        [0.9, 0.8],
        truth_labels=[0, 1],
        labels=[0, 1],
    )
    per_class = localization([truth], [found], ["a", "b"])
    assert [c["iou"]["0.7"]["k"] for c in per_class] == [0, 1]
    pooled = pool(per_class)["iou"]["0.7"]
    assert (pooled["k"], pooled["n"]) == (1, 2)  # two trials: this image for each class


def test_interval_ends_have_binomial_tails_of_2_5_percent():
    """At the ends of the Clopper-Pearson interval the one-sided tail of the binomial is exactly 2.5 %."""
    pairs = [one(i, [[0, 0, 10, 10]], [[0, 0, 10, 10]] if i < 4 else [], [1.0] * (i < 4)) for i in range(13)]
    truth, found = zip(*pairs, strict=True)
    share = localization(truth, found, ["a"])[0]["iou"]["0.5"]
    assert (share["k"], share["n"]) == (4, 13)
    assert stats.binom.sf(3, 13, share["low"]) == pytest.approx(0.025)
    assert stats.binom.cdf(4, 13, share["high"]) == pytest.approx(0.025)
