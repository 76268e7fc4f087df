"""Object residuals: what each labelled object adds to its background, to be added to another background.

In an X-ray, the attenuations of an object and of the tissue behind it add up; a dent is assumed to change the
brightness of any surface by a similar amount. A crop of the object would contain a part of its original
background. So the background of each labelled object is predicted from its surroundings by a linear map,
which is fitted on clean images, and subtracted. The difference is split into the class part, which is the
mean over the class times an amplitude fitted to the object, and the object's own part. The own part is
multiplied by a Wiener weight, 1 - error variance / mean square of the class's own parts, at least 0. The
error variance of the prediction is measured on clean images; its mean error is subtracted for the class part
and the weights only. The predicted background and the class part of each object are stored on a coarse grid.
`residuals` computes the full residual from this grid and the object's image (decision 0068).

A *crop* shows a box and its surroundings on SIDE x SIDE cells. Its middle part, slightly larger than the box,
is the *hole*: the cells whose background is predicted from the cells around it. Letters: L labelled images, N
images, S stored side, C channels, M objects, n = CROPS, d cells of the hole, d' cells around it.
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
CROPS = 6000  # crops of clean images; the map is fitted on 3/4, its errors are measured on the others
RIDGE = 0.01  # ridge penalty of the linear map, per crop and channel
LOADING = 0.05  # diagonal loading of the errors' covariance, as a fraction of their mean variance
MIN_OBJECTS = 5  # of a class, for its mean residual to be used
MIN_AMPLITUDE = 0.2  # lower bound on an object's amplitude; 1 is that of the class mean
CLEAN_LIMIT = 256 * 2**20  # bytes: bounds the clean images that are decoded for crops, one at a time

_CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * EXTENT  # of cells, in box sides from the box's centre
_IN_HOLE = np.abs(_CENTRES) < HOLE / 2
_HOLE_CELLS = int(_IN_HOLE.sum())
_HOLE = _IN_HOLE[:, None] & _IN_HOLE[None, :]


class ObjectResiduals(NamedTuple):
    """The stored part of the residuals of all labelled training objects."""

    cells: tf.Tensor  # [M, C, d] float32, the terms of `residuals` that do not depend on the object's image
    weights: tf.Tensor  # [M] float32 Wiener weight of the object's own part, equal within a class
    first: tf.Tensor  # [L] int32 index of each image's first object; its other objects follow
    signal_share: np.ndarray  # [classes] share of the residuals' variance that is signal; NaN: no object


class _Objects(NamedTuple):
    """The labelled training objects, image after image."""

    boxes: np.ndarray  # [M, 4] float64
    classes: np.ndarray  # [M]
    sizes: np.ndarray  # [M, 2] height and width of the content of the object's image
    counts: np.ndarray  # [L] objects of each image


class _Predictor(NamedTuple):
    """A linear map from the d' cells around the hole to the d cells of the hole.

    The mean of the cells around the hole is first subtracted from both.
    """

    mean_around: np.ndarray  # [d'] average over the fitted crops
    mean_hole: np.ndarray  # [d] average over the fitted crops
    weights: np.ndarray  # [d', d]

    def hole_minus_prediction(self, crops: np.ndarray) -> np.ndarray:
        """Returns the hole of crops [..., C, SIDE, SIDE] minus its predicted background: [..., C, d]."""
        around, hole, _ = _around_and_hole(crops)
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
    predictor, errors, object_of_crop = _fit_predictor(dataset, objects)
    residuals, background = _residuals_and_backgrounds(dataset, objects, predictor)
    bias = errors.mean(0)
    flat, errors = (v.reshape(len(v), -1) for v in (residuals - bias, errors - bias))
    error_variance = _error_variance(errors, objects.classes[object_of_crop], len(dataset.class_names))
    class_part, weights = _split(flat, objects.classes, errors, error_variance)
    weight = weights[:, None, None]
    cells = (1 - weight) * class_part.reshape(background.shape) - weight * background
    first = np.cumsum(objects.counts) - objects.counts
    return ObjectResiduals(
        tf.constant(cells, tf.float32),
        tf.constant(weights, tf.float32),
        tf.constant(first, tf.int32),
        _signal_share(flat, objects.classes, error_variance),
    )


def residuals(images, boxes, cells, weights) -> tf.Tensor:
    """Returns the residual of one object of each image; it is 0 outside of the hole.

    With the predicted background b, the class part c and the object's weight w, the residual is

        window * (c + w * (image - b - c))

    b and c are interpolated from their cells. Interpolation is linear, so one array holds both: cells =
    (1 - w) * c - w * b. To insert the object, add the residual to a clean image and clip the sum to [-1, 1].

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
    )  # [N, S] float64, in box sides from the box's centre; float32 is not precise enough for small boxes
    grid = tf.reshape(cells, [-1, images.shape[3], _HOLE_CELLS, _HOLE_CELLS])
    rows, columns = (_interpolation(v)[:, None] for v in (down, across))
    smooth = tf.transpose(tf.matmul(rows @ grid, columns, transpose_b=True), [0, 2, 3, 1])
    rows, columns = _window(down), _window(across)
    window = tf.minimum(rows[:, :, None], columns[:, None, :])[..., None]
    return window * (weights[:, None, None, None] * images + smooth)


