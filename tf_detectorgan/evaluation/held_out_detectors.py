"""Held-out detectors: can an object be found by a detector that was not trained on it?

The labelled training images are divided into folds by group, and DET_k is trained on all folds but k. DET_k
scores the real objects of fold k, and the synthetic objects that were made from them. This cross-fitting is
needed because a detector finds copies of its own training objects even in noise.
Letters: N images with one object each, D detections, K boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.batch import Detections
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError

ALLOWED = 1.0  # false positives per image at the score threshold above which an object counts as found


class Fold(NamedTuple):
    """DET_k's weights, and its scores of the real objects of fold k."""

    weights: list[tf.Tensor]
    threshold: float  # score at `ALLOWED` false positives per image of the fold
    real: np.ndarray  # scores of the fold's real objects, ascending


class HeldOutDetectors(NamedTuple):
    """The detectors of all folds."""

    detect: Callable[[tf.Tensor, list[tf.Tensor]], Detections]  # (images, weights)
    iou: float  # lowest IoU at which a detection matches a box
    fold_of: dict[int, int]  # labelled image id -> its fold
    folds: list[Fold]

    def found_real(self) -> float:
        """Returns the share of the real objects whose score exceeds their fold's threshold."""
        return float(np.concatenate([fold.real > fold.threshold for fold in self.folds]).mean())

    def score_objects(self, images, boxes, labels, matched_ids) -> dict[str, np.ndarray]:
        """Scores each inserted object by the detector that was not trained on its matched image.

        Args:
          images: [N, H, W, C]; boxes: [N, 4]; labels: [N] int32; matched_ids: [N] of the labelled images.

        Returns:
          "found": 1 or 0 [N]; "rank": share of the fold's real objects with no higher score [N], to 3 digits,
          and 0 where no detection matches.
        """
        folds = np.array([self.fold_of[int(i)] for i in matched_ids])
        found, rank = np.zeros(len(folds)), np.zeros(len(folds))
        for k, fold in enumerate(self.folds):
            which = np.flatnonzero(folds == k)
            if len(which):
                detections = self.detect(tf.gather(images, which), fold.weights)
                box, label = (tf.gather(v, which)[:, None] for v in (boxes, labels))
                scores = _object_scores(detections, _matches(detections, box, label, self.iou))[:, 0].numpy()
                found[which] = scores > fold.threshold
                ranked = np.searchsorted(fold.real, scores, "right") / len(fold.real)
                rank[which] = np.where(scores > 0, ranked, 0.0)
        return {"found": found, "rank": np.round(rank, 3)}


def assign_folds(dataset: Dataset, folds: int) -> list[tuple[int, int]]:
    """Returns (image id, fold) of every labelled training image, in order.

    Groups are assigned to the folds in turn, in the order of their first images.

    Raises:
      InputError: there are fewer groups than folds.
    """
    fold_of_group: dict[bytes, int] = {}
    assigned = []
    for record in dataset.serialized("train_labelled").map(dataset.decode):
        group = record.groups[0].numpy()
        fold_of_group.setdefault(group, len(fold_of_group) % folds)
        assigned.append((int(record.image_id), fold_of_group[group]))
    if len(fold_of_group) < folds:
        raise InputError(
            f"--crossfit_folds={folds}: the labelled training images form {len(fold_of_group)} group(s); "
            "set it to at most this number, or to 0 for no held-out detectors"
        )
    return assigned


def training_part(dataset: Dataset, assigned: Sequence[tuple[int, int]], k: int) -> tf.data.Dataset:
    """Returns the labelled images that DET_k is trained on, undecoded: those outside fold k."""
    allowed = tf.constant([fold != k for _, fold in assigned])
    strings = dataset.serialized("train_labelled").enumerate()
    return strings.filter(lambda i, _: allowed[i]).map(lambda _, one: one)


def calibrate(detect, weights: list[tf.Tensor], dataset: Dataset, ids: Sequence[int], iou: float) -> Fold:
    """Returns DET_k with its threshold and its scores of real objects, from the images `ids` of fold k."""
    real: list[np.ndarray] = []
    false: list[np.ndarray] = []
    chosen = set(ids)
    for record in dataset.serialized("train_labelled").map(dataset.decode):
        if int(record.image_id) in chosen:
            found = tf.nest.map_structure(lambda v: v[0], detect(record.image[None], weights))
            right = _matches(found, record.boxes, record.labels, iou)
            real.append(_object_scores(found, right).numpy())
            false.append(found.scores[~tf.reduce_any(right, axis=1) & (found.labels >= 0)].numpy())
    return Fold(weights, threshold(np.concatenate(false), len(chosen)), np.sort(np.concatenate(real)))


def threshold(false_scores: np.ndarray, images: int) -> float:
    """Returns the score that at most ALLOWED * images false positives exceed, or 0 if there are fewer."""
    allowed = int(ALLOWED * images)
    ranked = np.sort(false_scores)[::-1]
    return float(ranked[allowed]) if allowed < len(ranked) else 0.0


def _matches(found: Detections, boxes, labels, iou: float) -> tf.Tensor:
    """Returns bool [.., D, K]: the detection has the object's class, and at least `iou` with its box."""
    same = found.labels[..., :, None] == labels[..., None, :]
    return same & (box_ops.iou(found.boxes, boxes) >= iou)


def _object_scores(found: Detections, right) -> tf.Tensor:
    """Returns [.., K]: the highest score of a detection that matches the object, or 0."""
    return tf.reduce_max(tf.where(right, found.scores[..., None], 0.0), axis=-2)
