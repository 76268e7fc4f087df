"""Compares AP with pycocotools, with sets of duplicated images, and with hand arithmetic."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import (
    THRESHOLDS,
    average_precision,
    by_name,
    match,
    mean_over_classes,
    weighted,
)
from tf_detectorgan.evaluation.records import Found, Truth


def fuzz(seed, images=25, classes=3, ties=False, most=6):
    """Returns random truth and detections: hits, misses, clean images, images without detections."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for i in rng.permutation(images):
        k = int(rng.integers(0, 4))
        corner = rng.uniform(0, 60, (k, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (k, 2))], axis=1)
        labels = rng.integers(0, classes, k)
        d = int(rng.integers(0, most))
        extra = rng.uniform(0, 60, (d, 2))
        guesses = np.concatenate([boxes + rng.normal(0, 2, (k, 1)), np.tile(extra, 2) + [0, 0, 20, 20]])
        scores = rng.random(len(guesses))
        scores = np.round(scores * 4) / 4 if ties else scores
        truth.append(Truth(int(i) * 7, (f"patient{i // 2}",), boxes, labels, (96, 96)))
        guessed = np.concatenate([labels, rng.integers(0, classes, d)])
        found.append(Found(int(i) * 7, guesses, scores, guessed))
    return truth, found


def pycocotools(truth, found, classes, thresholds):
    """Returns pycocotools' AP and recall [T, K] by `loadRes` and its defaults; -1: a class without truth."""

    def rows(items):
        return [
            {
                "image_id": item.image_id,
                "category_id": int(label) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": (x1 - x0) * (y1 - y0),
                "iscrowd": 0,
                "score": float(score),
            }
            for item in items
            for (x0, y0, x1, y1), label, score in zip(
                item.boxes.tolist(), item.labels, getattr(item, "scores", item.labels), strict=True
            )
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        side = COCO()
        side.dataset = {
            "images": [{"id": t.image_id} for t in truth],
            "categories": [{"id": k + 1} for k in range(classes)],
            "annotations": [{"id": n + 1, **row} for n, row in enumerate(rows(truth))],
        }
        side.createIndex()
        evaluation = COCOeval(side, side.loadRes(rows(found)), "bbox")
        evaluation.params.iouThrs = np.array(thresholds)
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # area all, 100 detections
    return precision.mean(axis=1), evaluation.eval["recall"][:, :, 0, 2]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_ap_and_unit_weighted_ap_equal_pycocotools(seed, ties):
    truth, found = fuzz(seed, ties=ties)
    matches = match(truth, found, ["a", "b", "c"])
    ap, recall = pycocotools(truth, found, 3, THRESHOLDS)
    np.testing.assert_allclose(average_precision(matches), ap, atol=1e-12)
    np.testing.assert_allclose(matches.recall, recall, atol=1e-12)
    again_ap, again_recall = weighted(matches, np.ones((2, len(truth)), np.int32))
    np.testing.assert_allclose(again_ap, [ap, ap], atol=1e-9)
    np.testing.assert_allclose(again_recall, [recall, recall], atol=1e-9)


def test_detections_beyond_100_per_image_are_ignored_as_in_pycocotools():
    truth, found = fuzz(3, images=4, classes=1, most=400)
    assert max(len(f.scores) for f in found) > 100
    matches = match(truth, found, ["a"])
    ap, recall = pycocotools(truth, found, 1, THRESHOLDS)
    np.testing.assert_allclose(weighted(matches, np.ones((1, 4)))[0][0], ap, atol=1e-9)
    np.testing.assert_allclose(matches.recall, recall, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_is_that_many_copies_of_the_image(seed):
    truth, found = fuzz(seed)
    weights = np.random.default_rng(seed).integers(0, 4, len(truth))
    copies = [(t, f, n) for t, f, w in zip(truth, found, weights, strict=True) for n in range(w)]
    ids = range(len(copies))
    many_truth = [t._replace(image_id=i) for i, (t, _, _) in zip(ids, copies, strict=True)]
    many_found = [f._replace(image_id=i) for i, (_, f, _) in zip(ids, copies, strict=True)]
    ap, recall = pycocotools(many_truth, many_found, 3, THRESHOLDS)
    order = np.argsort([t.image_id for t in truth])
    weighted_ap, weighted_recall = weighted(match(truth, found, ["a", "b", "c"]), weights[None, order])
    np.testing.assert_allclose(weighted_ap[0], np.where(ap < 0, np.nan, ap), atol=1e-9)
    np.testing.assert_allclose(weighted_recall[0], np.where(recall < 0, np.nan, recall), atol=1e-9)


def test_ap_by_hand():
    """Two objects; true positive at score 0.9, false positive at 0.8, true positive at 0.7.

    Precision 1 up to recall 0.5 (51 of the 101 recalls), then 2/3 (50): (51 + 50 * 2/3) / 101.
    """
    truth = [Truth(1, ("p",), np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.array([0, 0]), (40, 40))]
    boxes = np.array([[0, 0, 10, 10], [0, 30, 5, 35], [20, 20, 30, 30]])
    found = [Found(1, boxes, np.array([0.9, 0.8, 0.7]), np.zeros(3, int))]
    matches = match(truth, found, ["a"], thresholds=(0.5,))
    assert average_precision(matches)[0, 0] == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)
    assert matches.recall[0, 0] == 1.0


def test_iou_threshold_uses_the_union():
    """A 10x10 box inside a 10x20 box: intersection 100, union 200, IoU exactly 0.5."""
    truth = [Truth(1, (), np.array([[0, 0, 10, 10]]), np.array([0]), (40, 40))]
    found = [Found(1, np.array([[0, 0, 10, 20]]), np.array([0.5]), np.array([0]))]
    matches = match(truth, found, ["a"], thresholds=(0.5, 0.51))
    assert average_precision(matches)[:, 0].tolist() == [pytest.approx(1.0), 0.0]


def test_mean_over_classes_ignores_classes_without_truth():
    truth, found = fuzz(1, classes=1)
    matches = match(truth, found, ["a", "never"])
    ap = average_precision(matches)
    assert np.isnan(ap[:, 1]).all()
    np.testing.assert_allclose(mean_over_classes(ap), ap[:, 0])


def test_ap_is_nan_without_truth_and_zero_without_detections():
    nothing = np.zeros((0, 4))
    truth = [Truth(i, (), nothing, np.zeros(0, int), (9, 9)) for i in range(3)]
    found = [Found(i, nothing, np.zeros(0), np.zeros(0, int)) for i in range(3)]
    matches = match(truth, found, ["a"])
    assert np.isnan(average_precision(matches)).all()
    assert np.isnan(weighted(matches, np.ones((1, 3)))[0]).all()
    one = [truth[0]._replace(boxes=np.array([[1, 1, 5, 5]]), labels=np.array([0])), *truth[1:]]
    ap, recall = weighted(match(one, found, ["a"]), np.ones((1, 3)))
    assert (ap == 0).all()
    assert (recall == 0).all()
    assert np.isnan(weighted(match(one, found, ["a"]), np.array([[0, 1, 1]]))[0]).all()


def test_by_name_lists_single_thresholds_and_range():
    values = by_name(np.arange(len(THRESHOLDS), dtype=float), THRESHOLDS, axis=0)
    assert list(values) == ["0.1", "0.2", "0.3", "0.5", "0.75", "0.5:0.95"]
    assert values["0.75"] == THRESHOLDS.index(0.75) == 8
    assert values["0.5:0.95"] == np.mean(range(3, 13))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"image_id": 8}, "different images"),
        ({"boxes": np.array([[5.0, 0, 3, 9]])}, "negative width or height"),
        ({"boxes": np.array([[0.0, 0, np.nan, 9]])}, "not finite"),
        ({"boxes": np.zeros((2, 4))}, "shape"),
        ({"labels": np.array([1])}, "1 classes"),
        ({"labels": np.array([-1])}, "1 classes"),
        ({"scores": np.array([np.inf])}, "not finite"),
    ],
)
def test_match_raises_on_invalid_detections(change, message):
    truth = [Truth(7, (), np.array([[0.0, 0, 3, 3]]), np.array([0]), (9, 9))]
    found = Found(7, np.array([[0.0, 0, 3, 3]]), np.array([0.5]), np.array([0]))
    assert average_precision(match(truth, [found], ["a"])).min() == pytest.approx(1)
    with pytest.raises(InputError, match=message):
        match(truth, [found._replace(**change)], ["a"])


def test_match_raises_on_duplicate_or_missing_images():
    truth, found = fuzz(0, images=2)
    with pytest.raises(InputError, match="more than once"):
        match([*truth, truth[0]], [*found, found[0]], ["a", "b", "c"])
    with pytest.raises(InputError, match="no images"):
        match([], [], ["a"])
