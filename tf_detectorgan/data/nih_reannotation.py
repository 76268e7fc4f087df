"""Reads re-annotated boxes of NIH ChestX-ray14, which has one box per image (Liu et al. 2019, 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tf_detectorgan.data import image_files, nih_tables
from tf_detectorgan.data.formats import coco_file
from tf_detectorgan.data.nih_tables import SIDE, Box
from tf_detectorgan.errors import InputError


def read(path: Path, finding: str) -> dict[str, list[Box]]:
    """Returns the boxes of a finding by file name, in pixels of the tables, from COCO (.json) or CSV.

    A CSV file has the columns of `BBox_List_2017.csv`, and may have several rows per image. If the annotators
    found nothing in an image, a COCO file lists it without boxes: its list is empty.

    Raises:
      InputError: the file has neither format, or a row is invalid.
    """
    if path.suffix.lower() == ".json":
        return _read_coco(path, finding)
    boxes = nih_tables.read_boxes(path)
    if finding not in boxes:
        raise InputError(
            f"--extra_annotations={path}: no box of {finding}, only of {', '.join(boxes) or 'nothing'}"
        )
    return dict(boxes[finding])


def _read_coco(path: Path, finding: str) -> dict[str, list[Box]]:
    document = coco_file.document(path, "--extra_annotations")
    names = {_integer(path, "category", row, "id"): str(row.get("name")) for row in document.categories}
    selected = {k for k, name in names.items() if nih_tables.spelling(name.strip().capitalize()) == finding}
    if not selected:
        raise InputError(f"{path}: no category is named {finding}, only {', '.join(names.values())}")
    images = {}
    for row in document.images:
        number = _integer(path, "image", row, "id")
        name = nih_tables.checked_name(f"{path}: image {number}", str(row.get("file_name")).split("/")[-1])
        width, height = (_integer(path, "image", {key: SIDE, **row}, key) for key in ("width", "height"))
        if number in images:
            raise InputError(f"{path}: image {number} ({name}): the id {number} is given twice")
        if min(width, height) < 1:
            raise InputError(f"{path}: image {number} ({name}): width x height is {width} x {height}")
        images[number] = (name, width, height)
    result: dict[str, list[Box]] = {name: [] for name, _, _ in images.values()}
    for row in document.annotations:
        if _integer(path, "annotation", row, "category_id") not in selected:
            continue
        where, number = f"{path}: annotation {row.get('id')}", _integer(path, "annotation", row, "image_id")
        if number not in images:
            raise InputError(f"{where}: image_id {number} is not the id of an image")
        name, width, height = images[number]
        if (fault := image_files.box_fault(row.get("bbox"), height, width)) is not None:
            raise InputError(f"{where} ({name}): bbox {row.get('bbox')!r} {fault[1]}")
        x, y, w, h = row["bbox"]
        result[name].append((x * SIDE / width, y * SIDE / height, w * SIDE / width, h * SIDE / height))
    return result


def _integer(path: Path, kind: str, row: Mapping[str, Any], key: str) -> int:
    value = row.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"{path}: {kind} {row}: {key} is {value!r}, must be an integer")
    return value