def _interpolation(places) -> tf.Tensor:
    """Returns linear interpolation weights [N, S, side of the hole] float32 of the hole's cells.

    `places` [N, S] float64 are in box sides from the box's centre. Outside of the hole the value of the
    nearest cell is used.
    """
    cell = (places - _CENTRES[_IN_HOLE][0]) / (EXTENT / SIDE)
    cell = tf.clip_by_value(cell, 0, _HOLE_CELLS - 1)[..., None]
    weights = tf.maximum(1 - tf.abs(cell - tf.range(_HOLE_CELLS, dtype=tf.float64)), 0)
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


def _residuals_and_backgrounds(
    dataset: Dataset, objects: _Objects, predictor: _Predictor
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each object's hole minus its predicted background, and that background, both [M, C, d]."""
    residuals = np.empty((len(objects.boxes), dataset.image_shape[2], _HOLE.sum()))
    background, m = np.empty_like(residuals), 0
    labelled = dataset.serialized("train_labelled").map(dataset.decode).as_numpy_iterator()
    for record, count in zip(labelled, objects.counts, strict=True):
        for _ in range(count):
            crop = _crop(record.image, objects.boxes[m], record.valid_size)
            residuals[m] = predictor.hole_minus_prediction(crop)
            _, hole, mean = _around_and_hole(crop)
            background[m] = hole - residuals[m] + mean
            m += 1
    return residuals, background


def _error_variance(errors: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean square of the errors [n, d] of each of `count` classes.

    A class with fewer than MIN_OBJECTS errors gets the mean square of all.
    """
    by_class = [errors[classes == c] for c in range(count)]
    return np.array([np.mean((some if len(some) >= MIN_OBJECTS else errors) ** 2) for some in by_class])


def _signal_share(residuals: np.ndarray, classes: np.ndarray, error_variance: np.ndarray) -> np.ndarray:
    """Returns the share of each class's residual variance that is signal; NaN for a class without objects."""
    by_class = [residuals[classes == c] for c in range(len(error_variance))]
    variance = np.array([np.mean(some**2) if len(some) else np.nan for some in by_class])
    return _signal_fraction(error_variance, variance)


def _signal_fraction(error_variance, variance):
    """Returns the share of `variance` that is not `error_variance`, at least 0."""
    return np.maximum(0.0, 1.0 - error_variance / np.maximum(variance, 1e-12))


def _image_of_each_crop(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (image, valid size) for each of CROPS crops, from as many clean images as CLEAN_LIMIT allows."""
    limit = max(1, CLEAN_LIMIT // int(4 * np.prod(dataset.image_shape)))
    count = min(limit, dataset.count("train_clean"))
    numbers = np.arange(CROPS) * count // CROPS
    records = dataset.serialized("train_clean").take(count).map(dataset.decode).as_numpy_iterator()
    for number, record in enumerate(records):
        yield from [(record.image, record.valid_size)] * int((numbers == number).sum())


def _fit_predictor(dataset: Dataset, objects: _Objects) -> tuple[_Predictor, np.ndarray, np.ndarray]:
    """Fits the predictor on 3/4 of CROPS crops of clean images at the positions of labelled objects.

    Each crop surrounds the box of a random object, at its own relative position, shifted by up to 8 % of its
    sides.

    Returns:
      The predictor; its errors [n / 4, C, d] on the other crops; the index [n / 4] of the object
      whose box each of these crops has.
    """
    rng = np.random.default_rng(0)
    boxes, object_of_crop = objects.boxes, np.empty(CROPS, int)
    crops = np.empty((CROPS, dataset.image_shape[2], SIDE, SIDE), np.float32)
    for n, (image, valid) in enumerate(_image_of_each_crop(dataset)):
        m = object_of_crop[n] = rng.integers(len(boxes))
        limits = np.asarray(valid[::-1], np.float64)
        extent = np.minimum(boxes[m, 2:] - boxes[m, :2], limits - 1)
        start = boxes[m, :2] / objects.sizes[m][::-1] * limits + rng.uniform(-0.08, 0.08, 2) * limits
        start = np.clip(start, 0, limits - extent)
        crops[n] = _crop(image, np.concatenate([start, start + extent]), valid)
    # Crops are in the order of their images, so the last quarter comes from other images.
    last = CROPS - CROPS // 4
    around, hole, _ = _around_and_hole(crops[:last])
    x, y = around.reshape(-1, around.shape[-1]), hole.reshape(-1, hole.shape[-1])
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    ridge = RIDGE * len(x) * np.eye(x.shape[1])
    predictor = _Predictor(mean_x, mean_y, np.linalg.solve(x.T @ x + ridge, x.T @ (y - mean_y)))
    return predictor, predictor.hole_minus_prediction(crops[last:]), object_of_crop[last:]


def _split(
    residuals: np.ndarray, classes: np.ndarray, errors: np.ndarray, error_variance: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Splits residuals [M, C d]; returns the class part [M, C d] and the weight [M] of the own part.

    `errors` [n / 4, C d] have mean 0; `error_variance` [classes] is their variance by class. The class part
    is the class's mean residual times an amplitude: the best linear unbiased estimate under the errors'
    covariance. The rest is the object's own part. There is one Wiener weight per class, the share of its own
    parts' variance that is signal.
    """
    covariance = np.atleast_2d(np.cov(errors.T))
    variance = np.trace(covariance) / len(covariance)
    covariance = covariance + (LOADING * variance + 1e-8) * np.eye(len(covariance))
    class_part, weights = np.zeros_like(residuals), np.zeros(len(residuals))
    for c in np.unique(classes):
        members = classes == c
        in_class = residuals[members]
        if members.sum() >= MIN_OBJECTS:
            mean = in_class.mean(0)
            whitened = np.linalg.solve(covariance, mean)
            amplitude = np.maximum(in_class @ whitened / max(mean @ whitened, 1e-12), MIN_AMPLITUDE)
            class_part[members] = amplitude[:, None] * mean
        weights[members] = _signal_fraction(error_variance[c], np.mean((in_class - class_part[members]) ** 2))
    return class_part, weights


def _around_and_hole(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits crops into the cells around the hole [..., C, d'] and the hole [..., C, d].

    Both are relative to the mean [..., C, 1] of the cells around the hole, which is returned third.
    """
    around = crops[..., ~_HOLE]
    mean = around.mean(-1, keepdims=True)
    return around - mean, crops[..., _HOLE] - mean, mean


def _crop(image: np.ndarray, box: np.ndarray, valid_size) -> np.ndarray:
    """Returns a crop [C, SIDE, SIDE] of EXTENT box sides around the box's centre, sampled bilinearly.

    Outside of the content its edge pixels are repeated. Edge pixels that may belong to the object are first
    replaced by linear interpolation between the pixels on both sides of the hole.
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
    _interpolate_over_hole(crop, (rows != y) & down, across)
    _interpolate_over_hole(crop.swapaxes(1, 2), (columns != x) & across, down)
    return crop


def _interpolate_over_hole(crop: np.ndarray, rows: np.ndarray, hole_columns: np.ndarray) -> None:
    """Interpolates crops [C, SIDE, SIDE] in place over the masked columns, in the masked rows."""
    if hole_columns.all():
        return
    columns = np.arange(len(hole_columns))
    for channel in crop:
        for row in np.flatnonzero(rows):
            known = channel[row, ~hole_columns]
            channel[row, hole_columns] = np.interp(columns[hole_columns], columns[~hole_columns], known)
