"""The forms in which people keep images with boxes, and which of them a folder has."""

from __future__ import annotations

from collections.abc import Callable
from os.path import exists, isdir
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import coco_file, dicom, node21, table, voc, yolo
from tf_detectorgan.errors import InputError


class Format(NamedTuple):
    """One form of annotations."""

    title: str
    find: Callable[[Path, Path], Path | None]  # given path, folder of images -> the annotations
    read: Callable[[Path, Path], Document]  # annotations, folder of images
    mark: str  # what it is known by, for messages


class Place(NamedTuple):
    """Where annotations and images of a recognised format lie."""

    kind: str
    annotations: Path
    images: Path

    def read(self) -> Document:
        """What the annotations say, not yet checked."""
        return FORMATS[self.kind].read(self.annotations, self.images)


def locate(kind: str, annotations: Path | None, images: Path | None) -> Place:
    """Finds the annotations of the format `kind`, or of any if it is "auto".

    Args:
      kind: a key of `FORMATS`, or "auto".
      annotations: file or folder; None: look into `images`.
      images: folder of the images; None: where the format has them beside its annotations.

    Raises:
      InputError: a path does not exist, or holds none or several of the formats.
    """
    start = annotations or images
    if start is None:
        raise InputError("--annotations= is missing: the file or folder with the boxes")
    if images is not None and not isdir(images):  # unlike Path.is_dir, false for a name too long
        raise InputError(f"--images={images}: no such directory")
    if not exists(start):
        raise InputError(f"--annotations={start}: no such file or directory")
    folder = images or (start if start.is_dir() else start.parent)
    if kind != "auto" and start.is_file():
        found = {kind: start}
    else:
        kinds = FORMATS if kind == "auto" else (kind,)
        found = {k: path for k in kinds if (path := FORMATS[k].find(start, folder)) is not None}
    if len(found) != 1:
        flag = "annotations" if annotations else "images"
        wanted = "; ".join(f"{k}: {FORMATS[k].mark}" for k in (FORMATS if kind == "auto" else (kind,)))
        among = "; ".join(f"{k}: {path}" for k, path in found.items()) or f"none of {wanted}"
        raise InputError(
            f"--{flag}={start}: must hold one kind of annotations, found {among}; name the file by "
            "--annotations and its kind by --dataset"
        )
    kind, path = next(iter(found.items()))
    return Place(kind, path, images if images and annotations else _images_beside(kind, path))


def _images_beside(kind: str, annotations: Path) -> Path:
    """JPEGImages beside VOC's Annotations, images beside NODE21's metadata.csv; else the same folder.

    Above YOLO's `labels`, where LabelImg puts classes.txt.
    """
    here = annotations if annotations.is_dir() else annotations.parent
    if kind == "yolo" and here.name == "labels":
        return here.parent
    if (here.parent / "JPEGImages").is_dir() and here.name == "Annotations":
        return here.parent / "JPEGImages"
    if kind == "node21" and (here / "images").is_dir():
        return here / "images"
    return here


def _only(start: Path, suffix: str) -> Path | None:
    """`start` itself, or the one file of this suffix in the folder `start`."""
    if start.is_file():
        return start if start.suffix.lower() == suffix else None
    found = sorted(path for path in start.iterdir() if path.suffix.lower() == suffix)
    return found[0] if len(found) == 1 else None


def _mentions(path: Path, words: bytes) -> bool:
    try:
        return words in path.read_bytes()
    except OSError:  # a folder of that name, a link to nothing
        return False


def _find_coco(start: Path, images: Path) -> Path | None:
    """The only json file that has COCO's images (Label Studio's notes.json has categories only)."""
    if start.is_file():
        return _only(start, ".json")
    found = [path for path in sorted(start.glob("*.json")) if _mentions(path, b'"images"')]
    if len(found) > 1:
        found = [path for path in found if _mentions(path, b'"categories"')]
    return found[0] if len(found) == 1 else None


def _find_voc(start: Path, images: Path) -> Path | None:
    folders = (start, start / "Annotations") if start.is_dir() else ()
    return next((f for f in folders if any(_mentions(p, b"<annotation") for p in f.glob("*.xml"))), None)


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
        path = _only(start, ".csv")
        if path is None:
            return None
        its = "node21" if _is_node21(path) else "dicom" if dicom.likely(images) else "csv"
        return path if its == kind else None

    return find


FORMATS = {
    "coco": Format("COCO", _find_coco, coco_file.read, 'one .json file with "images"'),
    "voc": Format("Pascal VOC", _find_voc, voc.read, ".xml files, perhaps in Annotations"),
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
