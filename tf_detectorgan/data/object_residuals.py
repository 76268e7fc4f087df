"""What an object adds to its image: the object residual, so that it can be laid over another background.

X-rays of an object and of what is behind it add up, and a dent darkens whatever surface it is in. Cutting the
object out takes a piece of its old background along. Here the background behind each labelled object is
predicted from its surroundings, by a linear map that is learned on clean images, and what remains is split
into the part that all objects of a class share and the object's own part. The errors of the prediction are
known from clean images, so each part is weighted by how far it rises above them (decision 0068). Kept is a
coarse grid of each object; its residual is computed from that and its image where it is used (decision 0068).
Letters: L labelled images, N images, S stored side, C channels, M objects, n crops, d cells of a hole.
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

SIDE = 40  # cells of a crop of a box and its surroundings
EXTENT = 4.0  # of the crop, in box sides
HOLE = 1.2  # of what is predicted and may hold a part of the object, in box sides
CROPS = 6000  # from clean images; a quarter measures the errors
RIDGE = 0.01  # of the linear map, variance of a pixel per crop
LOADING = 0.05  # added to the errors' covariance, in mean variances
FEWEST = 5  # objects of a class that shares a part
FAINTEST = 0.2  # strength of the shared part, in those of the mean object
CLEAN_LIMIT = 256 * 2**20  # bytes of decoded clean images that crops are taken from, one image at a time

_CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * EXTENT  # in box sides from the box's middle
_IN_HOLE = np.abs(_CENTRES) < HOLE / 2
_HOLE_SIDE = int(_IN_HOLE.sum())
_HOLE = _IN_HOLE[:, None] & _IN_HOLE[None, :]


class ObjectResiduals(NamedTuple):
    """What `residuals` computes each labelled training object's residual from, and how far to trust them."""

    cells: tf.Tensor  # [M, C, d] float32, the part that does not come from the object's image
    own: tf.Tensor  # [M] float32 weight of the object's own part
    first: tf.Tensor  # [L] int32 number of each image's first object; the others follow
    signal: np.ndarray  # [classes] share of what the predicted background leaves that is no error; NaN: none


class _Objects(NamedTuple):
    """The labelled training objects, image after image."""

    boxes: np.ndarray  # [M, 4] float64
    classes: np.ndarray  # [M]
    sizes: np.ndarray  # [M, 2] height and width of the content of the object's image
    counts: np.ndarray  # [L] objects of each image


class _Predictor(NamedTuple):
    """What lies in the hole, from what lies around it; both minus the mean of what lies around."""

    around: np.ndarray  # [d'] mean
    inside: np.ndarray  # [d] mean
    weights: np.ndarray  # [d', d]

    def residuals(self, crops: np.ndarray) -> np.ndarray:
        """[..., C, d]: what the hole holds beyond the prediction, of crops [..., C, SIDE, SIDE]."""
        around, inside, _ = _parts(crops)
        return inside - self.inside - (around - self.around) @ self.weights


@functools.lru_cache(maxsize=1)
def object_residuals(dataset: Dataset) -> ObjectResiduals:
    """Returns what is kept of all labelled training objects. Holds one decoded image at a time.

    Raises:
      InputError: there are no clean images or no labelled objects.
    """
    objects = _objects(dataset)
    if not len(objects.boxes) or not dataset.count("train_clean"):
        raise InputError(f"{dataset.name}: object residuals need clean and labelled training images")
    predictor, errors, which = _learn(dataset, objects)
    residuals, behind = _predicted(dataset, objects, predictor)
    bias = errors.mean(0)
    flat, errors = (one.reshape(len(one), -1) for one in (residuals - bias, errors - bias))
    noise = _noise(errors, objects.classes[which], len(dataset.class_names))
    shared, own = _split(flat, objects.classes, errors, noise)
    weight = own[:, None, None]
    cells = (1 - weight) * shared.reshape(behind.shape) - weight * behind
    first = np.cumsum(objects.counts) - objects.counts
    return ObjectResiduals(
        tf.constant(cells, tf.float32),
        tf.constant(own, tf.float32),
        tf.constant(first, tf.int32),
        _signal(flat, objects.classes, noise),
    )


