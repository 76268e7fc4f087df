"""Poisson blending (Perez et al. 2003) with OpenCV, a common way to paste objects without a network.

It is the baseline of NODE21's generation track. Letters: N images, H, W, C channels.
"""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Insertion

BORDER = 8  # pixels repeated around both images: OpenCV needs space around the object
MARGIN = 1.0  # pixels between the box and the seam, so that gradients at the box's edge are the object's


def poisson_blend(x, insertion: Insertion) -> tf.Tensor:
    """Returns x [N, H, W, C] in [-1, 1] with the gradients of `insertion.exemplars` inside its boxes.

    OpenCV uses 8 bits per channel, so 16-bit images lose depth inside the box, and only there.
    """
    height, width = x.shape[1:3]
    masks = boxes_lib.mask(boxes_lib.dilate(insertion.boxes, MARGIN), height, width)
    masks *= boxes_lib.mask(insertion.content, height, width)
    pairs = zip(np.asarray(x), np.asarray(insertion.exemplars), np.asarray(masks) > 0, strict=True)
    return tf.constant(np.stack([_blend(background, exemplar, mask) for background, exemplar, mask in pairs]))


def _blend(background: np.ndarray, exemplar: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns one blended image [H, W, C]; outside `mask` [H, W] it equals the background exactly."""
    padded = np.pad(mask.astype(np.uint8) * 255, BORDER)
    left, top, width, height = cv2.boundingRect(padded)
    # OpenCV moves the centre of the mask's bounding box to this point; here it stays in place.
    centre = (left + width // 2, top + height // 2)
    blended = cv2.seamlessClone(
        _eight_bits(exemplar), _eight_bits(background), padded, centre, cv2.NORMAL_CLONE
    )
    inside = blended[BORDER:-BORDER, BORDER:-BORDER]
    if background.shape[-1] == 1:
        inside = inside[..., :1]
    return np.where(mask[..., None], inside.astype(np.float32) / 127.5 - 1.0, background)


def _eight_bits(image: np.ndarray) -> np.ndarray:
    """Converts [H, W, C] in [-1, 1] to uint8 [H + 2 BORDER, W + 2 BORDER, 3]."""
    levels = np.clip(np.rint((image + 1.0) * 127.5), 0, 255).astype(np.uint8)
    levels = np.pad(levels, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), mode="edge")
    return np.repeat(levels, 3, axis=-1) if levels.shape[-1] == 1 else np.ascontiguousarray(levels)
