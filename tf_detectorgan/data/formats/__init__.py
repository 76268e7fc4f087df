"""The supported annotation formats, and how the format of a folder is recognised."""

from __future__ import annotations

from collections.abc import Callable
from os.path import exists, isdir
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import coco_file, dicom, node21, table, voc, yolo
from tf_detectorgan.errors import InputError


class Format(NamedTuple):
    """An annotation format: how its files are found and read."""

    title: str
    find: Callable[[Path, Path], Path | None]  # (given path, image folder) -> annotations
    read: Callable[[Path, Path], Document]  # (annotations, image folder) -> their content
    files: str  # the files by which it is recognised, for messages


class Location(NamedTuple):
    """The paths of the annotations and images of one data set, and their format."""

    kind: str
    annotations: Path
    images: Path

    def read(self) -> Document:
        """Reads the annotations; `validation.check` checks them."""
        return FORMATS[self.kind].read(self.annotations, self.images)


def locate(kind: str, annotations: Path | None, images: Path | None) -> Location:
    """Returns the format and the paths of the annotations and images.

    Args:
      kind: a key of `FORMATS`, or "auto" to recognise the format by its files.
      annotations: file or folder; None: they are searched for in `images`.
      images: folder of the images; None: the folder that the format prescribes next to its annotations.

    Raises:
      InputError: a path does not exist, or contains annotations of no format or of several.
    """
    start = annotations or images
    if start is None:
        raise InputError("--annotations= is missing; give the file or folder with the boxes")
    if images is not None and not isdir(images):  # unlike Path.is_dir, false for a name too long
        raise InputError(f"--images={images}: no such directory; correct the path")
    if not exists(start):
        raise InputError(f"--annotations={start}: no such file or directory; correct the path")
    folder = images or (start if start.is_dir() else start.parent)
    if kind != "auto" and start.is_file():
        found = {kind: start}
    else:
        kinds = FORMATS if kind == "auto" else (kind,)
        found = {k: path for k in kinds if (path := FORMATS[k].find(start, folder)) is not None}
    if len(found) != 1:
        flag = "annotations" if annotations else "images"
        known = "; ".join(f"{k}: {FORMATS[k].files}" for k in (FORMATS if kind == "auto" else (kind,)))
        among = "; ".join(f"{k}: {path}" for k, path in found.items()) or f"none of {known}"
        raise InputError(
            f"--{flag}={start}: must contain annotations of one format, found {among}; give the file with "
            "--annotations and its format with --dataset"
        )
    kind, path = next(iter(found.items()))
    return Location(kind, path, images if images and annotations else _images_folder(kind, path))


def _images_folder(kind: str, annotations: Path) -> Path:
    """Returns the folder in which the format keeps its images.

    VOC: JPEGImages next to Annotations. NODE21: images next to metadata.csv. YOLO: if classes.txt is in
    `labels`, as LabelImg writes it, the folder above. Otherwise: the folder of the annotations.
    """
    here = annotations if annotations.is_dir() else annotations.parent
    if kind == "yolo" and here.name == "labels":
        return here.parent
    if (here.parent / "JPEGImages").is_dir() and here.name == "Annotations":
        return here.parent / "JPEGImages"
    if kind == "node21" and (here / "images").is_dir():
        return here / "images"
    return here


def _single_file(start: Path, suffix: str) -> Path | None:
    """Returns `start`, or the only file with this suffix in the folder `start`; None if there is not one."""
    if start.is_file():
        return start if start.suffix.lower() == suffix else None
    found = sorted(path for path in start.iterdir() if path.suffix.lower() == suffix)
    return found[0] if len(found) == 1 else None


def _contains(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:  # a folder of that name, a dangling link
        return False


def _find_coco(start: Path, images: Path) -> Path | None:
    """Returns the only JSON file with a key "images" (Label Studio's notes.json has "categories" only)."""
    if start.is_file():
        return _single_file(start, ".json")
    found = [path for path in sorted(start.glob("*.json")) if _contains(path, b'"images"')]
    if len(found) > 1:
        found = [path for path in found if _contains(path, b'"categories"')]
    return found[0] if len(found) == 1 else None


def _find_voc(start: Path, images: Path) -> Path | None:
    folders = (start, start / "Annotations") if start.is_dir() else ()
    return next((f for f in folders if any(_contains(p, b"<annotation") for p in f.glob("*.xml"))), None)


def _find_yolo(start: Path, images: Path) -> Path | None:
    if start.is_file():
        return start if start.suffix in (".yaml", ".yml") or start.name in yolo.NAME_FILES else None
    places = (start / folder / name for folder in ("", "labels") for name in yolo.NAME_FILES)
    return next((path for path in places if path.is_file()), None)


def _is_node21(path: Path) -> bool:
    try:
        header = path.read_text("utf-8-sig").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        return False
    return set(node21.COLUMNS) <= {name.strip() for name in header.split(",")}


def _find_csv(kind: str) -> Callable[[Path, Path], Path | None]:
    def find(start: Path, images: Path) -> Path | None:
        path = _single_file(start, ".csv")
        if path is None:
            return None
        recognised = "node21" if _is_node21(path) else "dicom" if dicom.likely(images) else "csv"
        return path if recognised == kind else None

    return find


FORMATS = {
    "coco": Format("COCO", _find_coco, coco_file.read, 'one .json file with "images"'),
    "voc": Format("Pascal VOC", _find_voc, voc.read, ".xml files, in Annotations or directly"),
    "yolo": Format(
        "YOLO", _find_yolo, yolo.read, ", ".join(yolo.NAME_FILES[:-1]) + f" or {yolo.NAME_FILES[-1]}"
    ),
    "node21": Format(
        "NODE21", _find_csv("node21"), node21.read, f"one .csv file with {','.join(node21.COLUMNS)}"
    ),
    "dicom": Format(
        "DICOM files with a CSV file", _find_csv("dicom"), dicom.read, "one .csv file, and DICOM files"
    ),
    "csv": Format("CSV file", _find_csv("csv"), table.read, "one .csv file"),
}
