"""Points of an anchor-free detector (FCOS, Tian et al. 2019): layout, matching to boxes, decoding.

The prediction at a point is its distances to the sides of the box (left, top, right, bottom), in strides of
its level. Letters: N images, K boxes, P points.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.losses import BACKGROUND


class Points(NamedTuple):
    """All points of an image, in the order of levels, rows, columns."""

    centers: tf.Tensor  # [P, 2] float32 (x, y) in pixels
    strides: tf.Tensor  # [P] float32 pixels
    reach: tf.Tensor  # [P, 2] float32 (low, high]: range of the longest distance to a side of the box


class PointTargets(NamedTuple):
    """The training targets of each point."""

    classes: tf.Tensor  # [N, P] int32: class or BACKGROUND
    distances: tf.Tensor  # [N, P, 4] in strides, all positive; 1 where there is no box
    centerness: tf.Tensor  # [N, P] in [0, 1], 0 where there is no box


def make_points(height: int, width: int, strides: tuple[int, ...], reach: tuple[float, ...]) -> Points:
    """Returns one point in the middle of each cell.

    reach: largest distance to a side, in pixels, for each level but the last (Tian et al. 2019, 3.2).
    """
    bounds = [0.0, *reach, float("inf")]
    centers, of_stride, of_reach = [], [], []
    for stride, (low, high) in zip(strides, itertools.pairwise(bounds), strict=True):
        y, x = tf.meshgrid(
            *(tf.range(stride / 2, side, stride, dtype=tf.float32) for side in (height, width)), indexing="ij"
        )
        centers.append(tf.stack([tf.reshape(x, [-1]), tf.reshape(y, [-1])], -1))
        count = centers[-1].shape[0]
        of_stride.append(tf.fill([count], float(stride)))
        of_reach.append(tf.tile(tf.constant([[low, high]], tf.float32), [count, 1]))
    return Points(*(tf.concat(parts, 0) for parts in (centers, of_stride, of_reach)))


def claims(points: Points, boxes, radius: float):
    """Returns which points [P] can be positive for which boxes [..., K, 4], and the distances in pixels.

    The point must be inside the box, at most `radius` strides from its centre in both directions (Tian et al.
    2020, "center sampling"), and on the level for the box's size.

    Returns:
      claimed [..., P, K] bool; distances [..., P, K, 4] pixels, negative outside of the box.
    """
    x, y = points.centers[:, None, 0], points.centers[:, None, 1]
    x0, y0, x1, y1 = tf.unstack(boxes[..., None, :, :], axis=-1)
    distances = tf.stack([x - x0, y - y0, x1 - x, y1 - y], -1)
    longest = tf.reduce_max(distances, -1)
    off_centre = tf.maximum(tf.abs(x - (x0 + x1) / 2), tf.abs(y - (y0 + y1) / 2))
    claimed = (
        (tf.reduce_min(distances, -1) > 0)
        & (off_centre <= radius * points.strides[:, None])
        & (longest > points.reach[:, None, 0])
        & (longest <= points.reach[:, None, 1])
    )
    return claimed, distances


def match(points: Points, boxes, labels, radius: float) -> PointTargets:
    """Returns the targets for boxes [N, K, 4] with labels [N, K] (-1: padding).

    A point in several boxes is assigned to the smallest (Tian et al. 2019, 3.1).
    """
    boxes = tf.stop_gradient(boxes)
    claimed, distances = claims(points, boxes, radius)
    claimed &= (labels >= 0)[:, None, :]
    area = tf.where(claimed, boxes_lib.area(boxes)[:, None, :], float("inf"))
    best = tf.argmin(area, -1, output_type=tf.int32)
    positive = tf.reduce_any(claimed, -1)
    classes = tf.where(positive, tf.gather(labels, best, batch_dims=1), BACKGROUND)
    chosen = tf.gather(distances, best, batch_dims=2) / points.strides[:, None]
    chosen = tf.where(positive[..., None], chosen, 1.0)
    left, top, right, bottom = tf.unstack(chosen, axis=-1)
    # Tian et al. 2019, eqn 3.
    centerness = tf.sqrt(
        tf.minimum(left, right) / tf.maximum(left, right) * tf.minimum(top, bottom) / tf.maximum(top, bottom)
    )
    return PointTargets(classes, chosen, tf.where(positive, centerness, 0.0))


def decode(points: Points, distances):
    """Converts distances [N, P, 4] in strides to boxes [N, P, 4] in pixels."""
    left, top, right, bottom = tf.unstack(distances * points.strides[:, None], axis=-1)
    x, y = points.centers[:, 0], points.centers[:, 1]
    return tf.stack([x - left, y - top, x + right, y + bottom], -1)
