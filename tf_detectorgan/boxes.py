"""Functions of boxes. Only this file depends on the order of a box's coordinates.

A box is float32 (x0, y0, x1, y1) in pixels of the stored image. The origin is its top-left corner, and x1 and
y1 are edges (width = x1 - x0). Letters: N and M boxes, H and W the image's height and width.
"""

from __future__ import annotations

import tensorflow as tf


def from_xywh(boxes):
    """Converts COCO's (x, y, width, height) [..., 4] to (x0, y0, x1, y1), with the same unit and dtype."""
    x, y, w, h = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.stack([x, y, x + w, y + h], axis=-1)


def to_xywh(boxes):
    """Inverse of `from_xywh`."""
    x0, y0, x1, y1 = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.stack([x0, y0, x1 - x0, y1 - y0], axis=-1)


def from_center(boxes):
    """Converts (center x, center y, width, height) [..., 4] to (x0, y0, x1, y1)."""
    cx, cy, w, h = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], axis=-1)


def to_center(boxes):
    """Inverse of `from_center`."""
    x0, y0, x1, y1 = tf.unstack(tf.convert_to_tensor(boxes), axis=-1)
    return tf.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=-1)


def longer_side(boxes):
    """Returns the greater of width and height [...] of boxes [..., 4]."""
    return tf.reduce_max(to_xywh(boxes)[..., 2:], -1)


def to_relative_yxyx(boxes, height, width):
    """Converts boxes [..., 4] to fractions (y0, x0, y1, x1) of the image's sides, as in TensorFlow's ops."""
    x0, y0, x1, y1 = tf.unstack(tf.cast(boxes, tf.float32), axis=-1)
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    return tf.stack([y0 / height, x0 / width, y1 / height, x1 / width], axis=-1)


def of_sizes(sizes):
    """Returns the boxes [..., 4] of whole images of sizes [..., 2], (height, width) in any dtype."""
    height, width = tf.unstack(tf.cast(sizes, tf.float32), axis=-1)
    return tf.stack([tf.zeros_like(width), tf.zeros_like(height), width, height], axis=-1)


def area(boxes):
    """Returns the areas [...] in square pixels; 0 for a box without extent or a padded box."""
    x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
    return tf.maximum(x1 - x0, 0.0) * tf.maximum(y1 - y0, 0.0)


def intersection(a, b):
    """Returns the pairwise overlap [..., N, M] in square pixels of a [..., N, 4] and b [..., M, 4]."""
    a, b = tf.expand_dims(a, -2), tf.expand_dims(b, -3)
    low = tf.maximum(a[..., :2], b[..., :2])
    high = tf.minimum(a[..., 2:], b[..., 2:])
    extent = tf.maximum(high - low, 0.0)
    return extent[..., 0] * extent[..., 1]


def iou(a, b):
    """Returns the pairwise intersection over *union* [..., N, M]; 0 if both boxes are empty."""
    overlap = intersection(a, b)
    union = tf.expand_dims(area(a), -1) + tf.expand_dims(area(b), -2) - overlap
    return tf.math.divide_no_nan(overlap, union)


def iobb(detected, truth):
    """Returns pairwise intersection over the *detected* area [..., N, M] (IoBB, Wang et al. 2017, 4.2)."""
    return tf.math.divide_no_nan(intersection(detected, truth), tf.expand_dims(area(detected), -1))


def shift(boxes, dx, dy):
    """Returns boxes [..., 4] moved right by dx and down by dy pixels (scalars or [...])."""
    dx, dy = tf.cast(dx, boxes.dtype), tf.cast(dy, boxes.dtype)
    return boxes + tf.stack([dx, dy, dx, dy], axis=-1)


def affine(boxes, scale, offset):
    """Returns boxes [..., 4] mapped by point -> scale * point + offset; a negative scale mirrors.

    `scale` and `offset` are [..., 2], (vertical, horizontal), and broadcast against the boxes.
    """
    x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
    (sy, sx), (ty, tx) = tf.unstack(scale, axis=-1), tf.unstack(offset, axis=-1)
    xa, xb, ya, yb = sx * x0 + tx, sx * x1 + tx, sy * y0 + ty, sy * y1 + ty
    return tf.stack([tf.minimum(xa, xb), tf.minimum(ya, yb), tf.maximum(xa, xb), tf.maximum(ya, yb)], axis=-1)


def clip(boxes, height, width):
    """Returns boxes [..., 4] clipped to [0, width] x [0, height]; height and width: scalars or [...]."""
    height, width = tf.cast(height, boxes.dtype), tf.cast(width, boxes.dtype)
    x0, y0, x1, y1 = tf.unstack(boxes, axis=-1)
    return tf.stack(
        [
            tf.clip_by_value(x0, 0.0, width),
            tf.clip_by_value(y0, 0.0, height),
            tf.clip_by_value(x1, 0.0, width),
            tf.clip_by_value(y1, 0.0, height),
        ],
        axis=-1,
    )


def dilate(boxes, margin):
    """Returns boxes [..., 4] enlarged on every side by `margin` pixels (scalar or [...])."""
    margin = tf.cast(margin, boxes.dtype)
    return boxes + tf.stack([-margin, -margin, margin, margin], axis=-1)


def mask(boxes, height: int, width: int):
    """Returns masks [..., height, width] of boxes [..., 4]: 1.0 where a pixel's centre is inside, else 0."""
    x0, y0, x1, y1 = tf.unstack(boxes[..., None, None, :], axis=-1)
    x = tf.range(width, dtype=boxes.dtype) + 0.5
    y = tf.range(height, dtype=boxes.dtype)[:, None] + 0.5
    return tf.cast((x >= x0) & (x < x1) & (y >= y0) & (y < y1), tf.float32)


def feathered_mask(boxes, height: int, width: int, feather):
    """Returns masks [..., height, width] that fall from 1 to 0 within `feather` pixels outside the box.

    `feather` is a positive scalar (0 gives NaN), or broadcasts against the result.

    The mask is 1 in the box, 0 at more than `feather` pixels from it, by the Euclidean distance.
    """
    x0, y0, x1, y1 = tf.unstack(boxes[..., None, None, :], axis=-1)
    x = tf.range(width, dtype=boxes.dtype) + 0.5
    y = tf.range(height, dtype=boxes.dtype)[:, None] + 0.5
    dx = tf.maximum(tf.maximum(x0 - x, x - x1), 0.0)
    dy = tf.maximum(tf.maximum(y0 - y, y - y1), 0.0)
    distance = tf.sqrt(dx * dx + dy * dy)
    return tf.clip_by_value(1.0 - distance / feather, 0.0, 1.0)
