"""Crops, shifts, mirrors and scales images by bilinear interpolation.

Networks crop by two matrix products (`crop`, `cut`). Their gradient is two more, which GPUs compute
deterministically, unlike that of `tf.image.crop_and_resize` or of gathered rows (decision 0133). On GPUs with
TensorFloat-32 the products round pixels to 11 bits, as convolutions do.

The input pipeline transforms whole images by gathering two rows for each row (`resample`): it runs on the CPU
and needs no gradient. There a matrix product takes 2 to 10 times as long for images of 128 pixels or more.

Letters: N images, H, W, C channels, S the crop's side or the stored side. Pairs are (vertical, horizontal),
as in `valid_sizes`. Points have continuous coordinates: the centre of pixel i is at i + 0.5.
"""

from __future__ import annotations

import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib


def crop(images, boxes, size: int, context: float = 0.0) -> tf.Tensor:
    """Returns the content of boxes resampled to S x S; 0 outside the image.

    Sample i of S is in the middle of the i-th of S equal parts of the box. It is 0 unless it is between the
    centres of the image's outermost pixels.

    Args:
      images: [N, H, W, C] float32 or float64, finite.
      boxes: [N, 4] in pixels, of any size; they have no gradient.
      size: S.
      context: the box is enlarged on every side by this fraction of its longer side.

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
    """Moves the pixels that overlap with boxes [N, 4] to the top left corner; the rest is 0.

    Returns:
      The moved pixels [N, H, W, C], and their sizes [N, 2] int64, (height, width), at least 1.
    """
    low, high = _corners(boxes)
    limits = tf.constant([*images.shape[1:3]], tf.int64)  # TensorFlow computes int32 on the host
    first = tf.clip_by_value(tf.cast(tf.floor(low), tf.int64), 0, limits - 1)
    last = tf.clip_by_value(tf.cast(tf.math.ceil(high), tf.int64), first + 1, limits)
    rows, columns = (_moved(first[:, axis], last[:, axis], images.shape[1 + axis]) for axis in (0, 1))
    return _products(rows, columns, images), last - first


def _corners(boxes) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the first and last edges [N, 2] of boxes [N, 4], without gradient."""
    low, high = tf.split(boxes_lib.to_relative_yxyx(tf.stop_gradient(boxes), 1, 1), 2, axis=-1)
    return low, high


def _hat(places, count: int) -> tf.Tensor:
    """Returns the weights [N, S, count] of linear interpolation at `places` [N, S]; 0 outside the pixels."""
    distance = tf.abs(places[..., None] - tf.range(count, dtype=tf.float32))
    inside = (places >= 0) & (places <= count - 1)
    return tf.where(inside[..., None], tf.maximum(0.0, 1.0 - distance), 0.0)


def _moved(first, last, count: int) -> tf.Tensor:
    """Returns weights [N, count, count] that move pixels `first` to `last` - 1 (each [N]) to the start."""
    first, last = (tf.cast(edge, tf.float32)[:, None] for edge in (first, last))
    places = tf.range(count, dtype=tf.float32)
    source = first + places
    chosen = (source[..., None] == places) & (source < last)[..., None]
    return tf.cast(chosen, tf.float32)


def _products(rows, columns, images) -> tf.Tensor:
    """Returns A_y · image · A_x^T [N, S, T, C] of A_y [N, S, H], A_x [N, T, W] and images [N, H, W, C]."""
    rows, columns = (tf.cast(weights, images.dtype) for weights in (rows, columns))
    return tf.einsum("ntw,nswc->nstc", columns, tf.einsum("nsh,nhwc->nswc", rows, images))


def resample(images, scale, offset, valid_sizes) -> tf.Tensor:
    """Transforms images by the map point -> scale * point + offset, for the input pipeline on the CPU.

    `boxes.affine` transforms boxes by the same map. Only *valid* content is read, and its edge is repeated
    outside it, so padding never enters the result. Whole-pixel shifts and mirroring are exact copies.

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
    """Returns bool [N, side, side, 1]: True on the content, False on the padding."""
    rows, columns = (tf.sequence_mask(valid_sizes[:, axis], side) for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[..., None]
