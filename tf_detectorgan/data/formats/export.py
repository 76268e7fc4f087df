"""Writes a COCO folder also as Pascal VOC, YOLO or NODE21: the inverse of the readers beside this file."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tf_detectorgan.data import medical_images, resize
from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import coco_file, node21
from tf_detectorgan.errors import InputError
from tf_detectorgan.run_layout import ANNOTATIONS


def check(kinds: Sequence[str], class_names: Sequence[str], channels: int) -> None:
    """Whether a set of such images can be written in all of these formats, before any image is made.

    Raises:
      InputError: a format is unknown, or has no room for classes or colour, or its library is missing.
    """
    if len(set(kinds)) < len(kinds):
        raise InputError(f"--export={','.join(kinds)}: names a format twice")
    for kind in kinds:
        if kind not in WRITERS:
            raise InputError(f"--export: {kind!r} is none of {', '.join(WRITERS)}")
    if "node21" in kinds:
        if len(class_names) > 1 or channels > 1:
            raise InputError(
                f"--export=node21: holds grey images of one class, not {channels} channels of "
                f"{', '.join(class_names)}; choose another format"
            )
        medical_images.library("SimpleITK")


def write(kind: str, directory: Path) -> None:
    """Writes `directory`/annotations.json and its images once more, into the folder `directory`/`kind`.

    Boxes keep their fractions of a pixel, images their values.
    """
    WRITERS[kind](coco_file.document(directory / ANNOTATIONS), directory, directory / kind)


def _boxes(document: Document) -> dict[int, list[tuple[int, list[float]]]]:
    """Image id -> class (counted from 0 in the order of the ids) and x, y, width, height of its boxes."""
    order = {number: label for label, number in enumerate(sorted(row["id"] for row in document.categories))}
    found: dict[int, list[tuple[int, list[float]]]] = {image["id"]: [] for image in document.images}
    for row in document.annotations:
        found[row["image_id"]].append((order[row["category_id"]], row["bbox"]))
    return found


def _names(document: Document) -> list[str]:
    return [row["name"] for row in sorted(document.categories, key=lambda row: row["id"])]


def _write_voc(document: Document, source: Path, out: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    names, boxes, stems = _names(document), _boxes(document), []
    for image in document.images:
        path = source / image["file_name"]
        stems.append(path.stem)
        shutil.copyfile(path, out / "JPEGImages" / path.name)
        root = ElementTree.Element("annotation")
        channels = resize.read_image(path).shape[-1]
        _child(root, "folder", "JPEGImages")
        _child(root, "filename", path.name)
        size = ElementTree.SubElement(root, "size")
        for name, value in (("width", image["width"]), ("height", image["height"]), ("depth", channels)):
            _child(size, name, value)
        for label, (x, y, w, h) in boxes[image["id"]]:
            one = ElementTree.SubElement(root, "object")
            for name, value in (
                ("name", names[label]),
                ("pose", "Unspecified"),
                ("truncated", 0),
                ("difficult", 0),
            ):
                _child(one, name, value)
            box = ElementTree.SubElement(one, "bndbox")
            for name, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):
                _child(box, name, f"{value:.10g}")
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(out / "Annotations" / f"{path.stem}.xml", encoding="utf-8")
    (out / "ImageSets/Main/train.txt").write_text("\n".join(stems) + "\n", encoding="utf-8")


def _child(parent: ElementTree.Element, name: str, text: object) -> None:
    ElementTree.SubElement(parent, name).text = str(text)


def _write_yolo(document: Document, source: Path, out: Path) -> None:
    for folder in ("images/train", "labels/train"):
        (out / folder).mkdir(parents=True)
    boxes = _boxes(document)
    for image in document.images:
        path, width, height = source / image["file_name"], image["width"], image["height"]
        shutil.copyfile(path, out / "images/train" / path.name)
        lines = []
        for label, (x, y, w, h) in boxes[image["id"]]:
            shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(label), *(f"{share:.10g}" for share in shares)]) + "\n")
        (out / "labels/train" / f"{path.stem}.txt").write_text("".join(lines), encoding="utf-8")
    names = dict(enumerate(_names(document)))
    text = yaml.safe_dump({"path": ".", "train": "images/train", "names": names}, sort_keys=False)
    (out / "data.yaml").write_text(
        f"# Synthetic images are for training: add `val`, real images.\n{text}", "utf-8"
    )


def _write_node21(document: Document, source: Path, out: Path) -> None:
    itk = medical_images.library("SimpleITK")
    boxes = _boxes(document)
    (out / "images").mkdir(parents=True)
    with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(node21.COLUMNS)
        for image in document.images:
            path = source / image["file_name"]
            name = f"{path.stem}.mha"
            itk.WriteImage(
                itk.GetImageFromArray(resize.read_image(path)[..., 0]), str(out / "images" / name), True
            )
            lines = [[1, *(f"{v:.10g}" for v in box)] for _, box in boxes[image["id"]]]
            rows.writerows([name, *line] for line in lines or [[0] * 5])


WRITERS: dict[str, Callable[[Document, Path, Path], None]] = {
    "voc": _write_voc,
    "yolo": _write_yolo,
    "node21": _write_node21,
}