def residuals(images, boxes, cells, own) -> tf.Tensor:
    """Returns what one object of each image adds to its predicted background; 0 away from the object's box.

    The residual is window * (shared + own * (image - behind - shared)). The predicted background `behind` and
    the part `shared` by the class are interpolated between their cells. Interpolation is linear, so one array
    is kept for both: cells = (1 - own) * shared - own * behind. Clipped to [-1, 1], the sum of a background
    and a residual shows the object.

    Args:
      images: [N, S, S, C] float32, the objects' images as decoded.
      boxes: [N, 4] float32, their boxes there.
      cells, own: [N, C, d] and [N] float32, rows of `ObjectResiduals`.

    Returns:
      [N, S, S, C] float32.
    """
    x, y, width, height = tf.unstack(box_ops.to_center(tf.cast(boxes, tf.float64)), axis=1)
    centres = tf.range(images.shape[1], dtype=tf.float64) + 0.5
    down, across = (
        (centres - middle[:, None]) / tf.maximum(extent, 1e-6)[:, None]
        for middle, extent in ((y, height), (x, width))
    )  # [N, S] float64, in box sides from the box's middle: float32 would be off where boxes are small
    grid = tf.reshape(cells, [-1, images.shape[3], _HOLE_SIDE, _HOLE_SIDE])
    rows, columns = (_interpolation(one)[:, None] for one in (down, across))
    smooth = tf.transpose(tf.matmul(rows @ grid, columns, transpose_b=True), [0, 2, 3, 1])
    rows, columns = _window(down), _window(across)
    window = tf.minimum(rows[:, :, None], columns[:, None, :])[..., None]
    return window * (own[:, None, None, None] * images + smooth)


def _interpolation(places) -> tf.Tensor:
    """Linear weights [N, S, side of the hole] float32 of its cells at places [N, S] float64, in box sides.

    Beyond the outermost cells these are repeated.
    """
    cell = (places - _CENTRES[_IN_HOLE][0]) / (EXTENT / SIDE)
    cell = tf.clip_by_value(cell, 0, _HOLE_SIDE - 1)[..., None]
    weights = tf.maximum(1 - tf.abs(cell - tf.range(_HOLE_SIDE, dtype=tf.float64)), 0)
    return tf.cast(weights, tf.float32)


def _window(places) -> tf.Tensor:
    """[N, S] float32: 1 in the box, falling to 0 at the edge of the hole, at places [N, S] in box sides."""
    return tf.cast(tf.clip_by_value((HOLE - 2 * tf.abs(places)) / (HOLE - 1.0), 0, 1), tf.float32)


def _objects(dataset: Dataset) -> _Objects:
    """Returns the labelled training objects, read without decoding an image."""
    boxes, classes, sizes, counts = [np.zeros([0, 4])], list[int](), list[tuple[int, ...]](), list[int]()
    for image in listed(dataset.serialized("train_labelled")):
        boxes.append(image.boxes)
        classes += image.labels
        sizes += [image.valid_size] * len(image.labels)
        counts.append(len(image.labels))
    return _Objects(np.concatenate(boxes), np.array(classes), np.array(sizes), np.array(counts))


def _predicted(dataset: Dataset, objects: _Objects, predictor: _Predictor) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each object's hole holds beyond its prediction, and the prediction, both [M, C, d]."""
    found = np.empty((len(objects.boxes), dataset.image_shape[2], _HOLE.sum()))
    behind, m = np.empty_like(found), 0
    labelled = dataset.serialized("train_labelled").map(dataset.decode).as_numpy_iterator()
    for record, count in zip(labelled, objects.counts, strict=True):
        for _ in range(count):
            crop = _crop(record.image, objects.boxes[m], record.valid_size)
            found[m] = predictor.residuals(crop)
            _, inside, mean = _parts(crop)
            behind[m] = inside - found[m] + mean
            m += 1
    return found, behind


