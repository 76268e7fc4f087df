"""Localization accuracy: share of images whose highest-scoring detection is correct, by IoU and IoBB."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.evaluation.records import Found, Truth, paired
from tf_detectorgan.evaluation.statistics import exact_interval

IOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IOBB_THRESHOLDS = (0.1, 0.25, 0.5, 0.75, 0.9)


def best_overlaps(truth: Truth, found: Found, label: int) -> tuple[float, float]:
    """Returns the largest (IoU, IoBB) of a class's top-scoring detection with a truth box of that class.

    Both are 0 without a detection. IoU divides by the union, IoBB by the *detected* box. If scores are equal,
    the first detection in the list counts.
    """
    candidates = np.flatnonzero(np.asarray(found.labels) == label)
    if not len(candidates):
        return 0.0, 0.0
    top = candidates[np.argmax(np.asarray(found.scores)[candidates])]
    objects = np.asarray(truth.boxes, np.float64)[np.asarray(truth.labels) == label]
    detected = np.asarray(found.boxes, np.float64)[top : top + 1]
    return (
        float(box_ops.iou(detected, objects).numpy().max()),
        float(box_ops.iobb(detected, objects).numpy().max()),
    )


def localization(truth: Sequence[Truth], found: Sequence[Found], class_names: Sequence[str]) -> list[dict]:
    """Returns {"iou": {"0.1": {k, n, value, low, high}}, "iobb": {...}} per class; n images show the class.

    The intervals are Clopper-Pearson's, exact for independent images. Definition: docs/decisions/0020.
    """
    overlaps: list[list[tuple[float, float]]] = [[] for _ in class_names]
    for t, f in paired(truth, found, class_names):
        for label in sorted({int(label) for label in t.labels}):
            overlaps[label].append(best_overlaps(t, f, label))
    return [_shares(np.array(rows).reshape(-1, 2)) for rows in overlaps]


def pool(per_class: Sequence[dict]) -> dict:
    """Returns the shares of all classes together: a trial is a pair of an image and a class that it shows."""
    return {
        kind: {
            name: share(
                sum(c[kind][name]["k"] for c in per_class), sum(c[kind][name]["n"] for c in per_class)
            )
            for name in per_class[0][kind]
        }
        for kind in ("iou", "iobb")
    }


def share(k: int, n: int) -> dict:
    """Returns {k, n, value, low, high} of the share k of n, as JSON values."""
    return {"k": k, "n": n, **exact_interval(k, n)._asdict()}


def _shares(overlaps: np.ndarray) -> dict:
    return {
        kind: {f"{t:g}": share(int((values >= t).sum()), len(values)) for t in thresholds}
        for kind, values, thresholds in (
            ("iou", overlaps[:, 0], IOU_THRESHOLDS),
            ("iobb", overlaps[:, 1], IOBB_THRESHOLDS),
        )
    }
