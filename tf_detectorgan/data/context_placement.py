"""Context-based placement: draws positions whose surroundings resemble those of labelled objects.

The surroundings of a position are the grey levels on a ring just outside of the box. The probability of a
position is a kernel density over the labelled objects of the class, with one kernel in the ring's grey levels
and one in the position (decisions 0068, 0033).
Letters: N images, S stored side, C channels, M objects, P positions, R points of a ring, GRID cells a side.
Pairs are (vertical, horizontal).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.resampling import valid_mask

GRID = 64  # cells a side of the reduced images in which positions are drawn
POINTS = 12
DISTANCE = 1.5  # of the ring from the box, in cells
APPEARANCE_WIDTH = 0.12  # of the kernel in grey levels, in standard deviations of the image
POSITION_WIDTH = 0.09  # of the kernel in positions, in sides of the content

_ANGLES = np.arange(POINTS) * 2 * np.pi / POINTS
_DIRECTIONS = np.stack([np.sin(_ANGLES), np.cos(_ANGLES)], axis=1).astype(np.float32)  # [R, 2]


class Context(NamedTuple):
    """Surroundings and positions of the labelled objects: the points of the kernel density."""

    rings: tf.Tensor  # [M, R] grey levels
    positions: tf.Tensor  # [M, 2] centres of the boxes, in sides of the content
    labels: tf.Tensor  # [M] int32


def fit(images, valid_sizes, boxes, labels, mirrored: bool) -> Context:
    """Returns the context of labelled objects.

    Args:
      images, valid_sizes: [M, S, S, C] and [M, 2] int32, the image of each object and its content's size.
      boxes, labels: [M, 4] and [M] int32.
      mirrored: add the mirror image of each object.
    """
    side = float(images.shape[1])
    x, y, width, height = tf.unstack(box_ops.to_center(boxes) / side, axis=-1)
    middles, halves = tf.stack([y, x], -1), tf.stack([height, width], -1) / 2
    rings = _rings(_thumbnails(images, valid_sizes), middles[:, None], halves)[:, 0]
    positions = middles * side / tf.cast(valid_sizes, tf.float32)
    if mirrored:
        other = tf.gather(rings, (POINTS // 2 - np.arange(POINTS)) % POINTS, axis=1)  # angle to pi - angle
        rings, positions = (
            tf.concat([rings, other], 0),
            tf.concat([positions, positions * [1, -1] + [0, 1]], 0),
        )
        labels = tf.concat([labels, labels], 0)
    return Context(rings, positions, labels)


def draw_positions(context: Context, images, valid_sizes, extents, labels, bounds, draw) -> tf.Tensor:
    """Draws the centres [N, 2] of boxes in pixels, by the kernel density of each box's class.

    Candidates are the centres of the GRID * GRID cells that overlap `bounds`.

    Args:
      context: of objects of every class in `labels`.
      images, valid_sizes: [N, S, S, C] and [N, 2] int32.
      extents: [N, 2] height and width of the boxes, in pixels.
      labels: [N] int32.
      bounds: first and last allowed centre, a pair of [N, 2].
      draw: [N] random numbers in [0, 1).
    """
    side = float(images.shape[1])
    halves = extents / (2 * side)
    cells = (tf.range(GRID, dtype=tf.float32) + 0.5) / GRID
    grid = tf.reshape(tf.stack(tf.meshgrid(cells, cells, indexing="ij"), axis=-1), [1, -1, 2])
    rings = _rings(_thumbnails(images, valid_sizes), grid, halves)  # [N, P, R]
    limits = tf.cast(valid_sizes, tf.float32)[:, None] / side
    kernel = -_squared_distances(_scaled(rings, grid / limits), _scaled(context.rings, context.positions)) / 2
    same_class = (labels[:, None] == context.labels)[:, None]  # [N, 1, M]
    density = tf.reduce_logsumexp(tf.where(same_class, kernel, -np.inf), axis=-1)
    first, last = (bound[:, None] / side for bound in bounds)
    # Half a cell, and a little for rounding.
    reaches = tf.reduce_all(tf.maximum(first - grid, grid - last) <= 0.505 / GRID, axis=-1)
    density = tf.where(reaches, density, -1e9)
    total = tf.cumsum(tf.nn.softmax(tf.cast(density, tf.float64), axis=-1), axis=-1)
    target = tf.cast(draw, tf.float64)[:, None] * total[:, -1:]
    chosen = tf.searchsorted(total, target, side="right")[:, 0]
    return tf.gather(grid[0], tf.minimum(chosen, GRID * GRID - 1)) * side


def _scaled(rings, positions) -> tf.Tensor:
    """Returns [..., R + 2]: rings and positions, each divided by the width of its kernel."""
    return tf.concat([rings / (APPEARANCE_WIDTH * POINTS**0.5), positions / POSITION_WIDTH], axis=-1)


def _squared_distances(positions, objects) -> tf.Tensor:
    """Returns the squared distances [N, P, M] of positions [N, P, D] to objects [M, D]."""
    return (
        tf.reduce_sum(positions**2, -1)[..., None]
        + tf.reduce_sum(objects**2, -1)
        - 2.0 * tf.einsum("npd,md->npm", positions, objects)
    )


def _thumbnails(images, valid_sizes) -> tf.Tensor:
    """Returns reduced images [N, GRID, GRID]: grey levels of mean 0 and deviation 1, blurred over 3 cells."""
    inside = tf.cast(valid_mask(valid_sizes, images.shape[1]), tf.float32)
    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    count = tf.reduce_sum(inside, [1, 2], keepdims=True)
    grey = (grey - tf.reduce_sum(grey * inside, [1, 2], keepdims=True) / count) * inside
    deviation = tf.sqrt(tf.reduce_sum(grey**2, [1, 2], keepdims=True) / count)
    small = tf.image.resize(tf.math.divide_no_nan(grey, deviation), [GRID, GRID], method="area")
    return tf.nn.avg_pool2d(small, 3, 1, "SAME")[..., 0]


def _rings(thumbnails, middles, halves) -> tf.Tensor:
    """Returns the grey levels [N, P, R] on rings around boxes of half sides [N, 2].

    The boxes' centres are `middles` [N or 1, P, 2].
    """
    radius = (halves * GRID + DISTANCE)[:, None, None]
    points = middles[:, :, None] * GRID + radius * _DIRECTIONS
    row, column = tf.unstack(tf.clip_by_value(tf.floor(points), 0.0, GRID - 1.0), axis=-1)
    flat = tf.reshape(thumbnails, [-1, GRID * GRID])
    return tf.gather(flat, tf.cast(row * GRID + column, tf.int32), axis=1, batch_dims=1)