def _noise(errors: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Power of errors [n, d] under boxes of each of `count` classes; of all if they are too few to tell."""
    mine = [errors[classes == c] for c in range(count)]
    return np.array([np.mean((some if len(some) >= FEWEST else errors) ** 2) for some in mine])


def _signal(residuals: np.ndarray, classes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Wiener's share of each class: 1 - `noise` / power of residuals, at least 0; NaN without an object."""
    mine = [residuals[classes == c] for c in range(len(noise))]
    power = np.array([np.mean(some**2) if len(some) else np.nan for some in mine])
    return _wiener(noise, power)


def _wiener(noise, power):
    """The share of `power` that is not `noise`, at least 0."""
    return np.maximum(0.0, 1.0 - noise / np.maximum(power, 1e-12))


def _clean_images(dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (image, valid size) for each of CROPS crops, from as many clean images as the limit allows."""
    limit = max(1, CLEAN_LIMIT // int(4 * np.prod(dataset.image_shape)))
    count = min(limit, dataset.count("train_clean"))
    numbers = np.arange(CROPS) * count // CROPS
    records = dataset.serialized("train_clean").take(count).map(dataset.decode).as_numpy_iterator()
    for number, record in enumerate(records):
        yield from [(record.image, record.valid_size)] * int((numbers == number).sum())


def _learn(dataset: Dataset, objects: _Objects) -> tuple[_Predictor, np.ndarray, np.ndarray]:
    """The predictor from crops of clean images where objects may be, its errors [n / 4, C, d], and whose.

    Errors are of other images than it was learned on. A clean image gets each time a labelled object's box,
    at its own place in the content, a little moved; the last result is the index [n / 4] of that object.
    """
    rng = np.random.default_rng(0)
    boxes, which = objects.boxes, np.empty(CROPS, int)
    crops = np.empty((CROPS, dataset.image_shape[2], SIDE, SIDE), np.float32)
    for n, (image, valid) in enumerate(_clean_images(dataset)):
        m = which[n] = rng.integers(len(boxes))
        limits = np.asarray(valid[::-1], np.float64)
        extent = np.minimum(boxes[m, 2:] - boxes[m, :2], limits - 1)
        start = boxes[m, :2] / objects.sizes[m][::-1] * limits + rng.uniform(-0.08, 0.08, 2) * limits
        start = np.clip(start, 0, limits - extent)
        crops[n] = _crop(image, np.concatenate([start, start + extent]), valid)
    # Crops are in the order of their images: with several images the errors are of other ones.
    last = CROPS - CROPS // 4
    around, inside, _ = _parts(crops[:last])
    x, y = around.reshape(-1, around.shape[-1]), inside.reshape(-1, inside.shape[-1])
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    ridge = RIDGE * len(x) * np.eye(x.shape[1])
    predictor = _Predictor(mean_x, mean_y, np.linalg.solve(x.T @ x + ridge, x.T @ (y - mean_y)))
    return predictor, predictor.residuals(crops[last:]), which[last:]


def _split(
    residuals: np.ndarray, classes: np.ndarray, errors: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The shared part of each object [M, d], and the weight of its own [M], from residuals [M, d].

    `errors` [n, d] have mean 0; `noise` is their power by class.
    The shared part is the class's mean residual; its strength in one object is the best linear unbiased
    estimate under the errors' covariance. The weight is Wiener's, one a class: the share of what remains that
    is no error of that class's boxes.
    """
    covariance = np.atleast_2d(np.cov(errors.T))
    power = np.trace(covariance) / len(covariance)
    covariance = covariance + (LOADING * power + 1e-8) * np.eye(len(covariance))
    shared, own = np.zeros_like(residuals), np.zeros(len(residuals))
    for c in np.unique(classes):
        mine = classes == c
        found = residuals[mine]
        if mine.sum() >= FEWEST:
            mean = found.mean(0)
            probe = np.linalg.solve(covariance, mean)
            strength = np.maximum(found @ probe / max(mean @ probe, 1e-12), FAINTEST)
            shared[mine] = strength[:, None] * mean
        own[mine] = _wiener(noise[c], np.mean((found - shared[mine]) ** 2))
    return shared, own


def _parts(crops: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops around [..., C, d'] and inside the hole [..., C, d], both minus a mean [..., C, 1], and that."""
    around = crops[..., ~_HOLE]
    mean = around.mean(-1, keepdims=True)
    return around - mean, crops[..., _HOLE] - mean, mean


def _crop(image: np.ndarray, box: np.ndarray, valid_size) -> np.ndarray:
    """[C, SIDE, SIDE]: bilinear, EXTENT box sides around the box's middle; the content's edge is repeated.

    An object at the edge is not repeated: there the edge is interpolated over the hole.
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
    )  # cells that show a row, a column of the hole
    _bridge(crop, (rows != y) & down, across)
    _bridge(crop.swapaxes(1, 2), (columns != x) & across, down)
    return crop


def _bridge(crop: np.ndarray, lines: np.ndarray, hole: np.ndarray) -> None:
    """In place: interpolates crops [C, rows, columns] over `hole`, some columns, in `lines`, some rows."""
    if hole.all():
        return
    at = np.arange(len(hole))
    for channel in crop:
        for row in np.flatnonzero(lines):
            channel[row, hole] = np.interp(at[hole], at[~hole], channel[row, ~hole])
