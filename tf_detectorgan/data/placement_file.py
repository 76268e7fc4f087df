"""Boxes for clean images from a user's file: CSV with a header line, or a JSON list of objects.

Each row names an image by `file_name` or `image_id` and has `x`, `y`, `w`, `h` (top-left corner and size in
pixels of the *original* image, as in COCO) and `label` (a class name). An image with several rows uses one at
random.
Letters: N images, R rows, M images of the split.
"""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data import draws as random
from tf_detectorgan.data.placement import Given
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError

NUMBERS = ("x", "y", "w", "h")
TOLERANCE = 0.5  # pixels of the original that a box may stick out, for annotations rounded to pixels


class PlacementTable(NamedTuple):
    """The rows of all clean images, ordered by image."""

    image_ids: tf.Tensor  # [M] int64, ascending
    first: tf.Tensor  # [M] int32, where the image's rows begin
    count: tf.Tensor  # [M] int32, at least 1
    boxes: tf.Tensor  # [R, 4] stored pixels
    labels: tf.Tensor  # [R] int32


def read_placements(path: str, dataset: Dataset, split: str = "train_clean") -> PlacementTable:
    """The boxes of `path` for every image of `split`; rows about other images are not looked at.

    Raises:
      InputError: the file cannot be read, a value is missing, no number, outside its image or an unknown
        class, or an image of the split has no row.
    """
    rows = defaultdict(list)
    for where, row in _rows(Path(path)):
        rows[_image_name(where, row)].append((where, row))
    images = sorted(_images(dataset, split))
    ids, counts, boxes, labels = [], [], [], []
    missing = []
    for image_id, file_name, valid_size, source_size in images:
        mine = rows.get(("image_id", str(image_id)), []) + rows.get(("file_name", file_name), [])
        if not mine:
            missing.append(file_name)
        ids.append(image_id)
        counts.append(len(mine))
        for where, row in mine:
            boxes.append(_box(where, row, valid_size, source_size))
            labels.append(_label(where, row, dataset.class_names))
    if missing:
        raise InputError(
            f"{path}: no box for {len(missing)} of {len(images)} images of {split}, the first is file_name "
            f"{missing[0]}; add a row for each or choose another placement"
        )
    first = np.cumsum([0] + counts[:-1])
    return PlacementTable(
        tf.constant(ids, tf.int64),
        tf.constant(first, tf.int32),
        tf.constant(counts, tf.int32),
        box_ops.from_xywh(tf.constant(boxes, tf.float32)),
        tf.constant(labels, tf.int32),
    )


def look_up(table: PlacementTable, image_ids, draws) -> Given:
    """One box for each of `image_ids` [N] by `draws` [N] in [0, 1)."""
    place = tf.searchsorted(table.image_ids, image_ids)
    row = tf.gather(table.first, place) + random.pick(draws, tf.gather(table.count, place))
    return Given(tf.gather(table.boxes, row), tf.gather(table.labels, row))


def _rows(path: Path):
    """(where, row) of every row; `where` says file and row for messages."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        is_json = path.suffix.lower() == ".json"
        rows: Any = json.loads(text) if is_json else list(csv.DictReader(text.splitlines()))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV or JSON ({error})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: must be a list of objects with file_name (or image_id), x, y, w, h, label")
    if not rows:
        raise InputError(f"{path}: has no rows")
    return [(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1)]


def _image_name(where, row):
    for field in ("image_id", "file_name"):
        if row.get(field) not in (None, ""):
            return field, str(row[field])
    raise InputError(f"{where}: neither file_name nor image_id is given")


def _images(dataset, split):
    def describe(serialized):
        record = dataset.decode(serialized)  # TensorFlow leaves out the pixels, as nothing asks for them
        return record.image_id, record.file_name, record.valid_size, record.source_size

    for image_id, name, valid, source in dataset.serialized(split).map(describe).as_numpy_iterator():
        yield int(image_id), name.decode(), tuple(map(int, valid)), tuple(map(int, source))


def _box(where, row, valid_size, source_size):
    """(x, y, w, h) in stored pixels."""
    values = []
    for field in NUMBERS:
        try:
            value = float(row.get(field))
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value) or (field in "wh" and value <= 0):
            raise InputError(
                f"{where}: {field}={row.get(field)!r} is not a {'positive ' * (field in 'wh')}number"
            )
        values.append(value)
    x, y, w, h = values
    height, width = source_size
    if min(x, y) < -TOLERANCE or x + w > width + TOLERANCE or y + h > height + TOLERANCE:
        raise InputError(
            f"{where}: box x,y,w,h={x:g},{y:g},{w:g},{h:g} is not inside its image ({width}x{height} pixels)"
        )
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    across, down = valid_size[1] / width, valid_size[0] / height
    return x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down


def _label(where, row, class_names):
    name = row.get("label")
    if name not in class_names:
        raise InputError(f"{where}: label={name!r} is none of the classes {', '.join(class_names)}")
    return class_names.index(name)
