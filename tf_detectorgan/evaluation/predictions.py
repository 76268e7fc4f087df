"""Reads detections of other frameworks, in COCO's results format, for the images of a prepared data set.

A result is {"image_id", "category_id", "bbox": [x, y, width, height], "score"}. "segmentation" is ignored.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data.records import SPLITS, STREAMS, Dataset, Listed
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.detect import EVALUATED
from tf_detectorgan.evaluation.records import Found

PIXELS = ("original", "prepared")
IMAGE_IDS = ("auto", "id", "name")


class Predictions(NamedTuple):
    """The detections of a results file in one split."""

    found: list[Found]  # one for each image of the split, in stored pixels
    ignored: int  # number of detections in images of other splits
    image_ids: str  # how integers were interpreted: "id", "name"; "": there were none


def read_predictions(
    path: Path,
    dataset: Dataset,
    split: str,
    *,
    pixels: str = "original",
    categories: str = "",
    image_ids: str = "auto",
) -> Predictions:
    """Reads and checks a results file.

    Args:
      path: a JSON list of results. An `image_id` that is a string is the image's file name, with or without
        folder and suffix.
      dataset: the data set in whose images the objects were detected.
      split: "validation" or "test".
      pixels: the images whose pixels boxes are in: the "original" files, or the "prepared" images.
      categories: a COCO file with the name of each `category_id`; "": they are 1, 2, ... in the order of the
        data set's classes.
      image_ids: how an integer `image_id` is interpreted: as the data set's "id" (that of its COCO file, if
        any), or as a "name", a file name that is a number (Ultralytics writes 14 for 000014.png). "auto": by
        the result's "file_name" if any, otherwise by the interpretation that fits all integers.

    Raises:
      InputError: the file is not a results list; a detection has an unknown or ambiguous image, an unknown
        category, a box or score that is not finite, or a box outside of its image.
    """
    labels = _labels(dataset.class_names, categories)
    known = _ImageIndex(image for part in SPLITS for s in STREAMS for image in dataset.listed(f"{part}_{s}"))
    wanted = [image.image_id for s in EVALUATED for image in dataset.listed(f"{split}_{s}")]
    rows: dict[int, list[tuple[Any, float, int]]] = {image_id: [] for image_id in wanted}
    ignored = 0
    results = _results(path)
    images, kind = known.find_all(results, image_ids, str(path))
    for index, (result, image) in enumerate(zip(results, images, strict=True)):
        where = f"{path}: detection {index}"
        _check(result, where)
        if type(result["category_id"]) is not int or result["category_id"] not in labels:
            raise InputError(
                f"{where}: category_id {result['category_id']!r} is none of {sorted(labels)}; name the "
                "categories by --prediction_categories=ANNOTATIONS.json, or remove other classes"
            )
        box = _stored(result["bbox"], image, dataset.image_shape, pixels, where)
        if image.image_id in rows:
            rows[image.image_id].append((box, float(result["score"]), labels[result["category_id"]]))
        else:
            ignored += 1
    found = [
        Found(
            image_id,
            np.array([box for box, *_ in row], np.float64).reshape(-1, 4),
            np.array([score for _, score, _ in row], np.float64),
            np.array([label for _, _, label in row], np.int64),
        )
        for image_id, row in rows.items()
    ]
    return Predictions(found, ignored, kind)


class _ImageIndex:
    """The images of a data set by id, by name, and by number for names that are numbers."""

    def __init__(self, images: Iterable[Listed]):
        self._by_id: dict[int, Listed] = {}
        self._by_name: dict[str | int, set[int]] = defaultdict(set)
        for image in images:
            self._by_id[image.image_id] = image
            path = PurePosixPath(image.file_name)
            for name in {image.file_name, path.name, path.stem}:
                self._by_name[name].add(image.image_id)
            if path.stem.isdecimal():
                self._by_name[int(path.stem)].add(image.image_id)

    def find_all(
        self, results: Sequence[Mapping[str, Any]], image_ids: str, path: str
    ) -> tuple[list[Listed], str]:
        """Returns the image of each result, and how integers were interpreted ("id", "name"; "": none).

        Raises:
          InputError: see `read_predictions`.
        """
        auto = image_ids == "auto"
        keys = ["file_name" if auto and "file_name" in result else "image_id" for result in results]
        names = [result[key] for key, result in zip(keys, results, strict=True)]
        first: dict[int, int] = {}  # the first detection of each number
        for index, name in enumerate(names):
            if type(name) is int:
                first.setdefault(name, index)
        kind = self._infer_kind(first, path) if auto else image_ids
        images = [
            self._find(name, kind, f"{path}: detection {index}: {key} {name!r}")
            for index, (key, name) in enumerate(zip(keys, names, strict=True))
        ]
        return images, kind if first else ""

    def _infer_kind(self, first: Mapping[int, int], path: str) -> str:
        """Returns "name" if all integers of a file are names but not all are ids, otherwise "id".

        Raises:
          InputError: they can be both, and stand for different images.
        """
        if any(number not in self._by_name for number in first):
            return "id"
        if any(number not in self._by_id for number in first):
            return "name"
        for number, index in first.items():
            if self._by_name[number] != {number}:
                by_id, by_name = (
                    " or ".join(self._by_id[i].file_name for i in sorted(ids))
                    for ids in ({number}, self._by_name[number])
                )
                raise InputError(
                    f"{path}: detection {index}: image_id {number} may be {by_id} by id or {by_name} by "
                    "name; choose by --image_ids=id or --image_ids=name"
                )
        return "id"

    def _find(self, name: Any, kind: str, where: str) -> Listed:
        """Returns the image of a name or number; `kind`: interpretation of a number, "id" or "name".

        Raises:
          InputError: no image or several images have this name.
        """
        ids: list[int] = []
        if type(name) is int and kind == "id":
            ids = [name] if name in self._by_id else []
        elif type(name) in (int, str):
            ids = sorted(self._by_name.get(name, ()))
        if len(ids) > 1:
            raise InputError(f"{where} may be any of the images {ids}; write the id, and set --image_ids=id")
        if not ids:
            raise InputError(
                f"{where} is not an image of the data set; it must be an id of the annotation file that the "
                "set was prepared from, or a file name (see --image_ids); remove other images"
            )
        return self._by_id[ids[0]]


def _read_json(flag: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: lists nested some thousand deep
        raise InputError(f"{flag}={path}: cannot be read as JSON ({error})") from error


def _results(path: Path) -> list[dict[str, Any]]:
    results = _read_json("--predictions", path)
    if not isinstance(results, list):
        raise InputError(f"--predictions={path}: is not a list; it must be in COCO's results format")
    for index, result in enumerate(results):
        keys = result.keys() if isinstance(result, dict) else ()
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in keys]
        if missing:
            raise InputError(f"{path}: detection {index} has no {', '.join(missing)}")
    return results


def _labels(class_names: Sequence[str], categories: str) -> dict[int, int]:
    """Returns the label of each category id."""
    if not categories:
        return {label + 1: label for label in range(len(class_names))}
    flag = "--prediction_categories"
    document = _read_json(flag, Path(categories).expanduser())
    try:
        named = {row["name"]: int(row["id"]) for row in document["categories"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{flag}={categories}: has no COCO list 'categories' with id and name") from error
    missing = [name for name in class_names if name not in named]
    if missing:
        raise InputError(f"{flag}={categories}: lacks the data set's category {', '.join(missing)}")
    return {named[name]: label for label, name in enumerate(class_names)}


def _check(result: Mapping[str, Any], where: str) -> None:
    numbers = [result["score"], *(result["bbox"] if isinstance(result["bbox"], list) else [])]
    known = len(numbers) == 5 and all(type(v) in (int, float) for v in numbers)
    # JSON integers may exceed the range of a float.
    if not known or not all(abs(v) <= sys.float_info.max for v in numbers) or min(numbers[3:]) < 0:
        raise InputError(
            f"{where}: bbox {result['bbox']!r}, score {result['score']!r}; they must be [x, y, width, "
            "height] with no negative width or height, and a number, all finite; correct or remove it"
        )


def _stored(box: Sequence[float], image: Listed, shape: Sequence[int], pixels: str, where: str) -> np.ndarray:
    """Converts COCO's box to a box [4] in stored pixels. "prepared" images include their padding."""
    height, width = image.source_size if pixels == "original" else shape[:2]
    x, y, w, h = box
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        other = next(name for name in PIXELS if name != pixels)
        raise InputError(
            f"{where}: bbox {box} is outside image {image.image_id} of {width} x {height} pixels; are "
            f"these the {other} images' pixels? (--prediction_pixels={other})"
        )
    scale = np.ones(4)
    if pixels == "original":
        scale = np.tile(np.divide(image.valid_size, image.source_size)[::-1], 2)
    return box_ops.from_xywh(np.array(box, np.float64) * scale).numpy()
