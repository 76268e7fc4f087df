"""Computes object residuals: the pixels of labelled objects minus their predicted backgrounds.

Added to a clean image, a residual shows the object there; a crop would also copy its old background. A linear
map predicts the background of a box from its surroundings. It is fitted on clean images, where its errors can
be measured. A residual is split into a class part, which is the scaled mean over the object's class, and the
object's deviation from it. The deviation is multiplied by its Wiener weight: the share of its variance that
is not prediction error. For each object only a coarse grid is stored. `residuals` computes the full residual
from this grid and the object's image (decision 0068).

A *crop* shows a box and its surroundings on SIDE x SIDE cells. Its middle part, slightly larger than the
box, is the *hole*: the cells whose background is predicted from the cells around it.
Letters: L labelled images, N images, S stored side, C channels, M objects, n crops, d cells of the hole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy import ndimage

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data.records import Dataset, listed
from tf_detectorgan.errors import InputError

SIDE = 40  # cells of a crop's side
EXTENT = 4.0  # side of a crop, in box sides
HOLE = 1.2  # side of the hole, in box sides
CROPS = 6000  # crops of clean images: the map is fitted on three quarters, its errors measured on the rest
RIDGE = 0.01  # ridge penalty of the linear map, per crop and in the variance of a pixel
LOADING = 0.05  # diagonal loading of the errors' covariance, in their mean variance
MIN_OBJECTS = 5  # a class with fewer objects has no class part
MIN_AMPLITUDE = 0.2  # of the class mean in an object, whose mean amplitude is 1
CLEAN_LIMIT = 256 * 2**20  # bytes of decoded clean images from which crops are taken, one image at a time

_CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * EXTENT  # of cells, in box sides from the box's centre
_IN_HOLE = np.abs(_CENTRES) < HOLE / 2
_HOLE_SIDE = int(_IN_HOLE.sum())
_HOLE = _IN_HOLE[:, None] & _IN_HOLE[None, :]


class ObjectResiduals(NamedTuple):
    """The stored part of the residuals of all labelled training objects."""

    cells: tf.Tensor  # [M, C, d] float32, the terms of `residuals` that do not depend on the object's image
    weights: tf.Tensor  # [M] float32 Wiener weight of the object's deviation from its class part
    first: tf.Tensor  # [L] int32 index of each image's first object; its other objects follow
    signal: np.ndarray  # [classes] share of the residuals' variance that is signal; NaN: no object


class _Objects(NamedTuple):
    """The labelled training objects, image after image."""

    boxes: np.ndarray  # [M, 4] float64
    classes: np.ndarray  # [M]
    sizes: np.ndarray  # [M, 2] height and width of the content of the object's image
    counts: np.ndarray  # [L] objects of each image


class _Predictor(NamedTuple):
    """A linear map from the d' cells around the hole to the d cells of the hole.

    Both are relative to the mean of the cells around the hole.
    """

    mean_around: np.ndarray  # [d'] mean over crops
    mean_hole: np.ndarray  # [d] mean over crops
    weights: np.ndarray  # [d', d]

    def residuals(self, crops: np.ndarray) -> np.ndarray:
        """Returns the hole of crops [..., C, SIDE, SIDE] minus its predicted background: [..., C, d]."""
        around, hole, _ = _parts(crops)
        return hole - self.mean_hole - (around - self.mean_around) @ self.weights


@functools.lru_cache(maxsize=1)
def object_residuals(dataset: Dataset) -> ObjectResiduals:
    """Returns the stored part of all object residuals. One decoded image is in memory at a time.

    Raises:
      InputError: there are no clean images or no labelled objects.
    """
    objects = _objects(dataset)
    if not len(objects.boxes) or not dataset.count("train_clean"):
        raise InputError(f"{dataset.name}: object residuals need clean and labelled training images")
    predictor, errors, object_of_crop = _fit(dataset, objects)
    residuals, background = _predicted(dataset, objects, predictor)
    bias = errors.mean(0)
    flat, errors = (v.reshape(len(v), -1) for v in (residuals - bias, errors - bias))
    noise = _noise_variance(errors, objects.classes[object_of_crop], len(dataset.class_names))
    class_part, weights = _split(flat, objects.classes, errors, noise)
    weight = weights[:, None, None]
    cells = (1 - weight) * class_part.reshape(background.shape) - weight * background
    first = np.cumsum(objects.counts) - objects.counts
    return ObjectResiduals(
        tf.constant(cells, tf.float32),
        tf.constant(weights, tf.float32),
        tf.constant(first, tf.int32),
        _signal(flat, objects.classes, noise),
    )


def residuals(images, boxes, cells, weights) -> tf.Tensor:
    """Returns the residual of one object of each image; it is 0 outside of the hole around its box.

    With the predicted background b, the class part c and the object's Wiener weight w, the residual is

        window * (c + w * (image - b - c))

    b and c are interpolated from their cells. Interpolation is linear, so one array holds both: cells =
    (1 - w) * c - w * b. A background plus a residual, clipped to [-1, 1], shows the object.

    Args:
      images: [N, S, S, C] float32, the objects' images as decoded.
      boxes: [N, 4] float32, the objects' boxes in these images.
      cells, weights: [N, C, d] and [N] float32, rows of `ObjectResiduals`.

    Returns:
      [N, S, S, C] float32.
    """
    x, y, width, height = tf.unstack(box_ops.to_center(tf.cast(boxes, tf.float64)), axis=1)
    centres = tf.range(images.shape[1], dtype=tf.float64) + 0.5
    down, across = (
        (centres - middle[:, None]) / tf.maximum(extent, 1e-6)[:, None]
        for middle, extent in ((y, height), (x, width))
    )  # [N, S] float64, in box sides from the box's centre; float32 is too coarse where boxes are small
    grid = tf.reshape(cells, [-1, images.shape[3], _HOLE_SIDE, _HOLE_SIDE])
    rows, columns = (_interpolation(v)[:, None] for v in (down, across))
    smooth = tf.transpose(tf.matmul(rows @ grid, columns, transpose_b=True), [0, 2, 3, 1])
    rows, columns = _window(down), _window(across)
    window = tf.minimum(rows[:, :, None], columns[:, None, :])[..., None]
    return window * (weights[:, None, None, None] * images + smooth)


def _interpolation(places) -> tf.Tensor:
    """Returns linear interpolation weights [N, S, side of the hole] float32 of the hole's cells.

    `places` [N, S] float64 are in box sides from the box's centre. The outermost cells are repeated outwards.
    """
    cell = (places - _CENTRES[_IN_HOLE][0]) / (EXTENT / SIDE)
    cell = tf.clip_by_value(cell, 0, _HOLE_SIDE - 1)[..., None]
    weights = tf.maximum(1 - tf.abs(cell - tf.range(_HOLE_SIDE, dtype=tf.float64)), 0)
    return tf.cast(weights, tf.float32)


def _window(places) -> tf.Tensor:
    """Returns [N, S] float32: 1 inside the box, falling linearly to 0 at the edge of the hole.

    `places` [N, S] are in box sides from the box's centre.
    """
    return tf.cast(tf.clip_by_value((HOLE - 2 * tf.abs(places)) / (HOLE - 1.0), 0, 1), tf.float32)


def _objects(dataset: Dataset) -> _Objects:
    """Returns the labelled training objects; no image is decoded."""
    boxes, classes, sizes, counts = [np.zeros([0, 4])], list[int](), list[tuple[int, ...]](), list[int]()
    for image in listed(dataset.serialized("train_labelled")):
        boxes.append(image.boxes)
        classes += image.labels
        sizes += [image.valid_size] * len(image.labels)
        counts.append(len(image.labels))
    return _Objects(np.concatenate(boxes), np.array(classes), np.array(sizes), np.array(counts))


def _predicted(dataset: Dataset, objects: _Objects, predictor: _Predictor) -> tuple[np.ndarray, np.ndarray]:
    """Returns each object's hole minus its predicted background, and that background, both [M, C, d]."""
    residuals = np.empty((len(objects.boxes), dataset.image_shape[2], _HOLE.sum()))
    background, m = np.empty_like(residuals), 0
    labelled = dataset.serialized("train_labelled").map(dataset.decode).as_numpy_iterator()
    for record, count in zip(labelled, objects.counts, strict=True):
        for _ in range(count):
            crop = _crop(record.image, objects.boxes[m], record.valid_size)
            residuals[m] = predictor.residuals(crop)
            _, hole, mean = _parts(crop)
            background[m] = hole - residuals[m] + mean
            m += 1
    return residuals, background


