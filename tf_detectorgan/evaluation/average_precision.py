"""AP and recall, computed by pycocotools, and recomputed with image weights for the bootstrap.

Letters: I images, K classes, T IoU thresholds, D detections of a class, R weightings, P correct detections.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tf_detectorgan.evaluation.records import Found, Truth, paired, to_coco_results

COCO_RANGE = tuple(np.linspace(0.5, 0.95, 10))  # pycocotools' own ten values, bit for bit
THRESHOLDS = (0.1, 0.2, 0.3, *COCO_RANGE)
SINGLE = (0.1, 0.2, 0.3, 0.5, 0.75)  # thresholds that are reported individually
RANGE_NAME = "0.5:0.95"
MAX_DETECTIONS = 100  # per image and class, the best by score
RECALLS = np.linspace(0.0, 1.0, 101)
_CHUNK = 4_000_000  # array elements that `weighted` holds in memory at once


class ClassMatches(NamedTuple):
    """Detections of one class in all images, by descending score; ties by image id, then in input order."""

    scores: np.ndarray  # [D] float64
    image: np.ndarray  # [D] int, index into Matches.image_ids
    correct: np.ndarray  # [T, D] bool: matched to a truth box; a box is matched once at most
    truths: np.ndarray  # [I] int, truth boxes per image


class Matches(NamedTuple):
    """Matched detections of all classes, and the precision and recall that pycocotools computes."""

    image_ids: tuple[int, ...]  # ascending
    groups: tuple[tuple[str, ...], ...]  # per image
    class_names: tuple[str, ...]
    thresholds: tuple[float, ...]
    classes: tuple[ClassMatches, ...]
    precision: np.ndarray  # [T, 101, K] at recall 0, 0.01 .. 1; NaN for a class without truth
    recall: np.ndarray  # [T, K], NaN likewise


def match(
    truth: Sequence[Truth],
    found: Sequence[Found],
    class_names: Sequence[str],
    thresholds: Sequence[float] = THRESHOLDS,
) -> Matches:
    """Returns the matches of COCOeval (bbox, area "all", at most 100 detections) at the IoU `thresholds`.

    Raises:
      InputError: see `records.paired`.
    """
    pairs = paired(truth, found, class_names)
    coco = _run_coco(pairs, class_names, thresholds)
    precision, recall = coco.eval["precision"][:, :, :, 0, 0], coco.eval["recall"][:, :, 0, 0]
    images = len(pairs)
    return Matches(
        image_ids=tuple(int(t.image_id) for t, _ in pairs),
        groups=tuple(t.groups for t, _ in pairs),
        class_names=tuple(class_names),
        thresholds=tuple(float(t) for t in thresholds),
        classes=tuple(
            _class_matches(coco.evalImgs[k * images : (k + 1) * images], len(thresholds))
            for k in range(len(class_names))
        ),
        precision=np.where(precision < 0, np.nan, precision),
        recall=np.where(recall < 0, np.nan, recall),
    )


def _run_coco(pairs, class_names, thresholds) -> COCOeval:
    images = [{"id": int(t.image_id)} for t, _ in pairs]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    with contextlib.redirect_stdout(io.StringIO()):
        inputs = []
        as_found = (Found(t.image_id, t.boxes, np.ones(len(t.labels)), t.labels) for t, _ in pairs)
        for found in (as_found, (f for _, f in pairs)):
            coco = COCO()  # built in memory: COCO.loadRes fails on an empty list
            coco.dataset = {"images": images, "categories": categories, "annotations": _annotations(found)}
            coco.createIndex()
            inputs.append(coco)
        result = COCOeval(*inputs, iouType="bbox")
        result.params.iouThrs = np.asarray(thresholds, np.float64)
        result.params.maxDets = [MAX_DETECTIONS]
        result.params.areaRng, result.params.areaRngLbl = [[0.0, 1e10]], ["all"]
        result.evaluate()
        result.accumulate()
    return result


def _annotations(found: Iterable[Found]) -> list[dict]:
    return [
        one | {"id": index, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0}
        for index, one in enumerate(to_coco_results(found), 1)  # COCOeval treats id 0 as no match
    ]


def _class_matches(per_image: list, thresholds: int) -> ClassMatches:
    """Concatenates COCOeval's per-image results of one class; None: no truth and no detections."""
    scores, image, correct = [np.zeros(0)], [np.zeros(0, np.int64)], [np.zeros((thresholds, 0), bool)]
    truths = np.zeros(len(per_image), np.int64)
    for index, result in enumerate(per_image):
        if result is not None:
            scores.append(np.asarray(result["dtScores"], np.float64))
            image.append(np.full(len(result["dtScores"]), index))
            correct.append(result["dtMatches"] > 0)
            truths[index] = len(result["gtIds"])
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="mergesort")  # stable, as in COCOeval.accumulate
    return ClassMatches(
        joined[order], np.concatenate(image)[order], np.concatenate(correct, axis=1)[:, order], truths
    )


def average_precision(matches: Matches) -> np.ndarray:
    """Returns COCO's AP [T, K]; NaN for a class without truth."""
    return matches.precision.mean(axis=1)


def weighted(matches: Matches, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns AP and recall [R, T, K] with image i counted weights[r, i] >= 0 times; NaN without truth.

    With weights of 1 these equal COCO's. The interpolated precision is always that at a correct detection.
    Therefore only the cumulative count is computed for all D detections, the rest for the P correct ones.
    """
    shape = (len(weights), len(matches.thresholds), len(matches.classes))
    ap, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    for k, found in enumerate(matches.classes):
        positives = weights @ found.truths
        rows_at_once = max(1, _CHUNK // max(1, len(found.scores)))
        for start in range(0, len(weights), rows_at_once):
            rows = slice(start, start + rows_at_once)
            drawn = weights[rows][:, found.image]
            counted = np.cumsum(drawn, axis=1)
            for t, correct in enumerate(found.correct):
                where = np.flatnonzero(correct)
                true = np.cumsum(drawn[:, where], axis=1)
                ap[rows, t, k], recall[rows, t, k] = _interpolate(true, counted[:, where], positives[rows])
        ap[positives == 0, :, k] = recall[positives == 0, :, k] = np.nan
    return ap, recall


def _interpolate(true: np.ndarray, counted: np.ndarray, positives: np.ndarray):
    """Returns 101-point AP and final recall [R] of cumulative counts [R, P] of correct and all detections."""
    if not true.shape[1]:
        return 0.0, 0.0
    recall = true / np.maximum(positives, np.spacing(1))[:, None]
    precision = true / (counted + np.spacing(1))  # COCO's guard against 0 / 0
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(RECALLS, recall, side="right")  # number of the 101 recalls at or below it
    gained = np.diff(reached, axis=1, prepend=0)
    return (envelope * gained).sum(axis=1) / len(RECALLS), recall[:, -1]


def by_name(per_threshold: np.ndarray, thresholds: Sequence[float], axis: int) -> dict[str, np.ndarray]:
    """Returns `axis` (T) as {"0.1": ..., "0.5:0.95": mean over COCO's ten}, without absent thresholds."""
    result = {f"{t:g}": np.take(per_threshold, thresholds.index(t), axis) for t in SINGLE if t in thresholds}
    if set(COCO_RANGE) <= set(thresholds):
        inside = [thresholds.index(t) for t in COCO_RANGE]
        result[RANGE_NAME] = np.take(per_threshold, inside, axis).mean(axis=axis)
    return result


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis (K) without NaN; NaN if all values are NaN."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.where(known.any(axis=-1), total / np.maximum(known.sum(axis=-1), 1), np.nan)
