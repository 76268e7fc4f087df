"""Reads DICOM and MetaImage files; their libraries are imported when the first such file is read."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tf_detectorgan.errors import InputError


def library(name: str) -> ModuleType:
    """Imports and returns pydicom or SimpleITK.

    Raises:
      InputError: the library is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"{name} is not installed, but is needed for these images: pip install 'tf_detectorgan[medical]'"
        ) from error


def is_dicom(path: Path) -> bool:
    """Returns whether a file has the DICOM preamble (PS3.10, section 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def dicom_header(path: Path) -> Any:
    """Returns a DICOM file without its pixels."""
    return library("pydicom").dcmread(path, stop_before_pixels=True)


def read_dicom(path: Path) -> np.ndarray:
    """Returns pixels [H, W, C] as a viewer shows them, over the full range of uint8 (8 bits) or uint16.

    Grey values pass the modality LUT, then the first VOI LUT or window (PS3.3, C.11.1 and C.11.2). Without
    either, black and white are the smallest and largest values of BitsStored bits. MONOCHROME1 is inverted.

    Raises:
      ValueError and others of pydicom: several frames, a palette, or pixels that cannot be decoded.
    """
    pydicom = library("pydicom")
    data = pydicom.dcmread(path)
    if int(data.get("NumberOfFrames") or 1) > 1:
        raise ValueError(f"NumberOfFrames {data.NumberOfFrames}: give files with one frame")
    kind, bits = data.PhotometricInterpretation, int(data.BitsStored)
    dtype = np.uint8 if bits <= 8 else np.uint16
    if data.SamplesPerPixel == 3:
        low, high, pixels = 0.0, 2.0**bits - 1, data.pixel_array
    elif kind in ("MONOCHROME1", "MONOCHROME2"):
        values = pydicom.pixels.apply_modality_lut(data.pixel_array, data)
        pixels = pydicom.pixels.apply_voi_lut(values, data)[..., None]
        low, high = _grey_range(data)
    else:
        raise ValueError(f"PhotometricInterpretation {kind}: give MONOCHROME1, MONOCHROME2 or colour")
    fraction = np.clip((pixels.astype(np.float64) - low) / (high - low), 0.0, 1.0)
    if kind == "MONOCHROME1":
        fraction = 1.0 - fraction
    return np.rint(fraction * np.iinfo(dtype).max).astype(dtype)


def _grey_range(data: Any) -> tuple[float, float]:
    """Returns the output values of pydicom's VOI LUT or window that are black and white."""
    for sequence in ("VOILUTSequence", "ModalityLUTSequence"):
        if data.get(sequence):
            return 0.0, 2.0 ** int(data[sequence][0].LUTDescriptor[2]) - 1
    low = -(2.0 ** (data.BitsStored - 1)) if data.PixelRepresentation else 0.0
    slope, intercept = float(data.get("RescaleSlope", 1)), float(data.get("RescaleIntercept", 0))
    ends = low * slope + intercept, (low + 2.0**data.BitsStored - 1) * slope + intercept
    # With a window, pydicom inverts for a negative slope; without one, larger values are brighter.
    return ends if "WindowCenter" in data else (min(ends), max(ends))


def read_meta_image(path: Path) -> np.ndarray:
    """Returns the stored values [H, W] of a grey MetaImage (.mha).

    Raises:
      ValueError, RuntimeError: the file is not a single grey image, or is damaged.
    """
    pixels = library("SimpleITK").GetArrayFromImage(library("SimpleITK").ReadImage(str(path)))
    if pixels.ndim == 3 and pixels.shape[0] == 1:
        pixels = pixels[0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "iu":
        raise ValueError(f"{pixels.dtype} of shape {pixels.shape}: give one grey image of integers")
    return pixels
