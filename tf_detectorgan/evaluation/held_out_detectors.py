"""Detectors that judge objects which they were not trained on: is there something to be found in the box?

The labelled training images are assigned out to folds, whole groups each, and DET_k is trained on the images
outside fold k. So DET_k can be asked about the objects of fold k: the real ones, and the synthetic ones that
were matched with them (cross-fitting: a detector trained on an object finds its copy even in noise).
Letters: N images with one object each, D detections.
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

ALLOWED = 1.0  # false positives an image at the score from which on an object counts as found


class Fold(NamedTuple):
    """DET_k's weights and what it says about the real objects of its fold."""

    weights: list[tf.Tensor]
    threshold: float  # of its scores, at `ALLOWED` false positives per image of the fold
    real: np.ndarray  # its scores of the fold's real objects, ascending


class HeldOutDetectors(NamedTuple):
    """All folds' detectors."""

    detect: Callable[[tf.Tensor, list[tf.Tensor]], Detections]  # (images, weights)
    iou: float  # at which a detection counts for a box
    fold_of: dict[int, int]  # labelled image id -> the fold it is in
    folds: list[Fold]

    def found_real(self) -> float:
        """Share of the real objects that are found."""
        return float(np.concatenate([fold.real > fold.threshold for fold in self.folds]).mean())

    def score_objects(self, images, boxes, labels, matched_ids) -> dict[str, np.ndarray]:
        """Each inserted object, judged by the detector that does not know its matched image.

        Args:
          images: [N, H, W, C]; boxes: [N, 4]; labels: [N] int32; matched_ids: [N] of the labelled images.

        Returns:
          "found": 1 or 0 [N]; "rank": share of the fold's real objects that score no higher [N], to 3 digits,
          and 0 where no detection is right.
        """
        mine = np.array([self.fold_of[int(i)] for i in matched_ids])
        found, rank = np.zeros(len(mine)), np.zeros(len(mine))
        for k, fold in enumerate(self.folds):
            which = np.flatnonzero(mine == k)
            if len(which):
                answer = self.detect(tf.gather(images, which), fold.weights)
                box, label = (tf.gather(v, which)[:, None] for v in (boxes, labels))
                scores = _object_scores(answer, _right(answer, box, label, self.iou))[:, 0].numpy()
                found[which] = scores > fold.threshold
                ranked = np.searchsorted(fold.real, scores, "right") / len(fold.real)
                rank[which] = np.where(scores > 0, ranked, 0.0)
        return {"found": found, "rank": np.round(rank, 3)}


def assign_folds(dataset: Dataset, folds: int) -> list[tuple[int, int]]:
    """(image id, fold) of every labelled training image in order: groups in turn, as they first appear.

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
            f"--crossfit_folds={folds}: the labelled training images are of {len(fold_of_group)} group(s); "
            "give as many folds at most, or 0 for no such audit"
        )
    return assigned


def training_part(dataset: Dataset, assigned: Sequence[tuple[int, int]], k: int) -> tf.data.Dataset:
    """The labelled images that DET_k may see, undecoded."""
    allowed = tf.constant([fold != k for _, fold in assigned])
    strings = dataset.serialized("train_labelled").enumerate()
    return strings.filter(lambda i, _: allowed[i]).map(lambda _, one: one)


def calibrate(detect, weights: list[tf.Tensor], dataset: Dataset, wanted: Sequence[int], iou: float) -> Fold:
    """DET_k with its threshold and its scores of real objects, both from the images `wanted` of its fold."""
    real: list[np.ndarray] = []
    false: list[np.ndarray] = []
    chosen = set(wanted)
    for record in dataset.serialized("train_labelled").map(dataset.decode):
        if int(record.image_id) in chosen:
            found = tf.nest.map_structure(lambda v: v[0], detect(record.image[None], weights))
            right = _right(found, record.boxes, record.labels, iou)
            real.append(_object_scores(found, right).numpy())
            false.append(found.scores[~tf.reduce_any(right, axis=1) & (found.labels >= 0)].numpy())
    return Fold(weights, threshold(np.concatenate(false), len(chosen)), np.sort(np.concatenate(real)))


def threshold(false_scores: np.ndarray, images: int) -> float:
    """The score that at most ALLOWED * images of the false positives are above; 0 if there are no more."""
    allowed = int(ALLOWED * images)
    ranked = np.sort(false_scores)[::-1]
    return float(ranked[allowed]) if allowed < len(ranked) else 0.0


def _right(found: Detections, boxes, labels, iou: float) -> tf.Tensor:
    """bool [.., D, K]: the detection is of the object's class and overlaps its box by `iou` or more."""
    same = found.labels[..., :, None] == labels[..., None, :]
    return same & (box_ops.iou(found.boxes, boxes) >= iou)


def _object_scores(found: Detections, right) -> tf.Tensor:
    """[.., K]: each object's highest score of a right detection, or 0."""
    return tf.reduce_max(tf.where(right, found.scores[..., None], 0.0), axis=-2)
