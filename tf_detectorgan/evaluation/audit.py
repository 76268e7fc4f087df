"""Audit of a synthetic set: measures inserted objects without training a detector on them.

Letters: N synthetic images, M real objects, H, W, C channels, F = CROP * CROP * C. Images are float32 in
[-1, 1]; boxes as in `boxes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy import stats

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.models.generators import reach
from tf_detectorgan.resampling import crop

CROP = 16  # side of the crops in which objects are compared
CONTEXT = 0.25  # margin of a crop around the box, in longer sides of the box
RING = 0.5  # width of the ring around a box for its contrast, in longer sides of the box
MEMORISED = 0.95  # quantile of real-to-real similarity above which a synthetic object is a copy


class Objects(NamedTuple):
    """Images with one object each; `content` is the box of the pixels that are not padding."""

    images: np.ndarray  # [N, H, W, C]
    boxes: np.ndarray  # [N, 4]
    content: np.ndarray  # [N, 4]


class Measures(NamedTuple):
    """The measures of synthetic or real objects."""

    contrast: np.ndarray  # [N], see `contrast`
    crops: np.ndarray  # [N, F], see `unit_crops`
    # Of synthetic objects only, [N] each: of `changes` and `HeldOutDetectors.score_objects`.
    more: dict[str, np.ndarray]


def measure(objects: Objects, backgrounds: np.ndarray | None = None, margin: float = 0.0) -> Measures:
    """Measures objects and, if they were inserted into `backgrounds` [N, H, W, C], the changes to these.

    `margin`: distance from a box, in its longer sides, up to which the method may change pixels; at least 2
    pixels.
    """
    more = {} if backgrounds is None else changes(objects, backgrounds, margin)
    return Measures(contrast(objects), unit_crops(objects), more)


def joined(parts: Sequence[Measures]) -> Measures:
    """Returns the measures of all parts, concatenated in order."""
    return Measures(
        np.concatenate([part.contrast for part in parts]),
        np.concatenate([part.crops for part in parts]),
        {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more},
    )


def audit(
    synthetic: Measures, real: Measures, groups: Sequence[bytes], found_real: float | None = None
) -> dict[str, Any]:
    """Compares synthetic objects with the real training objects.

    Args:
      synthetic, real: measures of both.
      groups: of the real objects [M]. With one group, "copies" and "nearest_real" are undefined (None).
      found_real: share of the real objects that `HeldOutDetectors` find; None: there are none.
    """
    more = synthetic.more
    nearest = similarity(synthetic.crops, real.crops).max(1)
    names = np.asarray(groups)
    others = names[:, None] != names[None]  # objects of one patient resemble each other
    among_real = np.where(others, similarity(real.crops, real.crops), -1.0).max(1)
    nearest_real = among_real[others.any(1)]
    compared = len(nearest_real) > 0
    return {
        "objects": len(nearest),
        "real_objects": len(names),
        "change_inside": float(more["inside"].mean()),
        "change_outside": float(more["outside"].mean()),
        "change_outside_worst": float(more["outside"].max()),
        "contrast": _median(synthetic.contrast),
        "contrast_real": _median(real.contrast),
        "contrast_distance": float(stats.ks_2samp(synthetic.contrast, real.contrast).statistic),
        "nearest": _median(nearest),
        "nearest_real": _median(nearest_real) if compared else None,
        "copies": float((nearest > np.quantile(nearest_real, MEMORISED)).mean()) if compared else None,
        "variety": variety(synthetic.crops),
        "variety_real": variety(real.crops),
        "found": float(more["found"].mean()) if "found" in more else None,
        "found_before": float(more["found_before"].mean()) if "found_before" in more else None,
        "found_real": found_real,
        "per_object": {name: _rounded(values) for name, values in more.items()}
        | {"contrast": _rounded(synthetic.contrast), "nearest": _rounded(nearest)},
    }


def changes(synthetic: Objects, backgrounds: np.ndarray, margin: float) -> dict[str, np.ndarray]:
    """Returns the mean absolute difference to the background, as a share of the grey range, each [N].

    "inside": in the box; 0 means that nothing was inserted. "outside": outside of the dilated box; it should
    be 0 except for the rounding of stored grey levels.
    """
    height, width = synthetic.images.shape[1:3]
    content = box_ops.mask(synthetic.content, height, width)
    box = box_ops.mask(synthetic.boxes, height, width) * content
    drawn = box_ops.dilate(synthetic.boxes, reach(synthetic.boxes, margin))
    beyond = (1.0 - box_ops.mask(drawn, height, width)) * content
    difference = tf.reduce_mean(tf.abs(synthetic.images - backgrounds), -1) / 2.0
    return {"inside": _mean(difference, box), "outside": _mean(difference, beyond)}


def contrast(objects: Objects) -> np.ndarray:
    """Returns (mean in the box - mean of the ring around it) / standard deviation of the ring, [N]."""
    height, width = objects.images.shape[1:3]
    content = box_ops.mask(objects.content, height, width)
    box = box_ops.mask(objects.boxes, height, width) * content
    wide = box_ops.dilate(objects.boxes, reach(objects.boxes, RING))
    ring = box_ops.mask(wide, height, width) * (1.0 - box) * content
    grey = tf.reduce_mean(objects.images, -1)
    around = _mean(grey, ring)
    deviation = np.sqrt(_mean((grey - around[:, None, None]) ** 2, ring))
    return (_mean(grey, box) - around) / np.maximum(deviation, 1e-3)


def unit_crops(objects: Objects) -> np.ndarray:
    """Returns crops of the objects with a margin, [N, F], mean 0, length 1; products are correlations."""
    crops = crop(tf.constant(objects.images), tf.constant(objects.boxes), CROP, CONTEXT)
    flat = tf.reshape(crops, [len(objects.images), -1]).numpy()
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns [N, M]: the higher correlation of `unit_crops` a [N, F] with b [M, F] and with b mirrored.

    Objects may be inserted mirrored, and a mirrored copy is a copy.
    """
    mirrored = b.reshape(len(b), CROP, CROP, -1)[:, :, ::-1].reshape(b.shape)
    return np.maximum(a @ b.T, a @ mirrored.T)


def variety(crops: np.ndarray) -> float:
    """Returns the mean of 1 - correlation over all pairs of `unit_crops` [N, F]; 0 if all are equal."""
    count = len(crops)
    if count < 2:
        return 0.0
    products = crops @ crops.T
    return float(1.0 - (products.sum() - np.trace(products)) / (count * (count - 1)))


def _mean(values, weights) -> np.ndarray:
    total = tf.reduce_sum(weights, [1, 2])
    return tf.math.divide_no_nan(tf.reduce_sum(values * weights, [1, 2]), total).numpy()


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 5) for v in values]
