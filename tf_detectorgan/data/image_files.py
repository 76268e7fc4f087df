"""Reads image files, and collects the problems of annotated images."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from tf_detectorgan.data import medical_images, resize, split_guard
from tf_detectorgan.errors import InputError

_TOLERANCE = 1.0  # pixels by which a box may exceed the image (rounding of annotation tools); it is clipped
_SHOWN = 10  # problems that an error message lists
_UINT_MODES = {"I;16", "I;16L", "I;16B", "I;16N", "I"}  # Pillow's modes of one channel, over 8 bits
_TIFF = (b"II*\0", b"MM\0*")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_image(path: Path) -> np.ndarray:
    """Returns pixels [H, W, C], uint8 or uint16, C 1 or 3; drops an alpha channel, applies a palette.

    The EXIF orientation is applied to 8-bit files, as annotation tools do.

    Raises:
      ValueError, OSError: the file is not an image, is damaged, or does not have 8 or 16 bits.
    """
    data = path.read_bytes()
    if data[128:132] == b"DICM":
        return medical_images.read_dicom(path)
    if path.suffix.lower() == ".mha":
        return _to_uint(medical_images.read_meta_image(path))
    if data.startswith(_PNG) and data[24:25] == b"\x10":  # bit depth; Pillow reads 16-bit colour as 8-bit
        try:
            pixels = tf.io.decode_png(data, dtype=tf.uint16).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise ValueError("the PNG file is incomplete") from error
        return pixels[..., : 1 if pixels.shape[-1] < 3 else 3]
    if data.startswith(_TIFF):  # Pillow cannot read 16-bit colour
        pages = cv2.imdecodemulti(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)[1]
        if len(pages) > 1:
            raise ValueError(f"{len(pages)} pages: give files with one image")
        if pages and pages[0].ndim == 3 and pages[0].dtype == np.uint16:
            return pages[0][..., 2::-1]
    with Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError("several frames: give files with one image")
        image.load()
        if image.mode == "F":
            raise ValueError(f"pixel format {image.mode}: give 8 or 16 bits per channel")
        shown = ImageOps.exif_transpose(image)
        if shown.mode in ("1", "L", "LA", "La"):
            return np.asarray(shown.convert("L"))[..., None]
        return _to_uint(np.asarray(shown)) if shown.mode in _UINT_MODES else np.asarray(shown.convert("RGB"))


def _to_uint(pixels: np.ndarray) -> np.ndarray:
    """Converts integer pixels [H, W] to [H, W, 1] uint8 or uint16."""
    if pixels.dtype == np.uint8:
        return pixels[..., None]
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError(f"values {pixels.min()} to {pixels.max()}: give 8 or 16 bits per channel")
    return pixels.astype(np.uint16)[..., None]


@dataclasses.dataclass
class AnnotatedImage:
    """An image file and its annotations."""

    image_id: int
    file_name: str
    path: Path
    group: str
    split: str | None  # None: not given in the annotations
    training_only: bool
    clean: bool | None  # None: not given in the annotations
    height: int = 0
    width: int = 0
    bit_depth: int = 8
    grey: bool = True
    brightest: int = 0  # largest stored value
    boxes: list[tuple[float, float, float, float]] = dataclasses.field(default_factory=list)  # x0, y0, x1, y1
    labels: list[int] = dataclasses.field(default_factory=list)
    fingerprint: split_guard.Fingerprint | None = None  # set by `inspect`
    incomplete: bool = False  # has objects without a usable box: a crowd, or a skipped box
    other_classes: bool = False  # has boxes of categories that --label_filter removes

    @property
    def stream(self) -> str:
        """The stream of the image: labelled, unboxed or clean."""
        if self.boxes:
            return "labelled"
        if self.incomplete or (self.clean is False and not self.other_classes):
            return "unboxed"
        return "clean"

    def read(self) -> np.ndarray:
        """Returns the image's pixels [height, width, C], see `read_image`."""
        return read_image(self.path)

    def add_box(self, bbox: Sequence[float], label: int) -> bool:
        """Adds a box (x, y, width, height), clipped to the image; returns False if it exists already."""
        x, y, w, h = bbox
        corners = (max(x, 0.0), max(y, 0.0), min(x + w, self.width), min(y + h, self.height))
        if (corners, label) in zip(self.boxes, self.labels, strict=True):
            return False
        self.boxes.append(corners)
        self.labels.append(label)
        return True

    def mark_incomplete(self) -> None:
        """Marks the boxes as incomplete: the image is not clean, and is used for training only."""
        self.incomplete = self.training_only = True


