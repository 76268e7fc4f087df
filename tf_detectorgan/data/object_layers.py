"""What an object adds to its image: the object layer, so that it can be laid over another background.

X-rays of an object and of what is behind it add up, and a dent darkens whatever surface it is in. Cutting the
object out takes a piece of its old background along. Here the background behind each labelled object is
predicted from its surroundings, by a linear map that is learned on clean images, and what remains is split
into the part that all objects of a class share and the object's own part. The errors of the prediction are
known from clean images, so each part is weighted by how far it rises above them (decision 0068).
Letters: L labelled images, K padded boxes, S stored side, C channels, M objects, n crops, d cells of a hole.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError

SIDE = 40  # cells of a crop of a box and its surroundings
EXTENT = 4.0  # of the crop, in box sides
HOLE = 1.2  # of what is predicted and may hold a part of the object, in box sides
CROPS = 6000  # from clean images; a quarter measures the errors
RIDGE = 0.01  # of the linear map, variance of a pixel per crop
LOADING = 0.05  # added to the errors' covariance, in mean variances
FEWEST = 5  # objects of a class that shares a part
FAINTEST = 0.2  # strength of the shared part, in those of the mean object
CLEAN_LIMIT, LAYERS_LIMIT = 256 * 2**20, 2**31  # bytes

_CENTRES = ((np.arange(SIDE) + 0.5) / SIDE - 0.5) * EXTENT  # in box sides from the box's middle
_IN_HOLE = np.abs(_CENTRES) < HOLE / 2
_HOLE_SIDE = int(_IN_HOLE.sum())
_HOLE = _IN_HOLE[:, None] & _IN_HOLE[None, :]


class Layers(NamedTuple):
    """The layer of every labelled training object, and how far to trust them."""

    images: np.ndarray  # [L, K, S, S, C] float32, 0 away from the object's box
    signal: np.ndarray  # [classes] share of what the predicted background leaves that is no error; NaN: none


class _Predictor(NamedTuple):
    """What lies in the hole, from what lies around it; both minus the mean of what lies around."""

    around: np.ndarray  # [d'] mean
    inside: np.ndarray  # [d] mean
    weights: np.ndarray  # [d', d]

    def residuals(self, crops: np.ndarray) -> np.ndarray:
        """[n, C, d]: what the hole holds beyond the prediction, of crops [n, C, SIDE, SIDE]."""
        around, inside, _ = _parts(crops)
        return inside - self.inside - (around - self.around) @ self.weights


@functools.lru_cache(maxsize=1)
def object_layers(dataset: Dataset) -> Layers:
    """Layers of all labelled training objects. A background plus a layer shows the object; clip to [-1, 1].

    Raises:
      InputError: there are no clean or no labelled images, or too many for the memory.
    """
    labelled = list(dataset.serialized("train_labelled").map(dataset.decode).as_numpy_iterator())
    clean = _clean_images(dataset)
    if not labelled or not clean:
        raise InputError(f"{dataset.name}: object layers need clean and labelled training images")
    shape = (len(labelled), dataset.max_boxes, *dataset.image_shape)
    if 4 * np.prod(shape, dtype=np.int64) > LAYERS_LIMIT:
        raise InputError(
            f"{dataset.name}: layers of {len(labelled)} labelled images do not fit into "
            f"{LAYERS_LIMIT // 2**20} MiB; use --exemplar=image or fewer images"
        )
    objects = [(i, k) for i, one in enumerate(labelled) for k in range(len(one.labels))]
    boxes = np.array([labelled[i].boxes[k] for i, k in objects], np.float64)
    classes = np.array([labelled[i].labels[k] for i, k in objects])
    predictor, errors, which = _learn(clean, boxes, [labelled[i].valid_size for i, _ in objects])

    crops = np.stack(
        [
            _crop(labelled[i].image, box, labelled[i].valid_size)
            for (i, _), box in zip(objects, boxes, strict=True)
        ]
    )
    residuals = predictor.residuals(crops)
    _, inside, mean = _parts(crops)
    behind = inside - residuals + mean
    bias = errors.mean(0)
    flat, errors = (one.reshape(len(one), -1) for one in (residuals - bias, errors - bias))
    noise = _noise(errors, classes[which], len(dataset.class_names))
    shared, own = _split(flat, classes, errors, noise)
    layers = np.zeros(shape, np.float32)
    for m, (i, k) in enumerate(objects):
        common = _to_image(shared[m].reshape(residuals[m].shape), boxes[m], labelled[i].image.shape)
        whole = labelled[i].image - _to_image(behind[m], boxes[m], labelled[i].image.shape)
        layers[i, k] = _window(boxes[m], labelled[i].image.shape) * (common + own[m] * (whole - common))
    return Layers(layers, _signal(flat, classes, noise))


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


def _clean_images(dataset: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """(image, valid size) of the first clean images, as many as the limit allows."""
    count = max(1, CLEAN_LIMIT // int(4 * np.prod(dataset.image_shape)))
    records = dataset.serialized("train_clean").take(count).map(dataset.decode).as_numpy_iterator()
    return [(record.image, record.valid_size) for record in records]


def _learn(clean, boxes: np.ndarray, sizes) -> tuple[_Predictor, np.ndarray, np.ndarray]:
    """The predictor from crops of clean images where objects may be, its errors [n / 4, C, d], and whose.

    Errors are of other images than it was learned on. A clean image gets each time a labelled object's box,
    at its own place in the content, a little moved; the last result is the index [n / 4] of that object.
    """
    rng = np.random.default_rng(0)
    crops, which = [], []
    for n in range(CROPS):
        image, valid = clean[n * len(clean) // CROPS]
        m = rng.integers(len(boxes))
        which.append(m)
        limits = np.asarray(valid[::-1], np.float64)
        extent = np.minimum(boxes[m, 2:] - boxes[m, :2], limits - 1)
        start = boxes[m, :2] / np.asarray(sizes[m][::-1]) * limits + rng.uniform(-0.08, 0.08, 2) * limits
        start = np.clip(start, 0, limits - extent)
        crops.append(_crop(image, np.concatenate([start, start + extent]), valid))
    # Crops are in the order of their images: with several images the errors are of other ones.
    last = len(crops) - len(crops) // 4
    around, inside, _ = _parts(np.stack(crops[:last]))
    x, y = around.reshape(-1, around.shape[-1]), inside.reshape(-1, inside.shape[-1])
    mean_x, mean_y = x.mean(0), y.mean(0)
    x = x - mean_x
    ridge = RIDGE * len(x) * np.eye(x.shape[1])
    predictor = _Predictor(mean_x, mean_y, np.linalg.solve(x.T @ x + ridge, x.T @ (y - mean_y)))
    return predictor, predictor.residuals(np.stack(crops[last:])), np.array(which[last:])


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
    """Crops around [n, C, d'] and inside the hole [n, C, d], both minus a mean [n, C, 1], and that."""
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


def _to_image(hole: np.ndarray, box: np.ndarray, shape) -> np.ndarray:
    """[S, S, C]: the hole's cells [C, d] where they belong; beyond, the nearest cell is repeated."""
    across, down = _box_coordinates(box, shape)
    first = _CENTRES[_IN_HOLE][0]
    rows, columns = ((v - first) / (EXTENT / SIDE) for v in (down, across))
    where = np.meshgrid(rows, columns, indexing="ij")
    cells = hole.reshape(-1, _HOLE_SIDE, _HOLE_SIDE)
    return np.stack([ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in cells], -1)


def _window(box: np.ndarray, shape) -> np.ndarray:
    """[S, S, 1]: 1 in the box, falling to 0 at the edge of the hole."""
    across, down = (2 * np.abs(v) for v in _box_coordinates(box, shape))
    distance = np.maximum(down[:, None], across[None, :])
    return np.clip((HOLE - distance) / (HOLE - 1.0), 0, 1)[..., None].astype(np.float32)


def _box_coordinates(box: np.ndarray, shape) -> tuple[np.ndarray, np.ndarray]:
    """Columns' and rows' centres in box sides from the box's middle."""
    across = (np.arange(shape[1]) + 0.5 - (box[0] + box[2]) / 2) / max(box[2] - box[0], 1e-6)
    down = (np.arange(shape[0]) + 0.5 - (box[1] + box[3]) / 2) / max(box[3] - box[1], 1e-6)
    return across, down
