"""Random augmentation of training images and their boxes.

Letters: N images, S stored side, C channels, K padded boxes, D draws.
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.resampling import resample, valid_mask

DRAWS = 7  # random numbers that one image needs
MIN_AREA = 0.25  # a box is dropped if a smaller share of it remains in the image: it is not recognisable
MIN_SIDE = 1.0  # pixels; a box that is cut to a thinner sliver is dropped too


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Options of `augment`; if all are False and 0, no bit of an image changes."""

    flip: bool = True  # left and right swapped in half of the images
    shift: float = 0.1  # at most this fraction of the content's side, whole pixels
    scale: float = 0.1  # half of the images are zoomed about the centre by up to 1 +- scale
    intensity: float = 0.1  # brightness by +- intensity (the range has length 2), contrast by 1 +- intensity


IDENTITY = Augmentation(flip=False, shift=0.0, scale=0.0, intensity=0.0)
FLIP = dataclasses.replace(IDENTITY, flip=True)


def augment(images, boxes, labels, valid_sizes, draws, options: Augmentation):
    """Returns augmented images with their boxes; the padding does not change.

    Boxes are clipped to the content and dropped by `MIN_AREA` and `MIN_SIDE`. An image that would lose its
    last box is neither shifted nor zoomed.

    Args:
      images: [N, S, S, C] float32 in [-1, 1].
      boxes: [N, K, 4] float32.
      labels: [N, K] int32, -1 where padded.
      valid_sizes: [N, 2] int32.
      draws: [N, DRAWS] float32 in [0, 1).
      options: kinds and strengths of the changes.

    Returns:
      (images, boxes, labels) of the same shapes, padded boxes last.
    """
    if options.flip or options.shift or options.scale:
        scale, offset = _map(boxes, labels, valid_sizes, draws, options)
        moved = resample(images, scale, offset, valid_sizes)
        images = tf.where(valid_mask(valid_sizes, images.shape[1]), moved, images)
        boxes, labels = _padded_last(*_move_boxes(boxes, labels, valid_sizes, scale, offset))
    if options.intensity:
        images = _change_intensity(images, valid_sizes, draws[:, 5:7], options.intensity)
    return images, boxes, labels


def mirror(flip, sizes):
    """Returns the map [N, 2], [N, 2] that mirrors content of `sizes` [N, 2] horizontally if `flip` [N]."""
    flips = tf.stack([tf.zeros_like(flip), flip], axis=1)
    return tf.where(flips, -1.0, 1.0), tf.where(flips, sizes, 0.0)


def _map(boxes, labels, valid_sizes, draws, options):
    """Returns each image's map point -> scale * point + offset: [N, 2], [N, 2]."""
    sizes = tf.cast(valid_sizes, tf.float32)
    mirrored = mirror((draws[:, 1] < 0.5) & options.flip, sizes)
    if not (options.shift or options.scale):
        return mirrored
    signed = 2.0 * draws[:, 2:5] - 1.0
    # Half of the images are not zoomed, and shifts are whole pixels: zooming smooths film grain, and a
    # detector that is trained on smoothed images only fails on real ones.
    zoom = 1.0 + options.scale * tf.sign(signed[:, :1]) * tf.nn.relu(2.0 * tf.abs(signed[:, :1]) - 1.0)
    move = (1.0 - zoom) * sizes / 2.0 + tf.round(options.shift * signed[:, 1:] * sizes)
    full = zoom * mirrored[0], zoom * mirrored[1] + move  # mirrored first
    _, kept = _move_boxes(boxes, labels, valid_sizes, *full)
    loses_all = tf.reduce_any(labels >= 0, 1, keepdims=True) & ~tf.reduce_any(kept >= 0, 1, keepdims=True)
    return tuple(
        tf.where(loses_all, only_mirrored, whole) for only_mirrored, whole in zip(mirrored, full, strict=True)
    )


def _move_boxes(boxes, labels, valid_sizes, scale, offset):
    """Returns mapped boxes, clipped to the content, and labels; dropped boxes are zeros with label -1."""
    sizes = tf.cast(valid_sizes, tf.float32)
    moved = box_ops.affine(boxes, scale[:, None], offset[:, None])
    cut = box_ops.clip(moved, sizes[:, :1], sizes[:, 1:])
    sides, uncut_sides = box_ops.to_xywh(cut)[..., 2:], box_ops.to_xywh(moved)[..., 2:]
    keep = (labels >= 0) & (box_ops.area(cut) >= MIN_AREA * box_ops.area(moved))
    # A box that is thinner than MIN_SIDE without being cut stays; 0.99 for rounding errors.
    keep &= tf.reduce_all(sides >= tf.minimum(MIN_SIDE, 0.99 * uncut_sides), -1)
    return tf.where(keep[..., None], cut, 0.0), tf.where(keep, labels, -1)


def _padded_last(boxes, labels):
    order = tf.argsort(tf.cast(labels < 0, tf.int32), axis=1, stable=True)
    return tf.gather(boxes, order, batch_dims=1), tf.gather(labels, order, batch_dims=1)


def _change_intensity(images, valid_sizes, draws, amount):
    inside = valid_mask(valid_sizes, images.shape[1])
    content = tf.where(inside, images, 0.0)
    pixels = tf.cast(tf.reduce_prod(valid_sizes, axis=1), tf.float32)[:, None, None, None] * images.shape[3]
    mean = tf.reduce_sum(content, axis=(1, 2, 3), keepdims=True) / pixels
    brightness, contrast = tf.unstack(amount * (2.0 * draws - 1.0)[:, :, None, None, None], axis=1)
    changed = mean + (1.0 + contrast) * (images - mean) + brightness
    return tf.where(inside, tf.clip_by_value(changed, -1.0, 1.0), images)
