"""Resizes and pads images to square arrays of one size.

Letters: H, W height and width of the file, h, w after resizing, S the stored side, C channels.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import sparse


def is_grey(pixels: np.ndarray) -> bool:
    """Returns whether an image [H, W, C] has one channel, or three equal ones."""
    return pixels.shape[-1] == 1 or bool((pixels == pixels[..., :1]).all())


def convert(pixels: np.ndarray, channels: int, bit_depth: int, white: int = 65535) -> np.ndarray:
    """Converts [H, W, C] to float32 [H, W, channels] in units of `bit_depth`; grey is ITU-R 601 luma.

    `white` is the value of white in 16-bit files: 4095 if they store 12-bit values.
    """
    scaled = pixels.astype(np.float32)
    if bit_depth == 16 and pixels.dtype == np.uint8:
        scaled *= 257.0  # 255 becomes 65535
    elif bit_depth == 16:
        scaled *= np.float32(65535 / white)
    if channels == 1 and not is_grey(pixels):
        return scaled @ np.array([[0.299], [0.587], [0.114]], np.float32)
    return scaled[..., :1] if channels == 1 else np.broadcast_to(scaled, (*scaled.shape[:2], 3))


def target_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Returns (h, w) with the longer side `longest` and the aspect ratio kept to the nearest pixel."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes float32 [H, W, C] to [height, width, C]; averages areas to shrink, interpolates to enlarge."""
    rows, columns = _weights(pixels.shape[0], height), _weights(pixels.shape[1], width)
    planes = [(columns @ (rows @ pixels[:, :, c]).T).T for c in range(pixels.shape[-1])]
    return np.stack(planes, -1)


@functools.lru_cache(maxsize=64)
def _weights(source: int, target: int) -> sparse.csr_array:
    """Returns the interpolation matrix [target, source]; its rows sum to 1."""
    if target <= source:
        edges = np.arange(target + 1) * (source / target)
        pixel = np.arange(source)
        low = np.maximum(edges[:-1, None], pixel)
        high = np.minimum(edges[1:, None], pixel + 1)
        weights = np.maximum(high - low, 0.0)
    else:
        centre = np.clip((np.arange(target) + 0.5) * (source / target) - 0.5, 0, source - 1)
        weights = np.maximum(1 - np.abs(centre[:, None] - np.arange(source)), 0.0)
    return sparse.csr_array((weights / weights.sum(1, keepdims=True)).astype(np.float32))


def pad(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pads [h, w, C] to [S, S, C] with zeros at the right and at the bottom."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, side - height), (0, side - width), (0, 0)))
