"""NODE21 (node21.grand-challenge.org/Data): MetaImages, and metadata.csv, a line a nodule or clean image.

A line has img_name, label (1 nodule, 0 none), and x, y, width, height in pixels, all 0 where the label is.
"""

from __future__ import annotations

from pathlib import Path

from tf_detectorgan.data import medical_images
from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError

COLUMNS = ("img_name", "label", "x", "y", "width", "height")


def read(annotations: Path, images: Path) -> Document:
    """A metadata.csv and its images.

    Raises:
      InputError: it cannot be read, or SimpleITK is not installed.
    """
    medical_images.library("SimpleITK")
    header, lines = table.read_lines(annotations)
    if missing := [column for column in COLUMNS if column not in header]:
        raise InputError(f"--annotations={annotations}: no column {', '.join(missing)}; is it NODE21's file?")
    document = Document(annotations)
    nodule, rows = document.category("nodule"), dict[str, dict]()
    boxed = {row["img_name"].strip() for _, row in lines if row["label"].strip() == "1"}
    for number, row in lines:
        name, label = row["img_name"].strip(), row["label"].strip()
        image = rows.get(name) or rows.setdefault(name, document.add_image(name))
        if label not in ("0", "1"):
            document.add_fault(image, "unknown label", f"line {number}: label {label!r} is neither 0 nor 1")
        elif label == "0" and name in boxed:
            document.add_fault(
                image, "label 0 beside a box", f"line {number}: {name}, which has a box in another line"
            )
        elif label == "1":
            texts = [row[column].strip() for column in COLUMNS[2:]]
            try:
                document.add_box(image, nodule, [float(text) for text in texts], f"line {number}")
            except ValueError:
                what = f"line {number}: {name}: x, y, width, height {texts}: must be four numbers"
                document.add_fault(image, "malformed box", what)
    return document
