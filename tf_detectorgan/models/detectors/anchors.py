"""Anchors: layout (by KerasCV), matching to boxes, encoding and decoding of box offsets.

Letters: N images, K boxes, A anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import keras_cv
import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.errors import InputError
from tf_detectorgan.losses import BACKGROUND, IGNORED

VARIANCE = (0.1, 0.1, 0.2, 0.2)  # as in KerasCV's RetinaNet, so that its decoder fits our network
MATCH_IOU = (0.5, 0.4)  # positive at or above the first, background below the second; Lin et al. 2017, 4.1


@dataclass(frozen=True)
class Layout:
    """Anchors of every cell of every level: one for each pair of scale and ratio.

    Attributes:
      strides: sides of a cell in pixels, one per level.
      sizes: sides of the anchors in pixels, one per level.
      ratios: their widths over heights.
      scales: multiples of the sizes.

    Raises:
      InputError: the numbers of sizes and strides differ.
    """

    strides: tuple[int, ...]
    sizes: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    scales: tuple[float, ...] = (1.0, 1.26, 1.59)

    def __post_init__(self):
        if len(self.strides) != len(self.sizes):
            raise InputError(
                f"anchor sizes {self.sizes} must be {len(self.strides)} numbers, "
                f"one per stride of {self.strides}"
            )

    @property
    def per_cell(self) -> int:
        """Returns the number of anchors per cell."""
        return len(self.scales) * len(self.ratios)

    def generator(self) -> keras_cv.layers.AnchorGenerator:
        """Returns KerasCV's layer that generates the anchors."""
        return keras_cv.layers.AnchorGenerator(
            bounding_box_format="xyxy",
            sizes=list(self.sizes),
            scales=list(self.scales),
            aspect_ratios=list(self.ratios),
            strides=list(self.strides),
        )


class AnchorTargets(NamedTuple):
    """The training targets of each anchor."""

    classes: tf.Tensor  # [N, A] int32: class, BACKGROUND or IGNORED
    offsets: tf.Tensor  # [N, A, 4] (dy, dx, dh, dw) in units of VARIANCE


def make_anchors(height: int, width: int, layout: Layout) -> tf.Tensor:
    """Returns all anchors [A, 4] of an image, in the order of levels, rows, columns, (scale, ratio)."""
    levels = layout.generator()(image_shape=(height, width, 1))
    return tf.concat([tf.cast(level, tf.float32) for level in levels.values()], 0)


def match(anchors, boxes, labels, match_iou: tuple[float, float] = MATCH_IOU) -> AnchorTargets:
    """Returns the targets of anchors [A, 4] for boxes [N, K, 4] with labels [N, K] (-1: padding).

    An anchor gets the class of the box with the highest IoU, if this is at least `match_iou[0]`. If it is
    between `match_iou[1]` and `match_iou[0]`, the anchor is ignored. The best anchor of each box is always
    positive, because small objects would otherwise have no positive anchor.
    """
    positive_iou, negative_iou = match_iou
    anchors, boxes = tf.stop_gradient(anchors), tf.stop_gradient(boxes)
    real = labels >= 0
    overlap = tf.where(real[:, None, :], boxes_lib.iou(anchors[None], boxes), -1.0)  # [N, A, K]
    best_box = tf.argmax(overlap, -1, output_type=tf.int32)
    best_iou = tf.reduce_max(overlap, -1)
    best_of_box = tf.reduce_max(overlap, 1, keepdims=True)
    forced = real[:, None, :] & (overlap == best_of_box) & (overlap > 0)
    # The best anchor of several boxes belongs to the one that it overlaps most.
    best_forced = tf.argmax(tf.where(forced, overlap, -1.0), -1, tf.int32)
    best_box = tf.where(tf.reduce_any(forced, -1), best_forced, best_box)
    positive = tf.reduce_any(forced, -1) | (best_iou >= positive_iou)
    classes = tf.where(positive, tf.gather(labels, best_box, batch_dims=1), BACKGROUND)
    classes = tf.where(~positive & (best_iou >= negative_iou), IGNORED, classes)
    offsets = encode(anchors, tf.gather(boxes, best_box, batch_dims=1))
    return AnchorTargets(classes, tf.where(positive[..., None], offsets, 0.0))


def encode(anchors, boxes):
    """Returns the offsets (dy, dx, dh, dw) [..., A, 4] from anchors [A, 4] to boxes [..., A, 4]."""
    ax, ay, aw, ah = tf.unstack(boxes_lib.to_center(anchors), axis=-1)
    bx, by, bw, bh = tf.unstack(boxes_lib.to_center(boxes), axis=-1)
    bw, bh = tf.maximum(bw, 1e-3), tf.maximum(bh, 1e-3)
    offsets = tf.stack([(by - ay) / ah, (bx - ax) / aw, tf.math.log(bh / ah), tf.math.log(bw / aw)], -1)
    return offsets / tf.constant(VARIANCE)


def decode(anchors, offsets):
    """Inverse of `encode`; returns boxes [..., A, 4]."""
    ax, ay, aw, ah = tf.unstack(boxes_lib.to_center(anchors), axis=-1)
    dy, dx, dh, dw = tf.unstack(offsets * tf.constant(VARIANCE), axis=-1)
    # An untrained network may predict e^40 pixels; 1000/16 is Detectron2's bound.
    dh, dw = tf.minimum(dh, np.log(1000 / 16)), tf.minimum(dw, np.log(1000 / 16))
    return boxes_lib.from_center(tf.stack([ax + dx * aw, ay + dy * ah, aw * tf.exp(dw), ah * tf.exp(dh)], -1))


def coverage(anchors, boxes) -> np.ndarray:
    """Returns the highest IoU of each of boxes [M, 4] with an anchor, [M]."""
    return tf.reduce_max(boxes_lib.iou(tf.cast(boxes, tf.float32), anchors), -1).numpy()
