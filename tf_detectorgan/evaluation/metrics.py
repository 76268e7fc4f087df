"""All metrics of one detector on one set of images, as one dict of JSON values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_detectorgan.evaluation.average_precision import Matches, match
from tf_detectorgan.evaluation.froc import froc
from tf_detectorgan.evaluation.localization import localization, pool
from tf_detectorgan.evaluation.records import Found, Truth
from tf_detectorgan.evaluation.statistics import Bootstrap, bootstrap_ap, independent_units, small_note

CURVE_IOUS = (0.1, 0.5)  # for the precision-recall curves


def evaluate(
    truth: Sequence[Truth],
    found: Sequence[Found],
    class_names: Sequence[str],
    seed: int = 0,
    resamples: int = 1000,
    primary_iou: float = 0.1,
) -> dict:
    """Returns AP, recall, localization accuracy and FROC (at `primary_iou`), with intervals; None: undefined.

    Raises:
      InputError: truth and detections are invalid or of different images (`records.paired`).
    """
    matches = match(truth, found, class_names)
    bootstrap = bootstrap_ap(matches, resamples, seed)
    places = localization(truth, found, class_names)
    units = independent_units(matches.groups)
    per_class = {
        name: {
            "ap": _intervals(bootstrap, "ap", k),
            "recall": _intervals(bootstrap, "recall", k),
            "localization": places[k],
            "boxes": int(matches.classes[k].truths.sum()),
            "images": int((matches.classes[k].truths > 0).sum()),
            "groups": len(np.unique(units[matches.classes[k].truths > 0])),
            "detections": len(matches.classes[k].scores),
        }
        for k, name in enumerate(class_names)
    }
    return {
        "class_names": list(class_names),
        "ap": _intervals(bootstrap, "ap"),
        "recall": _intervals(bootstrap, "recall"),
        "localization": pool(places),
        "froc": froc(matches, primary_iou),
        "precision_recall": _curves(matches),
        "per_class": per_class,
        "counts": {
            "images": len(matches.image_ids),
            "images_with_truth": sum(1 for t in truth if len(t.labels)),
            "groups": bootstrap.groups,
            "groups_with_truth": bootstrap.groups_with_truth,
            "boxes": sum(c["boxes"] for c in per_class.values()),
            "detections": sum(len(f.labels) for f in found),
        },
        "bootstrap": {"resamples": resamples, "seed": seed, "level": 0.95},
        "primary_iou": primary_iou,
        "note": small_note(bootstrap.groups_with_truth),
    }


def with_current_keys(metrics: dict) -> dict:
    """Returns the dict that `evaluate` returned, also if an older version wrote it (key "main_iou")."""
    return {"primary_iou": metrics["main_iou"], **metrics} if "main_iou" in metrics else metrics


def _intervals(bootstrap: Bootstrap, measure: str, label: int | None = None) -> dict:
    names = getattr(bootstrap, measure)
    return {name: bootstrap.interval(measure, name, label)._asdict() for name in names}


def _curves(matches: Matches) -> dict:
    """Returns {"0.1": {class: 101 precisions at recall 0, 0.01 .. 1}}, without classes that have no truth."""
    result = {}
    for iou in CURVE_IOUS:
        rows = matches.precision[matches.thresholds.index(iou)]
        result[f"{iou:g}"] = {
            name: rows[:, k].tolist()
            for k, name in enumerate(matches.class_names)
            if not np.isnan(rows[0, k])
        }
    return result