def _noise_variance(errors: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean square of the errors [n, d] of each of `count` classes.

    A class with fewer than MIN_OBJECTS errors gets the mean square of all.
    """
    by_class = [errors[classes == c] for c in range(count)]
    return np.array([np.mean((some if len(some) >= MIN_OBJECTS else errors) ** 2) for some in by_class])


def _signal(residuals: np.ndarray, classes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Returns the share of each class's residual variance that is signal; NaN for a class without objects."""
    by_class = [residuals[classes == c] for c in range(len(noise))]
    variance = np.array([np.mean(some**2) if len(some) else np.nan for some in by_class])
    return _wiener(noise, variance)


def _wiener(noise, variance):
    """Returns the share of `variance` that is not `noise`, at least 0."""
    return np.maximum(0.0, 1.0 - noise / np.maximum(variance, 1e-12))


def _clean_images(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (image, valid size) for each of CROPS crops, from as many clean images as CLEAN_LIMIT allows."""
    limit = max(1, CLEAN_LIMIT // int(4 * np.prod(dataset.image_shape)))
    count = min(limit, dataset.count("train_clean"))
    numbers = np.arange(CROPS) * count // CROPS
    records = dataset.serialized("train_clean").take(count).map(dataset.decode).as_numpy_iterator()
    for number, record in enumerate(records):
        yield from [(record.image, record.valid_size)] * int((numbers == number).sum())


def _fit(dataset: Dataset, objects: _Objects) -> tuple[_Predictor, np.ndarray, np.ndarray]:
    """Fits the predictor on crops of clean images at the positions of labelled objects.

    Each crop is around a random object's box, at the box's own position in the content, slightly shifted.

    Returns:
      The predictor; its errors [n / 4, C, d] on crops it was not fitted on; the index [n / 4] of the object
      whose box each of these crops has.
    """
    rng = np.random.default_rng(0)
    boxes, object_of_crop = objects.boxes, np.empty(CROPS, int)
    crops = np.empty((CROPS, dataset.image_shape[2], SIDE, SIDE), np.float32)
    for n, (image, valid) in enumerate(_clean_images(dataset)):
        m = object_of_crop[n] = rng.integers(len(boxes))
        limits = np.asarray(valid[::-1], np.float64)
        extent = np.minimum(boxes[m, 2:] - boxes[m, :2], limits - 1)
        start = boxes[m, :2] / objects.sizes[m][::-1] * limits + rng.uniform(-0.08, 0.08, 2) * limits
        start = np.clip(start, 0, limits - extent)
        crops[n] = _crop(image, np.concatenate([start, start + extent]), valid)
    # Crops are in the order of their images, so the last quarter comes from other images.
    last = CROPS - CROPS // 4
    around, hole, _ = _parts(crops[:last])
    x, y = around.reshape(-1, around.shape[-1]), hole.reshape(-1, hole.shape[-1])
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    ridge = RIDGE * len(x) * np.eye(x.shape[1])
    predictor = _Predictor(mean_x, mean_y, np.linalg.solve(x.T @ x + ridge, x.T @ (y - mean_y)))
    return predictor, predictor.residuals(crops[last:]), object_of_crop[last:]


def _split(
    residuals: np.ndarray, classes: np.ndarray, errors: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the class part [M, d] of residuals [M, d], and the Wiener weight [M] of the deviation from it.

    `errors` [n, d] have mean 0; `noise` [classes] is their variance by class. The class part is the class's
    mean residual times an amplitude: the best linear unbiased estimate under the errors' covariance. The
    Wiener weight is equal within a class: the share of the deviations' variance that is signal.
    """
    covariance = np.atleast_2d(np.cov(errors.T))
    variance = np.trace(covariance) / len(covariance)
    covariance = covariance + (LOADING * variance + 1e-8) * np.eye(len(covariance))
    class_part, weights = np.zeros_like(residuals), np.zeros(len(residuals))
    for c in np.unique(classes):
        members = classes == c
        found = residuals[members]
        if members.sum() >= MIN_OBJECTS:
            mean = found.mean(0)
            whitened = np.linalg.solve(covariance, mean)
            amplitude = np.maximum(found @ whitened / max(mean @ whitened, 1e-12), MIN_AMPLITUDE)
            class_part[members] = amplitude[:, None] * mean
        weights[members] = _wiener(noise[c], np.mean((found - class_part[members]) ** 2))
    return class_part, weights


def _parts(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits crops into the cells around the hole [..., C, d'] and those of the hole [..., C, d].

    Both are relative to the mean [..., C, 1] of the cells around the hole, which is returned third.
    """
    around = crops[..., ~_HOLE]
    mean = around.mean(-1, keepdims=True)
    return around - mean, crops[..., _HOLE] - mean, mean


def _crop(image: np.ndarray, box: np.ndarray, valid_size) -> np.ndarray:
    """Returns a crop [C, SIDE, SIDE] of EXTENT box sides around the box's centre, sampled bilinearly.

    Outside of the content, its edge is repeated. Where the hole touches that edge, the edge is first
    interpolated across the hole, so that the object is not repeated.
    """
    x, y = ((box[k] + box[k + 2]) / 2 + _CENTRES * (box[k + 2] - box[k]) - 0.5 for k in (0, 1))
    rows, columns = np.clip(y, 0, valid_size[0] - 1), np.clip(x, 0, valid_size[1] - 1)
    where = np.meshgrid(rows, columns, indexing="ij")
    crop = np.stack(
        [ndimage.map_coordinates(channel, where, order=1) for channel in np.moveaxis(image, -1, 0)]
    )
    down, across = (
        np.abs(v + 0.5 - (box[k] + box[k + 2]) / 2) < HOLE / 2 * (box[k + 2] - box[k]) + 0.5
        for v, k in ((rows, 1), (columns, 0))
    )  # rows and columns that sample the hole
    _bridge(crop, (rows != y) & down, across)
    _bridge(crop.swapaxes(1, 2), (columns != x) & across, down)
    return crop


def _bridge(crop: np.ndarray, lines: np.ndarray, hole: np.ndarray) -> None:
    """Interpolates crops [C, rows, columns] in place across the columns `hole` in the rows `lines`."""
    if hole.all():
        return
    at = np.arange(len(hole))
    for channel in crop:
        for row in np.flatnonzero(lines):
            channel[row, hole] = np.interp(at[hole], at[~hole], channel[row, ~hole])
