"""Crops, moves, mirrors and scales image content by bilinear interpolation: the only file that does.

Networks crop by two matrix products (`crop`, `cut`): their gradient is two more, which GPUs compute
deterministically, unlike that of `tf.image.crop_and_resize` or of gathered rows (decision 0133). On GPUs with
TensorFloat-32 the products round pixels to 11 bits, as convolutions do.

The input pipeline moves whole images by gathering two rows for each row (`resample`): it runs on the CPU and
needs no gradient, and a matrix product takes 2 to 10 times as long there from 128 pixels on.

Letters: N images, H, W, C channels, S the crop's side or the stored side. Pairs are (vertical, horizontal),
as in `valid_sizes`. A point is in continuous coordinates: pixel i has its centre at i + 0.5.
"""

from __future__ import annotations

import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib


def crop(images, boxes, size: int, context: float = 0.0) -> tf.Tensor:
    """The content of boxes resampled to S x S; 0 beyond the image.

    Sample i of S lies in the middle of the i-th of S equal parts of the box, and is 0 unless it lies between
    the centres of the image's outermost pixels.

    Args:
      images: [N, H, W, C] float32 or float64, finite.
      boxes: [N, 4] in pixels, of any size; no gradient flows to them.
      size: S.
      context: widens the box on every side by this fraction of its longer side.

    Returns:
      [N, S, S, C] of the images' dtype.
    """
    margin = context * boxes_lib.longer_side(boxes)
    low, high = _corners(boxes_lib.dilate(boxes, margin))
    parts = (tf.range(size, dtype=tf.float32) + 0.5) / size
    places = low[..., None] + (high - low)[..., None] * parts - 0.5  # [N, 2, S], in pixels' indices
    rows, columns = (_hat(places[:, axis], images.shape[1 + axis]) for axis in (0, 1))
    return _products(rows, columns, images)


def cut(images, boxes) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels that boxes [N, 4] touch, moved to the top left corner of [N, H, W, C], 0 beyond.

    Returns:
      The moved pixels [N, H, W, C], and their sizes [N, 2] int64, (height, width), at least 1.
    """
    low, high = _corners(boxes)
    limits = tf.constant([*images.shape[1:3]], tf.int64)  # GPUs do the arithmetic of int32 on the host
    first = tf.clip_by_value(tf.cast(tf.floor(low), tf.int64), 0, limits - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil(high), tf.int64), first + 1, limits)
    rows, columns = (_moved(first[:, axis], last[:, axis], images.shape[1 + axis]) for axis in (0, 1))
    return _products(rows, columns, images), last - first


def _corners(boxes) -> tuple[tf.Tensor, tf.Tensor]:
    """First and last edges [N, 2] of boxes [N, 4], no gradient."""
    low, high = tf.split(boxes_lib.to_relative_yxyx(tf.stop_gradient(boxes), 1, 1), 2, axis=-1)
    return low, high


def _hat(places, count: int) -> tf.Tensor:
    """Weights [N, S, count] of `count` pixels at `places` [N, S]: linear interpolation, 0 beyond them."""
    distance = tf.abs(places[..., None] - tf.range(count, dtype=tf.float32))
    inside = (places >= 0) & (places <= count - 1)
    return tf.where(inside[..., None], tf.maximum(0.0, 1.0 - distance), 0.0)


def _moved(first, last, count: int) -> tf.Tensor:
    """Weights [N, count, count] that move pixels `first` to `last` - 1 (both [N]) to the beginning."""
    first, last = (tf.cast(edge, tf.float32)[:, None] for edge in (first, last))
    places = tf.range(count, dtype=tf.float32)
    source = first + places
    chosen = (source[..., None] == places) & (source < last)[..., None]
    return tf.cast(chosen, tf.float32)


def _products(rows, columns, images) -> tf.Tensor:
    """A_y · image · A_x^T: [N, S, T, C] of rows A_y [N, S, H], columns A_x [N, T, W], images [N, H, W, C]."""
    rows, columns = (tf.cast(weights, images.dtype) for weights in (rows, columns))
    return tf.einsum("ntw,nswc->nstc", columns, tf.einsum("nsh,nhwc->nswc", rows, images))


def resample(images, scale, offset, valid_sizes) -> tf.Tensor:
    """Bilinear image of the map point -> scale * point + offset, for the input pipeline on the CPU.

    The same map, given to `boxes.affine`, moves the boxes along. It only ever reads *valid* content, whose
    edge is repeated beyond it: padding at the right and the bottom is not dragged in. A whole-pixel shift or
    mirror copies pixels bit by bit.

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
