"""Runs a detector on all images of a split, and returns its detections with the ground truth."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tf_detectorgan.batch import Detections
from tf_detectorgan.data.pipeline import EvaluationBatch, evaluation_batches
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.evaluation.average_precision import average_precision, match, mean_over_classes
from tf_detectorgan.evaluation.records import Found, Truth, found_of

EVALUATED = ("labelled", "clean")  # streams of a split whose truth is complete


def detect_split(
    detect: Callable[..., Detections], dataset: Dataset, split: str, batch_size: int
) -> tuple[list[Truth], list[Found]]:
    """Returns truth and detections of all labelled and clean images of `split` ("validation", "test").

    `detect` maps images [N, H, W, C] to Detections.
    """
    truth, found = [], []
    for batch in batches_of_split(dataset, split, batch_size):
        detected = found_of(batch.image_ids.numpy(), detect(batch.images))
        found += [detected[i] for i in np.flatnonzero(batch.real)]
        truth += _truth(batch)
    return truth, found


def truth_of_split(dataset: Dataset, split: str) -> list[Truth]:
    """Returns the truth of all images of `split`, as `detect_split` does."""
    return [item for batch in batches_of_split(dataset, split, 1) for item in _truth(batch)]


def batches_of_split(dataset: Dataset, split: str, batch_size: int) -> tf.data.Dataset:
    """Returns all images of `split`, labelled and clean, in order; raises InputError if there are none."""
    streams = [f"{split}_{kind}" for kind in EVALUATED if dataset.count(f"{split}_{kind}")]
    return evaluation_batches(dataset, streams or [f"{split}_labelled"], batch_size)


def _truth(batch: EvaluationBatch) -> list[Truth]:
    result = []
    for i in np.flatnonzero(batch.real):
        present = batch.labels[i].numpy() >= 0
        result.append(
            Truth(
                image_id=int(batch.image_ids[i]),
                groups=(batch.groups[i].numpy().decode(),),
                boxes=batch.boxes[i].numpy()[present],
                labels=batch.labels[i].numpy()[present],
                size=(int(batch.valid_sizes[i][0]), int(batch.valid_sizes[i][1])),
            )
        )
    return result


def quick_ap(truth: list[Truth], found: list[Found], class_names, ious=(0.1, 0.5)) -> dict[str, float]:
    """Returns AP at a few IoUs, mean over classes, without intervals, for curves during training."""
    values = mean_over_classes(average_precision(match(truth, found, class_names, ious)))
    return {f"ap@{iou:g}": float(value) for iou, value in zip(ious, values, strict=True)}
