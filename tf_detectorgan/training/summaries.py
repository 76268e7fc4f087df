"""TensorBoard summaries: scalars, and pictures of the generators' inputs and outputs."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Insertion, Labelled

ROWS = 4  # images per picture


class Writer:
    """Writes scalars and images to one TensorBoard run; `prefix` is the group of their names."""

    def __init__(self, directory: Path, prefix: str):
        self._writer = tf.summary.create_file_writer(str(directory))
        self._prefix = prefix

    def scalars(self, step: int, values: dict[str, float]) -> None:
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(f"{self._prefix}/{name}", value)
        self._writer.flush()

    def image(self, name: str, step: int, picture) -> None:
        """`picture`: [N, H, W, C] in [-1, 1]."""
        with self._writer.as_default(step):
            tf.summary.image(f"{self._prefix}/{name}", (picture + 1) / 2)
        self._writer.flush()


def insertion_picture(x, insertion: Insertion, x_syn, y: Labelled, y_clean):
    """Returns a picture [1, rows H, 6 W, 3] with one row per image; inputs are [N, H, W, C] in [-1, 1].

    Columns: x, x_syn with its box, their difference; y with its boxes, y without objects, their difference.
    Differences are multiplied by 2 and shown around grey.
    """
    columns = [
        x,
        _boxed(x_syn, insertion.boxes[:, None]),
        tf.clip_by_value(2 * (x_syn - x), -1, 1),
        _boxed(y.images, y.boxes),
        y_clean,
        tf.clip_by_value(2 * (y_clean - y.images), -1, 1),
    ]
    rows = tf.concat([_colour(column)[:ROWS] for column in columns], axis=2)
    return tf.reshape(rows, [1, -1, *rows.shape[2:]])


def _colour(images):
    return tf.image.grayscale_to_rgb(images) if images.shape[-1] == 1 else images


def _boxed(images, boxes):
    images = _colour(images)
    relative = boxes_lib.to_relative_yxyx(boxes, *images.shape[1:3])
    return tf.image.draw_bounding_boxes(images, relative, colors=[[1.0, -1.0, -1.0]])
