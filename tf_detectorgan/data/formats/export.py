"""Converts a COCO folder to Pascal VOC, YOLO or NODE21: the inverse of the readers in this package."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import yaml

from tf_detectorgan.data import image_files, medical_images
from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import coco_file, node21
from tf_detectorgan.errors import InputError
from tf_detectorgan.run_layout import ANNOTATIONS


def check(kinds: Sequence[str], class_names: Sequence[str], channels: int) -> None:
    """Checks, before any image is made, that the images can be written in all formats of `kinds`.

    Raises:
      InputError: a format is unknown, does not support these classes or channels, or lacks its library.
    """
    if len(set(kinds)) < len(kinds):
        raise InputError(f"--export={','.join(kinds)}: names a format twice; name each once")
    for kind in kinds:
        if kind not in WRITERS:
            raise InputError(f"--export: {kind!r} is not one of {', '.join(WRITERS)}")
    if "node21" in kinds:
        if len(class_names) > 1 or channels > 1:
            raise InputError(
                f"--export=node21: supports grey images of one class, not {channels} channels of "
                f"{', '.join(class_names)}; choose another format"
            )
        medical_images.library("SimpleITK")


def write(kind: str, directory: Path) -> None:
    """Writes `directory`/annotations.json and its images in the format `kind` into `directory`/`kind`.

    Box coordinates are not rounded; pixel values do not change.
    """
    WRITERS[kind](coco_file.document(directory / ANNOTATIONS), directory, directory / kind)


def _contents(document: Document, source: Path) -> tuple[list[str], list[tuple[dict, Path, list]]]:
    """Returns the class names in the order of their ids, and each image with its path and boxes.

    A box is (index of its class in that order, [x, y, width, height] in pixels).
    """
    categories = sorted(document.categories, key=lambda row: row["id"])
    order = {row["id"]: label for label, row in enumerate(categories)}
    boxes: dict[int, list] = {image["id"]: [] for image in document.images}
    for row in document.annotations:
        boxes[row["image_id"]].append((order[row["category_id"]], row["bbox"]))
    rows = [(image, source / image["file_name"], boxes[image["id"]]) for image in document.images]
    return [row["name"] for row in categories], rows


def _write_voc(document: Document, source: Path, out: Path) -> None:
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (out / folder).mkdir(parents=True)
    names, images = _contents(document, source)
    for image, path, boxes in images:
        shutil.copyfile(path, out / "JPEGImages" / path.name)
        root = ElementTree.Element("annotation")
        _add(root, folder="JPEGImages", filename=path.name)
        depth = image_files.read_image(path).shape[-1]
        _add(ElementTree.SubElement(root, "size"), width=image["width"], height=image["height"], depth=depth)
        for label, (x, y, w, h) in boxes:
            one = ElementTree.SubElement(root, "object")
            _add(one, name=names[label], pose="Unspecified", truncated=0, difficult=0)
            corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
            _add(ElementTree.SubElement(one, "bndbox"), **{k: f"{v:.10g}" for k, v in corners.items()})
        ElementTree.indent(root)
        ElementTree.ElementTree(root).write(out / "Annotations" / f"{path.stem}.xml", encoding="utf-8")
    stems = "".join(f"{path.stem}\n" for _, path, _ in images)
    (out / "ImageSets/Main/train.txt").write_text(stems, encoding="utf-8")


def _add(parent: ElementTree.Element, **texts: object) -> None:
    for name, text in texts.items():
        ElementTree.SubElement(parent, name).text = str(text)


def _write_yolo(document: Document, source: Path, out: Path) -> None:
    for folder in ("images/train", "labels/train"):
        (out / folder).mkdir(parents=True)
    names, images = _contents(document, source)
    for image, path, boxes in images:
        width, height = image["width"], image["height"]
        shutil.copyfile(path, out / "images/train" / path.name)
        lines = []
        for label, (x, y, w, h) in boxes:
            fractions = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
            lines.append(" ".join([str(label), *(f"{fraction:.10g}" for fraction in fractions)]) + "\n")
        (out / "labels/train" / f"{path.stem}.txt").write_text("".join(lines), encoding="utf-8")
    layout = {"path": ".", "train": "images/train", "names": dict(enumerate(names))}
    text = yaml.safe_dump(layout, sort_keys=False)
    (out / "data.yaml").write_text(
        f"# Synthetic images are for training only: add real images as `val`.\n{text}", "utf-8"
    )


def _write_node21(document: Document, source: Path, out: Path) -> None:
    itk = medical_images.library("SimpleITK")
    (out / "images").mkdir(parents=True)
    with (out / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(node21.COLUMNS)
        for _, path, boxes in _contents(document, source)[1]:
            name = f"{path.stem}.mha"
            itk.WriteImage(
                itk.GetImageFromArray(image_files.read_image(path)[..., 0]), str(out / "images" / name), True
            )
            lines = [[1, *(f"{v:.10g}" for v in box)] for _, box in boxes]
            rows.writerows([name, *line] for line in lines or [[0] * 5])


WRITERS: dict[str, Callable[[Document, Path, Path], None]] = {
    "voc": _write_voc,
    "yolo": _write_yolo,
    "node21": _write_node21,
}
