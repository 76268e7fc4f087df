"""Reads YOLO (docs.ultralytics.com/datasets/detect): a text file per image, a line per box.

A line is `class x y width height`: centre and size of the box as fractions of the image's width or height.
The text file is next to the image, or in `labels/` if the image is in `images/`. An image without a text file
has no objects. The class names are in data.yaml, classes.txt or obj.names.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from PIL import ExifTags, Image

from tf_detectorgan.data.document import Document, Mark
from tf_detectorgan.errors import InputError

NAME_FILES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read(annotations: Path, images: Path) -> Document:
    """Reads all images below `images`; in folders named train, val (valid) or test they have a key `split`.

    Raises:
      InputError: the class names cannot be read.
    """
    document = Document(annotations)
    names = _class_names(annotations)
    for name in names:
        document.category(name)
    used: set[Path] = set()
    for path in sorted(p for p in images.rglob("*") if p.suffix.lower() in _SUFFIXES):
        relative = path.relative_to(images)
        part = next((_PARTS[p] for p in reversed(relative.parts[:-1]) if p in _PARTS), None)
        image = document.add_image(relative.as_posix(), **({"split": part} if part else {}))
        label_file = _label_file(path)
        used.add(label_file)
        if label_file.is_file():
            _add_boxes(document, image, label_file, _size(path), len(names))
    for stray in sorted(set(images.rglob("*.txt")) - used):
        if "labels" in stray.relative_to(images).parts and stray.name not in NAME_FILES:
            image = document.add_image(stray.relative_to(images).as_posix())
            image[Mark.FAULT] = ("missing image", f"{stray}: no image has this name")
    if any("split" in image for image in document.images):
        document.notes.append("folders give the split of each image; use it with --split_key=split")
    return document


def _class_names(file: Path) -> list[str]:
    try:
        text = file.read_text("utf-8-sig")
        if file.suffix not in (".yaml", ".yml"):
            names = [line.strip() for line in text.splitlines() if line.strip()]
        else:
            names = yaml.safe_load(text)["names"]
            if isinstance(names, dict):
                names = [names[number] for number in range(len(names))]
        if not names or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
            raise ValueError("names must be distinct strings, numbered from 0")
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise InputError(f"{file}: cannot read the class names ({error!r}); correct the file") from error
    return list(names)


def _label_file(image: Path) -> Path:
    parts = list(image.parts)
    if "images" in parts[:-1]:
        last = len(parts) - 1 - parts[::-1].index("images")
        there = Path(*parts[:last], "labels", *parts[last + 1 :]).with_suffix(".txt")
        if there.is_file():
            return there
    return image.with_suffix(".txt")


def _size(path: Path) -> tuple[int, int] | None:
    """Returns (width, height) after EXIF rotation; None if the file is damaged (`validation` reports it)."""
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # by 90 degrees
            return image.size[::-1] if rotated else image.size
    except Exception:  # decoders raise many types
        return None


def _add_boxes(
    document: Document, image: dict, file: Path, size: tuple[int, int] | None, classes: int
) -> None:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        document.add_fault(image, "unreadable label file", f"{file}: cannot be read as text ({error})")
        return
    for number, line in enumerate(lines, 1):
        where, fields = f"{file.name}, line {number}", line.split()
        if not fields or size is None:
            continue
        try:
            x, y, w, h = (float(field) for field in fields[1:])
            label = int(fields[0])
        except ValueError:
            what = f"{where}: {line!r} must be a class index and x y width height"
            document.add_fault(image, "malformed line", what)
            continue
        if not 0 <= label < classes:
            what = f"{where}: class {label} is not one of the {classes} classes of {document.file.name}"
            document.add_fault(image, "unknown category", what)
            continue
        width, height = size
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        document.add_box(image, label, box, where)
