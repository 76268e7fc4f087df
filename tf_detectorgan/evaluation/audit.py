"""Does the generator do its job? What synthetic images say about themselves, before any detector sees them.

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

CROP = 16  # side of the crops that objects are compared on
CONTEXT = 0.25  # surroundings in a crop, in longer sides of the box
RING = 0.5  # width of what a box is contrasted with, in longer sides
MEMORISED = 0.95  # quantile of real-to-real similarity above which a synthetic object is a copy


class Objects(NamedTuple):
    """Images with one object each; `content` is the box of what is no padding."""

    images: np.ndarray  # [N, H, W, C]
    boxes: np.ndarray  # [N, 4]
    content: np.ndarray  # [N, 4]


class Measures(NamedTuple):
    """What is kept of each synthetic or real object once its image is gone."""

    contrast: np.ndarray  # [N], see `contrast`
    crops: np.ndarray  # [N, F], see `unit_crops`
    more: dict[
        str, np.ndarray
    ]  # [N] each, of synthetic ones: see `changes` and `HeldOutDetectors.score_objects`


def measure(objects: Objects, backgrounds: np.ndarray | None = None, margin: float = 0.0) -> Measures:
    """Measures objects, and what was changed in `backgrounds` [N, H, W, C] where they were inserted.

    `margin`: how far beyond a box the method may draw, in longer sides, and at least 2 pixels.
    """
    more = {} if backgrounds is None else changes(objects, backgrounds, margin)
    return Measures(contrast(objects), unit_crops(objects), more)


def joined(parts: Sequence[Measures]) -> Measures:
    """The measures of all parts, in order."""
    return Measures(
        np.concatenate([part.contrast for part in parts]),
        np.concatenate([part.crops for part in parts]),
        {name: np.concatenate([part.more[name] for part in parts]) for name in parts[0].more},
    )


def audit(
    synthetic: Measures, real: Measures, groups: Sequence[bytes], found_real: float | None = None
) -> dict[str, Any]:
    """Synthetic objects against the real training objects.

    Args:
      synthetic, real: as measured.
      groups: of the real objects [M]; with one group alone nobody can say what a copy is ("copies",
        "nearest_real": None).
      found_real: share of the real objects that `HeldOutDetectors` find; None: nobody was asked.
    """
    more = synthetic.more
    nearest = similarity(synthetic.crops, real.crops).max(1)
    names = np.asarray(groups)
    others = names[:, None] != names[None]  # an object is alike to itself and to its patient's others
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
    """What was changed in each background, each [N].

    "inside": mean absolute difference in the box, as a share of the grey range; 0: nothing was inserted.
    "outside": the same beyond the dilated box; should be 0 but for the rounding of stored grey levels.
    """
    height, width = synthetic.images.shape[1:3]
    content = box_ops.mask(synthetic.content, height, width)
    box = box_ops.mask(synthetic.boxes, height, width) * content
    drawn = box_ops.dilate(synthetic.boxes, reach(synthetic.boxes, margin))
    beyond = (1.0 - box_ops.mask(drawn, height, width)) * content
    difference = tf.reduce_mean(tf.abs(synthetic.images - backgrounds), -1) / 2.0
    return {"inside": _mean(difference, box), "outside": _mean(difference, beyond)}


def contrast(objects: Objects) -> np.ndarray:
    """[N]: (mean in the box - mean around it) / standard deviation around it; bright objects are positive."""
    height, width = objects.images.shape[1:3]
    content = box_ops.mask(objects.content, height, width)
    box = box_ops.mask(objects.boxes, height, width) * content
    wide = box_ops.dilate(objects.boxes, reach(objects.boxes, RING))
    ring = box_ops.mask(wide, height, width) * (1.0 - box) * content
    grey = tf.reduce_mean(objects.images, -1)
    around = _mean(grey, ring)
    spread = np.sqrt(_mean((grey - around[:, None, None]) ** 2, ring))
    return (_mean(grey, box) - around) / np.maximum(spread, 1e-3)


def unit_crops(objects: Objects) -> np.ndarray:
    """[N, F]: crops of objects with a little around, mean 0, length 1; products are correlations."""
    crops = crop(tf.constant(objects.images), tf.constant(objects.boxes), CROP, CONTEXT)
    flat = tf.reshape(crops, [len(objects.images), -1]).numpy()
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[N, M]: the higher correlation of `unit_crops` a [N, F] with b [M, F] and with b mirrored.

    Objects may be inserted mirrored; those are copies as well.
    """
    mirrored = b.reshape(len(b), CROP, CROP, -1)[:, :, ::-1].reshape(b.shape)
    return np.maximum(a @ b.T, a @ mirrored.T)


def variety(crops: np.ndarray) -> float:
    """Mean of 1 - normalised correlation over pairs of `unit_crops` [N, F]: 0 if all are alike."""
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
