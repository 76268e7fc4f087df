"""Input of the evaluation: truth (k boxes) and detections (d boxes) per image, in NumPy and as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import boxes as box_ops
from tf_detectorgan import disk
from tf_detectorgan.batch import Detections
from tf_detectorgan.errors import InputError


class Truth(NamedTuple):
    """The annotated objects of one image; k = 0 for a clean image."""

    image_id: int
    groups: tuple[str, ...]  # patients, scenes: images that share one are resampled together
    boxes: np.ndarray  # [k, 4] float, as in boxes.py
    labels: np.ndarray  # [k] int, index into the class names
    size: tuple[int, int]  # height, width in pixels without padding


class Found(NamedTuple):
    """The detections in one image, in any order; d = 0 if there are none."""

    image_id: int
    boxes: np.ndarray  # [d, 4] float, as in boxes.py
    scores: np.ndarray  # [d] float
    labels: np.ndarray  # [d] int


def found_of(image_ids: Iterable[int], detections: Detections) -> list[Found]:
    """Converts a batch of detections [N, D] to one `Found` per image, without the padding (label -1)."""
    result = []
    for image_id, boxes, scores, labels in zip(
        image_ids, *(np.asarray(part) for part in detections), strict=True
    ):
        real = labels >= 0
        result.append(Found(int(image_id), boxes[real], scores[real], labels[real]))
    return result


def paired(
    truth: Sequence[Truth], found: Sequence[Found], class_names: Sequence[str]
) -> list[tuple[Truth, Found]]:
    """Returns pairs of truth and detections of the same image, by ascending image id.

    Raises:
      InputError: there are no images; an id occurs twice, or in one argument only; a label has no class name;
        shapes do not agree; a box or score is not finite; a width or height is negative.
    """
    truth_by_id, found_by_id = _by_id("truth", truth), _by_id("detections", found)
    if not truth_by_id:
        raise InputError("nothing to evaluate: the truth has no images")
    unpaired = sorted(truth_by_id.keys() ^ found_by_id.keys())
    if unpaired:
        raise InputError(
            f"truth and detections are of different images: {len(unpaired)} ids in one only: {unpaired[:5]}"
        )
    for side, items in (("truth", truth), ("detections", found)):
        for item in items:
            _check(side, item, len(class_names))
    return [(truth_by_id[image_id], found_by_id[image_id]) for image_id in sorted(truth_by_id)]


def _by_id(side: str, items: Sequence[Any]) -> dict[int, Any]:
    result = {int(item.image_id): item for item in items}
    if len(result) != len(items):
        ids = [int(item.image_id) for item in items]
        twice = next(i for i in ids if ids.count(i) > 1)
        raise InputError(f"{side}: image id {twice} occurs more than once")
    return result


def _check(side: str, item: Truth | Found, classes: int) -> None:
    boxes, labels = np.asarray(item.boxes), np.asarray(item.labels)
    where = f"{side} of image {item.image_id}"
    if boxes.shape != (len(labels), 4):
        raise InputError(f"{where}: boxes of shape {boxes.shape} for {len(labels)} labels")
    if not np.isfinite(boxes).all():
        raise InputError(
            f"{where}: a box is not finite: {boxes[~np.isfinite(boxes).all(axis=1)][0].tolist()}"
        )
    inverted = (xywh(boxes)[:, 2:] < 0).any(axis=1)
    if inverted.any():  # COCOeval would silently ignore it
        raise InputError(f"{where}: a box has negative width or height: {boxes[inverted][0].tolist()}")
    if len(labels) and not (0 <= labels.min() and labels.max() < classes):
        raise InputError(f"{where}: labels {sorted(set(labels.tolist()))} but there are {classes} classes")
    if isinstance(item, Found):
        scores = np.asarray(item.scores)
        if scores.shape != labels.shape or not np.isfinite(scores).all():
            raise InputError(
                f"{where}: scores of shape {scores.shape} for {len(labels)} boxes, or not finite"
            )


def xywh(boxes: np.ndarray) -> np.ndarray:
    """Converts boxes [k, 4] to COCO's (x, y, width, height) [k, 4] float64."""
    return box_ops.to_xywh(np.asarray(boxes, np.float64).reshape(-1, 4)).numpy()


def to_coco_results(found: Iterable[Found]) -> list[dict]:
    """Returns COCO's results list: bbox is [x, y, width, height] in pixels, category_id the label + 1."""
    return [
        {"image_id": int(item.image_id), "category_id": int(label) + 1, "bbox": box, "score": float(score)}
        for item in found
        for box, score, label in zip(xywh(item.boxes).tolist(), item.scores, item.labels, strict=True)
    ]


def from_coco_results(results: Sequence[dict], image_ids: Iterable[int]) -> list[Found]:
    """Inverse of `to_coco_results`. `image_ids`: all images, including those without detections."""
    per_image: dict[int, list[dict]] = {int(image_id): [] for image_id in image_ids}
    for result in results:
        per_image[result["image_id"]].append(result)
    return [
        Found(
            image_id,
            box_ops.from_xywh(np.array([r["bbox"] for r in items], np.float64).reshape(-1, 4)).numpy(),
            np.array([r["score"] for r in items], np.float64),
            np.array([r["category_id"] - 1 for r in items], np.int64),
        )
        for image_id, items in per_image.items()
    ]


def truth_to_json(truth: Sequence[Truth]) -> list[dict]:
    """Returns the truth as in `truth.json`; box coordinates in the order of `boxes.py`."""
    return [
        {
            "image_id": int(item.image_id),
            "groups": list(item.groups),
            "boxes": np.asarray(item.boxes, np.float64).reshape(-1, 4).tolist(),
            "labels": np.asarray(item.labels).tolist(),
            "size": [int(side) for side in item.size],
        }
        for item in truth
    ]


def truth_from_json(items: Sequence[dict]) -> list[Truth]:
    """Inverse of `truth_to_json`."""
    return [
        Truth(
            item["image_id"],
            tuple(item["groups"]),
            np.array(item["boxes"], np.float64).reshape(-1, 4),
            np.array(item["labels"], np.int64),
            (item["size"][0], item["size"][1]),
        )
        for item in items
    ]


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes JSON; the file is replaced atomically. Raises ValueError on NaN."""
    with disk.whole_file(Path(path)) as partial:
        partial.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
