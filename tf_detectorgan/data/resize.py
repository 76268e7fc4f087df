"""Image files to square arrays of one size.

Letters: H, W of the file, h, w after resizing, S the stored side, C channels.
"""

from __future__ import annotations

import functools
from pathlib import Path

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps
from scipy import sparse

from tf_detectorgan.data import medical_images

_WHOLE = {"I;16", "I;16L", "I;16B", "I;16N", "I"}  # Pillow's modes of one channel, over 8 bits
_TIFF = (b"II*\0", b"MM\0*")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path) -> np.ndarray:
    """Pixels [H, W, C] of a file, uint8 or uint16, C 1 or 3; an alpha channel is dropped, a palette applied.

    8-bit files are turned as their EXIF orientation says, as annotation tools show them.

    Raises:
      ValueError, OSError: the file is no image, is damaged, or has another depth than 8 or 16 bits.
    """
    data = path.read_bytes()
    if data[128:132] == b"DICM":
        return medical_images.read_dicom(path)
    if path.suffix.lower() == ".mha":
        return _whole(medical_images.read_meta_image(path))
    if data.startswith(_PNG) and data[24:25] == b"\x10":  # bit depth; Pillow reads 16-bit colour as 8-bit
        try:
            pixels = tf.io.decode_png(data, dtype=tf.uint16).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise ValueError("not a complete PNG file") from error
        return pixels[..., : 1 if pixels.shape[-1] < 3 else 3]
    if data.startswith(_TIFF):  # Pillow reads no colour of 16 bits
        pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[1]
        if len(pages) > 1:
            raise ValueError(f"{len(pages)} pages: give files of one image")
        if pages and pages[0].ndim == 3 and pages[0].dtype == np.uint16:
            return pages[0][..., 2::-1]
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("several frames: give files of one image")
        image.load()
        if image.mode == "F":
            raise ValueError(f"pixel format {image.mode}: give 8 or 16 bits per channel")
        shown = ImageOps.exif_transpose(image)
        if shown.mode in ("1", "L", "LA", "La"):
            return np.asarray(shown.convert("L"))[..., None]
        return _whole(np.asarray(shown)) if shown.mode in _WHOLE else np.asarray(shown.convert("RGB"))


def _whole(pixels: np.ndarray) -> np.ndarray:
    """Whole numbers [H, W] as [H, W, 1] uint8 or uint16."""
    if pixels.dtype == np.uint8:
        return pixels[..., None]
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"values {pixels.min()} to {pixels.max()}: give 8 or 16 bits per channel")
    return pixels.astype(np.uint16)[..., None]


def is_grey(pixels: np.ndarray) -> bool:
    """Whether an image [H, W, C] has one channel, or three equal ones."""
    return pixels.shape[-1] == 1 or bool((pixels == pixels[..., :1]).all())


def convert(pixels: np.ndarray, channels: int, bit_depth: int, white: int = 65535) -> np.ndarray:
    """[H, W, any] to float32 [H, W, channels] in units of `bit_depth`; colour to grey by ITU-R 601 luma.

    `white` is the value of white in 16-bit files: 12-bit values kept in 16 bits have 4095.
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
    """(h, w) whose longer side is `longest`, with the same proportions as nearly as whole pixels allow."""
    scale = longest / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [H, W, C] to [height, width, C]: area average where it shrinks, linear where it grows."""
    rows, columns = _weights(pixels.shape[0], height), _weights(pixels.shape[1], width)
    planes = [(columns @ (rows @ pixels[:, :, c]).T).T for c in range(pixels.shape[-1])]
    return np.stack(planes, -1)


@functools.lru_cache(maxsize=64)
def _weights(source: int, target: int) -> sparse.csr_array:
    """[target, source] with rows that sum to 1: what every source pixel adds to a target pixel."""
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
    """[h, w, C] to [S, S, C] with zeros at the right and at the bottom."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, side - height), (0, side - width), (0, 0)))
