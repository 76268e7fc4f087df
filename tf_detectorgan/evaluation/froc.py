"""Free-response ROC: share of objects found against false positives per image, including clean images."""

from __future__ import annotations

import numpy as np

from tf_detectorgan.evaluation.average_precision import Matches

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # false positives per image


def pooled(matches: Matches, iou: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores, images and correctness [D] of all detections, best first, and ties' last indices."""
    t = matches.thresholds.index(iou)
    scores = np.concatenate([found.scores for found in matches.classes])
    order = np.argsort(-scores, kind="mergesort")
    scores = scores[order]
    image = np.concatenate([found.image for found in matches.classes])[order]
    correct = np.concatenate([found.correct[t] for found in matches.classes])[order]
    last_of_tie = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))[: len(scores)]
    return scores, image, correct, last_of_tie


def froc(matches: Matches, iou: float = 0.1) -> dict:
    """Returns the sensitivity at seven rates and the curve, all classes pooled under one score threshold.

    A detection is a true positive when COCO matches it to a truth box of its class at `iou`; every other one
    is a false positive, also a second one on the same object. Equal scores pass the threshold together.

    Returns:
      {"iou", "sensitivity": {"0.125": s, ...}, "mean", "curve": {"fp_per_image", "sensitivity", "score"}}.
      A rate's s is the highest of all thresholds with at most that many false positives per image; None if
      there are no truth boxes.
    """
    truths = int(sum(found.truths.sum() for found in matches.classes))
    empty: dict[str, list] = {"fp_per_image": [], "sensitivity": [], "score": []}
    if truths == 0:
        return {"iou": iou, "sensitivity": {f"{r:g}": None for r in RATES}, "mean": None, "curve": empty}
    scores, _, correct, last_of_tie = pooled(matches, iou)
    sensitivity = np.cumsum(correct)[last_of_tie] / truths
    false_rate = np.cumsum(~correct)[last_of_tie] / len(matches.image_ids)
    at_rates = {f"{r:g}": float(sensitivity[false_rate <= r].max(initial=0.0)) for r in RATES}
    corner = np.diff(sensitivity, prepend=0.0) > 0  # the curve is flat between them
    corner[-1:] = True
    curve = {
        "fp_per_image": false_rate[corner].tolist(),
        "sensitivity": sensitivity[corner].tolist(),
        "score": scores[last_of_tie][corner].tolist(),
    }
    return {
        "iou": iou,
        "sensitivity": at_rates,
        "mean": float(np.mean(list(at_rates.values()))),
        "curve": curve,
    }
