"""Reads NODE21 (node21.grand-challenge.org/Data): MetaImages and metadata.csv.

metadata.csv has one line for each nodule and for each clean image: img_name, label (1 nodule, 0 none), and
x, y, width, height in pixels, which are all 0 if label is 0.
"""

from __future__ import annotations

from pathlib import Path

from tf_detectorgan.data import medical_images
from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError

COLUMNS = ("img_name", "label", "x", "y", "width", "height")


def read(annotations: Path, images: Path) -> Document:
    """Reads a metadata.csv whose images are in `images`.

    Raises:
      InputError: metadata.csv cannot be read, or SimpleITK is not installed.
    """
    medical_images.library("SimpleITK")
    header, lines = table.read_lines(annotations)
    if missing := [column for column in COLUMNS if column not in header]:
        raise InputError(f"--annotations={annotations}: no column {', '.join(missing)}; is it from NODE21?")
    document = Document(annotations)
    nodule, rows = document.category("nodule"), dict[str, dict]()
    boxed = {row["img_name"].strip() for _, row in lines if row["label"].strip() == "1"}
    for number, row in lines:
        name, label = row["img_name"].strip(), row["label"].strip()
        image = rows.get(name) or rows.setdefault(name, document.add_image(name))
        if label not in ("0", "1"):
            document.add_fault(image, "unknown label", f"line {number}: label {label!r} must be 0 or 1")
        elif label == "0" and name in boxed:
            document.add_fault(
                image, "label 0 despite a box", f"line {number}: {name} has a box in another line"
            )
        elif label == "1":
            texts = [row[column].strip() for column in COLUMNS[2:]]
            try:
                document.add_box(image, nodule, [float(text) for text in texts], f"line {number}")
            except ValueError:
                what = f"line {number}: {name}: x, y, width, height must be numbers, not {texts}"
                document.add_fault(image, "malformed box", what)
    return document
