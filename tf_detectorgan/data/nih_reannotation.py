"""Boxes that readers drew anew on NIH ChestX-ray14, one box an image so far (Liu et al. 2019, 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_detectorgan.data import image_files, nih_tables
from tf_detectorgan.data.formats import coco_file
from tf_detectorgan.data.nih_tables import SIDE, Box
from tf_detectorgan.errors import InputError


def read(path: Path, finding: str) -> dict[str, list[Box]]:
    """Boxes of a finding by file name, in the tables' pixels: of a COCO file (.json) or a CSV.

    A CSV has the form of `BBox_List_2017.csv`, several rows an image. A COCO file may also name images on
    which the readers saw nothing: their lists are empty.

    Raises:
      InputError: the file is of neither form, or a row of it is wrong.
    """
    if path.suffix.lower() == ".json":
        return _read_coco(path, finding)
    boxes = nih_tables.read_boxes(path)
    if finding not in boxes:
        raise InputError(
            f"--extra_annotations={path}: has no {finding}, only {', '.join(boxes) or 'a header'}"
        )
    return dict(boxes[finding])


def _read_coco(path: Path, finding: str) -> dict[str, list[Box]]:
    document = coco_file.document(path, "--extra_annotations")
    names = {_whole(path, "category", row, "id"): str(row.get("name")) for row in document.categories}
    wanted = {k for k, name in names.items() if nih_tables.spelt(name.strip().capitalize()) == finding}
    if not wanted:
        raise InputError(f"{path}: no category is called {finding}, only {', '.join(names.values())}")
    images = {}
    for row in document.images:
        number = _whole(path, "image", row, "id")
        name = nih_tables.checked_name(f"{path}: image {number}", str(row.get("file_name")).split("/")[-1])
        width, height = (_whole(path, "image", {key: SIDE, **row}, key) for key in ("width", "height"))
        if number in images:
            raise InputError(f"{path}: image {number} ({name}): the id {number} is there twice")
        if min(width, height) < 1:
            raise InputError(f"{path}: image {number} ({name}): has {width} x {height} pixels")
        images[number] = (name, width, height)
    result: dict[str, list[Box]] = {name: [] for name, _, _ in images.values()}
    for row in document.annotations:
        if _whole(path, "annotation", row, "category_id") not in wanted:
            continue
        who, number = f"{path}: annotation {row.get('id')}", _whole(path, "annotation", row, "image_id")
        if number not in images:
            raise InputError(f"{who}: image_id {number} is not among the images")
        name, width, height = images[number]
        if (fault := image_files.box_fault(row.get("bbox"), height, width)) is not None:
            raise InputError(f"{who} ({name}): bbox {row.get('bbox')!r} {fault[1]}")
        x, y, w, h = row["bbox"]
        result[name].append((x * SIDE / width, y * SIDE / height, w * SIDE / width, h * SIDE / height))
    return result


def _whole(path: Path, kind: str, row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{path}: {kind} {row}: {key} is {value!r}, no whole number")
    return value