class Problems:
    """Collects the problems of single images and boxes, so that one run reports all of them."""

    def __init__(self, file: Path):
        self.file = file
        self.messages: list[str] = []
        self.reasons: Counter[str] = Counter()

    def add(self, reason: str, message: str) -> None:
        self.reasons[reason] += 1
        self.messages.append(message)

    def settle(self, skip: bool) -> list[str]:
        """Returns notes that count the problems; raises InputError with the first ones unless `skip`."""
        if self.messages and not skip:
            count, shown = len(self.messages), self.messages[:_SHOWN]
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self.reasons.most_common())
            more = [f"... and {count - _SHOWN} more; in total {reasons}"] if count > _SHOWN else []
            raise InputError(
                f"{self.file}: {count} problem{'s' if count > 1 else ''}; correct them, or skip these images "
                "and boxes with --skip_bad:\n  " + "\n  ".join(shown + more)
            )
        return [f"skipped {count} x {reason}" for reason, count in sorted(self.reasons.items())]


def inspect(source: AnnotatedImage, problems: Problems) -> bool:
    """Decodes the file and sets its size, depth, colour and fingerprint in `source`.

    If the file cannot be used, adds a problem and returns False.
    """
    entry = f"{source.path} (image {source.image_id})"
    if not isfile(source.path):  # unlike Path.is_file, False for a name that is too long
        problems.add(
            "missing image", f"{entry}: no such file there or next to the annotation file; set --images"
        )
        return False
    try:
        pixels = read_image(source.path)
    except InputError:  # a library is not installed
        raise
    except Exception as error:  # decoders raise many types
        problems.add("undecodable image", f"{entry}: cannot be decoded ({error})")
        return False
    height, width = pixels.shape[:2]
    for name, stated, found in (("width", source.width, width), ("height", source.height, height)):
        if stated and stated != found:
            problems.add(
                "image of another size",
                f"{entry}: {name} {stated!r} in the annotation file, {found} in the image file: "
                "correct one of them (the EXIF orientation is applied before the size is compared)",
            )
            return False
    source.height, source.width = height, width
    source.bit_depth, source.grey = 8 * pixels.dtype.itemsize, resize.is_grey(pixels)
    # DICOM files define white, and `read_dicom` has already scaled to it.
    source.brightest = 65535 if medical_images.is_dicom(source.path) else int(pixels.max())
    source.fingerprint = split_guard.fingerprint(pixels)
    return True


def box_fault(box: Any, height: int, width: int) -> tuple[str, str] | None:
    """Returns (reason, message) if a COCO box is invalid for an image of this size, else None."""
    numbers = isinstance(box, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in box
    )
    if not numbers or len(box) != 4:
        return "malformed box", "must be four numbers x, y, width, height"
    if not all(abs(v) < 2**63 for v in box):
        return "NaN or infinite box", "has a value that is not finite or exceeds 64 bits"
    x, y, w, h = box
    if w < 0 or h < 0:
        return "negative box size", "has a negative width or height; give x, y, width, height"
    if w == 0 or h == 0:
        return "zero-area box", "has zero area"
    outside = max(-x, -y, x + w - width, y + h - height)
    if outside > _TOLERANCE:
        return (
            "box outside the image",
            f"lies up to {outside:g} px outside the image of {width} x {height} px",
        )
    if min(x + w, width) - max(x, 0) <= 0 or min(y + h, height) - max(y, 0) <= 0:
        return "zero-area box", "has zero area inside the image"
    return None
