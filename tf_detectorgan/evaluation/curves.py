"""Precision-recall and FROC curves with image weights, and their pointwise bootstrap intervals.

Letters: I images, K classes, D detections, R weightings, P correct detections.
"""

from __future__ import annotations

import numpy as np

from tf_detectorgan.evaluation.average_precision import RECALLS, Matches, mean_over_classes
from tf_detectorgan.evaluation.froc import pooled
from tf_detectorgan.evaluation.statistics import LEVEL, group_draws


def precision_at_recall(matches: Matches, weights: np.ndarray, iou: float) -> np.ndarray:
    """Returns COCO's interpolated precision [R, 101, K] with image i counted weights[r, i] >= 0 times.

    NaN for a class without truth. With weights of 1 it equals COCO's.
    """
    t = matches.thresholds.index(iou)
    result = np.full((len(weights), len(RECALLS), len(matches.classes)), np.nan)
    for k, found in enumerate(matches.classes):
        positives = weights @ found.truths
        where = np.flatnonzero(found.correct[t])
        for r in np.flatnonzero(positives):
            drawn = weights[r, found.image]
            true = np.cumsum(drawn[where])
            precision = true / (np.cumsum(drawn)[where] + np.spacing(1))  # COCO's guard against 0 / 0
            envelope = np.maximum.accumulate(precision[::-1])[::-1]
            first = np.searchsorted(true / positives[r], RECALLS, side="left")  # that reaches the recall
            result[r, :, k] = np.append(envelope, 0.0)[first]  # a recall that is never reached: 0
    return result


def sensitivity_at_rates(matches: Matches, weights: np.ndarray, iou: float, rates: np.ndarray) -> np.ndarray:
    """Returns FROC's sensitivity [R, len(rates)] with image i counted weights[r, i] times; NaN without truth.

    Classes are pooled, and equal scores accepted together, as in `froc.froc`. `rates`: false positives/image.
    """
    _, image, correct, last_of_tie = pooled(matches, iou)
    positives = weights @ sum(found.truths for found in matches.classes)
    result = np.full((len(weights), len(rates)), np.nan)
    for r in np.flatnonzero(positives):
        drawn = weights[r, image]
        true = np.append(0, np.cumsum(drawn * correct)[last_of_tie])
        false = np.append(0, np.cumsum(drawn * ~correct)[last_of_tie])
        last = np.searchsorted(false / weights[r].sum(), rates, side="right") - 1
        result[r] = true[last] / positives[r]
    return result


def precision_band(matches: Matches, iou: float, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends [101] of the pointwise 95 % interval of the mean over classes, by resampled groups."""
    weights = group_draws(matches.groups, resamples, seed)
    return _band(mean_over_classes(precision_at_recall(matches, weights, iou)))


def sensitivity_band(
    matches: Matches, iou: float, rates: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ends [len(rates)] of the pointwise 95 % interval of sensitivity, by resampled groups."""
    return _band(sensitivity_at_rates(matches, group_draws(matches.groups, resamples, seed), iou, rates))


def _band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.nanpercentile(curves, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
    return low, high
