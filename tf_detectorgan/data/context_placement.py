"""Where an object looks at home: places whose surroundings are like those of the labelled objects.

Surroundings are grey levels on a ring just beyond the box. A place's plausibility is a kernel density over
the labelled objects of the class: near in looks, and near in position (decisions 0068, 0033).
Letters: N images, S stored side, C channels, M objects, P places, R points of a ring, GRID cells a side.
Pairs are (vertical, horizontal).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.resampling import valid_mask

GRID = 64  # images are looked at in so many cells a side
POINTS = 12
BEYOND = 1.5  # cells between the box and the ring
APPEARANCE_WIDTH = 0.12  # of the kernel, in standard deviations of the image
POSITION_WIDTH = 0.09  # of the kernel, in sides of the content

_ANGLES = np.arange(POINTS) * 2 * np.pi / POINTS
_DIRECTIONS = np.stack([np.sin(_ANGLES), np.cos(_ANGLES)], axis=1).astype(np.float32)  # [R, 2]


class Context(NamedTuple):
    """What the labelled objects' surroundings look like, and where they are."""

    rings: tf.Tensor  # [M, R]
    places: tf.Tensor  # [M, 2] middles of the boxes, in sides of the content
    labels: tf.Tensor  # [M] int32


def learn(images, valid_sizes, boxes, labels, mirrored: bool) -> Context:
    """From objects' images [M, S, S, C], their sizes [M, 2] int32, boxes [M, 4] and labels [M] int32.

    `mirrored`: the mirror image of each counts as well.
    """
    side = float(images.shape[1])
    x, y, width, height = tf.unstack(box_ops.to_center(boxes) / side, axis=-1)
    middles, halves = tf.stack([y, x], -1), tf.stack([height, width], -1) / 2
    rings = _rings(_thumbnails(images, valid_sizes), middles[:, None], halves)[:, 0]
    places = middles * side / tf.cast(valid_sizes, tf.float32)
    if mirrored:
        other = tf.gather(rings, (POINTS // 2 - np.arange(POINTS)) % POINTS, axis=1)  # angle to pi - angle
        rings, places = tf.concat([rings, other], 0), tf.concat([places, places * [1, -1] + [0, 1]], 0)
        labels = tf.concat([labels, labels], 0)
    return Context(rings, places, labels)


def choose(context: Context, images, valid_sizes, extents, labels, bounds, draw) -> tf.Tensor:
    """Places for boxes of `extents` [N, 2] in images [N, S, S, C], by draws [N]: middles [N, 2]; in pixels.

    Chosen among the middles of the GRID * GRID cells that reach into `bounds`, a pair of first and last
    middle [N, 2], by their plausibility for an object of its class, `labels` [N]; `context` knows each class.
    """
    side = float(images.shape[1])
    halves = extents / (2 * side)
    cells = (tf.range(GRID, dtype=tf.float32) + 0.5) / GRID
    grid = tf.reshape(tf.stack(tf.meshgrid(cells, cells, indexing="ij"), axis=-1), [1, -1, 2])
    rings = _rings(_thumbnails(images, valid_sizes), grid, halves)  # [N, P, R]
    limits = tf.cast(valid_sizes, tf.float32)[:, None] / side
    kernel = -_squared_distances(_scaled(rings, grid / limits), _scaled(context.rings, context.places)) / 2
    alike = (labels[:, None] == context.labels)[:, None]  # [N, 1, M]
    density = tf.reduce_logsumexp(tf.where(alike, kernel, -np.inf), axis=-1)
    first, last = (bound[:, None] / side for bound in bounds)
    # Half a cell, and a little for rounding.
    reaches = tf.reduce_all(tf.maximum(first - grid, grid - last) <= 0.505 / GRID, axis=-1)
    density = tf.where(reaches, density, -1e9)
    total = tf.cumsum(tf.nn.softmax(tf.cast(density, tf.float64), axis=-1), axis=-1)
    wanted = tf.cast(draw, tf.float64)[:, None] * total[:, -1:]
    place = tf.searchsorted(total, wanted, side="right")[:, 0]
    return tf.gather(grid[0], tf.minimum(place, GRID * GRID - 1)) * side


def _scaled(rings, places) -> tf.Tensor:
    """[..., R + 2]: looks and position in widths of their kernels."""
    return tf.concat([rings / (APPEARANCE_WIDTH * POINTS**0.5), places / POSITION_WIDTH], axis=-1)


def _squared_distances(places, objects) -> tf.Tensor:
    """[N, P, M]: of places [N, P, D] and objects [M, D]."""
    return (
        tf.reduce_sum(places**2, -1)[..., None]
        + tf.reduce_sum(objects**2, -1)
        - 2.0 * tf.einsum("npd,md->npm", places, objects)
    )


def _thumbnails(images, valid_sizes) -> tf.Tensor:
    """[N, GRID, GRID]: grey levels of the content with mean 0 and deviation 1, blurred over 3 cells."""
    inside = tf.cast(valid_mask(valid_sizes, images.shape[1]), tf.float32)
    grey = tf.reduce_mean(images, axis=-1, keepdims=True)
    count = tf.reduce_sum(inside, [1, 2], keepdims=True)
    grey = (grey - tf.reduce_sum(grey * inside, [1, 2], keepdims=True) / count) * inside
    spread = tf.sqrt(tf.reduce_sum(grey**2, [1, 2], keepdims=True) / count)
    small = tf.image.resize(tf.math.divide_no_nan(grey, spread), [GRID, GRID], method="area")
    return tf.nn.avg_pool2d(small, 3, 1, "SAME")[..., 0]


def _rings(thumbnails, middles, halves) -> tf.Tensor:
    """[N, P, R]: grey levels BEYOND cells around boxes of half sides [N, 2] at middles [N or 1, P, 2]."""
    radius = (halves * GRID + BEYOND)[:, None, None]
    points = middles[:, :, None] * GRID + radius * _DIRECTIONS
    row, column = tf.unstack(tf.clip_by_value(tf.floor(points), 0.0, GRID - 1.0), axis=-1)
    flat = tf.reshape(thumbnails, [-1, GRID * GRID])
    return tf.gather(flat, tf.cast(row * GRID + column, tf.int32), axis=1, batch_dims=1)
