"""Reads CSV files with a header and one box per line.

Columns, in any order and case: the image's name; four coordinates, either corners or x, y, width, height, in
pixels of the image file; optionally a class. A line with four empty coordinates declares an image without
objects. If all lines of an image agree in another column, that column becomes a key of the image, for
--group_key and similar options. If boxes are given by corners, `width` and `height` are the image's size.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.data.document import Document
from tf_detectorgan.errors import InputError

_NAMES = (
    "file_name", "filename", "file", "image", "image_path", "path", "img_name", "image_name", "image index",
    "sopinstanceuid", "image_id", "patientid",
)  # fmt: skip
_CLASSES = ("class", "class_name", "label", "category", "category_name", "finding label", "name")
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"))
_SIZES = (("x", "y", "width", "height"), ("x", "y", "w", "h"))
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".mha", ".dcm", ".dicom")


class Columns(NamedTuple):
    """The names of the columns that are used, spelled as in the header."""

    name: str
    box: Sequence[str]
    corners: bool  # whether `box` is two corners, not x, y, width, height
    category: str | None


def read(annotations: Path, images: Path) -> Document:
    """Reads a CSV file that names images by path below `images`, by file name, or by name without suffix.

    Raises:
      InputError: the file cannot be read, or lacks a column.
    """
    return assemble(annotations, names_of(image_paths(images), images))


def image_paths(folder: Path) -> list[Path]:
    """Returns the files below `folder` that have an image suffix."""
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]


def assemble(annotations: Path, names: Mapping[str, str]) -> Document:
    """Reads a CSV file.

    Args:
      annotations: the CSV file.
      names: each name that a line may use for an image -> its file name relative to the image folder.
    """
    header, lines = read_lines(annotations)
    columns = _columns(header, annotations)
    document = Document(annotations)
    of_image: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    for number, row in lines:
        name = row[columns.name].strip()
        of_image.setdefault(names.get(name, name), []).append((number, row))
    for file_name, own in of_image.items():
        others = [c for c in header if c not in (columns.name, columns.category, *columns.box)]
        agreed: dict[str, str | int] = {
            c: value for c in others if len({row[c] for _, row in own}) == 1 and (value := own[0][1][c])
        }
        agreed |= {c: int(size) for c in ("width", "height") if (size := str(agreed.get(c))).isdecimal()}
        image = document.add_image(file_name)
        image.update(agreed | image)
        _add_boxes(document, image, own, columns)
    if unlisted := len(set(names.values()) - set(of_image)):
        document.notes.append(
            f"{unlisted} images that {annotations.name} does not list are left out; to use an image without "
            "objects, add a line with empty coordinates"
        )
    return document


def _add_boxes(
    document: Document, image: dict, rows: Sequence[tuple[int, Mapping]], columns: Columns
) -> None:
    seen: dict[tuple, int] = {}
    boxed = any(row[column].strip() for _, row in rows for column in columns.box)
    for number, row in rows:
        texts = tuple(row[column].strip() for column in columns.box)
        name = row[columns.category].strip() if columns.category else "object"
        where = f"line {number}"
        if not any(texts):
            if boxed:
                document.add_fault(image, "line without a box", f"{where}: no box, but {image['file_name']} "
                                   "has one in another line")  # fmt: skip
            continue
        if (first := seen.setdefault((name, texts), number)) != number:
            document.add_fault(image, "duplicate line", f"{where}: the same box as in line {first}")
            continue
        try:
            a, b, c, d = (float(text) for text in texts)
        except ValueError:
            given = ", ".join(f"{k} {t!r}" for k, t in zip(columns.box, texts, strict=True))
            document.add_fault(image, "malformed box", f"{where}: {given} must be numbers, or all empty")
            continue
        if not name:
            document.add_fault(image, "box without class", f"{where}: {columns.category} is empty")
            continue
        box = [a, b, c - a, d - b] if columns.corners else [a, b, c, d]
        document.add_box(image, document.category(name), box, where)


def names_of(files: Sequence[Path], folder: Path) -> dict[str, str]:
    """Maps each unambiguous path, name or stem of a file below `folder` to its path relative to `folder`."""
    names: dict[str, str] = {}
    ambiguous: set[str] = set()
    for path in files:
        relative = path.relative_to(folder).as_posix()
        for name in {relative, path.name, path.stem}:
            if names.setdefault(name, relative) != relative:
                ambiguous.add(name)
    whole = {path.relative_to(folder).as_posix() for path in files}
    return {n: (n if n in whole else file) for n, file in names.items() if n in whole or n not in ambiguous}


def read_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Returns the header, and (line number, {column: field}) of each line after it.

    Raises:
      InputError: the file cannot be read or is empty, or has a repeated column or a line of other length.
    """
    lines = list(rows(path))
    if len(lines) < 2:
        raise InputError(f"--annotations={path}: needs a header and at least one line")
    header = [name.strip() for name in lines[0][1]]
    if len(set(header)) < len(header):
        raise InputError(f"--annotations={path}: the header {','.join(header)} names a column twice")
    for number, fields in lines[1:]:
        if len(fields) != len(header):
            raise InputError(
                f"--annotations={path}: line {number} must have {len(header)} fields, has {len(fields)}: "
                f"{','.join(fields)}"
            )
    return header, [(number, dict(zip(header, fields, strict=True))) for number, fields in lines[1:]]


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the line number and fields of each row that is not empty.

    Raises:
      InputError: the file is missing, is not UTF-8 text or has a quote that is not closed.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if fields:
                    yield reader.line_num, fields
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error


def _columns(header: Sequence[str], file: Path) -> Columns:
    """Returns the columns; raises InputError if there is none for the image's name or for the box."""
    spelled = {name.lower(): name for name in header}
    name = next((spelled[n] for n in _NAMES if n in spelled), None)
    box = next((box for box in (*_CORNERS, *_SIZES) if all(c in spelled for c in box)), None)
    if name is None or box is None:
        missing = f"the image's name ({', '.join(_NAMES)})" if name is None else "a box"
        raise InputError(
            f"--annotations={file}: no column for {missing} in {','.join(header)}; name the columns of a "
            "box xmin,ymin,xmax,ymax or x1,y1,x2,y2 or x,y,width,height"
        )
    category = next((spelled[c] for c in _CLASSES if c in spelled and spelled[c] != name), None)
    return Columns(name, [spelled[c] for c in box], box in _CORNERS, category)
