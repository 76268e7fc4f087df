"""Moves, mirrors and scales image content. The same map, given to `boxes.affine`, moves the boxes along.

The map is axis-aligned: a point (continuous coordinate, pixel i has its centre at i + 0.5) goes to
scale * point + offset. It only ever reads *valid* content: padding at the right and the bottom is not dragged
in.
Letters: N images, S the stored side, C channels. Pairs are (vertical, horizontal), as in `valid_sizes`.
"""

from __future__ import annotations

import tensorflow as tf


def resample(images, scale, offset, valid_sizes) -> tf.Tensor:
    """Bilinear image of the map; beyond the valid content its edge is repeated.

    A whole-pixel shift or mirror copies pixels bit by bit.

    Args:
      images: [N, S, S, C] float32.
      scale: [N, 2] float32, negative to mirror, not 0.
      offset: [N, 2] float32 in pixels.
      valid_sizes: [N, 2] int32, height and width of the content of `images`.

    Returns:
      [N, S, S, C] float32.
    """
    for axis in (0, 1):
        rows = _along_rows(images, scale[:, axis], offset[:, axis], valid_sizes[:, axis])
        images = tf.transpose(rows, [0, 2, 1, 3])  # gathering columns would take ten times as long
    return images


def _along_rows(images, scale, offset, size):
    centre = tf.range(images.shape[1], dtype=tf.float32) + 0.5
    source = (centre - offset[:, None]) / scale[:, None] - 0.5
    last = tf.cast(size, tf.float32)[:, None] - 1.0
    source = tf.clip_by_value(source, 0.0, last)
    low = tf.floor(source)
    first = tf.gather(images, tf.cast(low, tf.int32), axis=1, batch_dims=1)
    second = tf.gather(images, tf.cast(tf.minimum(low + 1.0, last), tf.int32), axis=1, batch_dims=1)
    return first + (source - low)[:, :, None, None] * (second - first)  # exactly `first` at fraction 0


def valid_mask(valid_sizes, side: int) -> tf.Tensor:
    """True on the content, False on the padding: bool [N, side, side, 1]."""
    rows, columns = (tf.sequence_mask(valid_sizes[:, axis], side) for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[..., None]
