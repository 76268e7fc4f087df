"""Reads the tables and finds the images of NIH ChestX-ray14, from its publisher or from Kaggle.

Wang et al., "ChestX-ray8", CVPR 2017. Its boxes are (x, y, width, height) in pixels of 1024 x 1024 images,
origin at the top left. The first eight digits of a file name, such as 00000013_005.png, are the patient's id.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tf_detectorgan.data import image_files
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError

SIDE = 1024  # pixels; side of the images to which the coordinates in the tables refer
FINDINGS = (  # findings with boxes
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
NO_FINDING = "No Finding"
_SPELLINGS = {"Infiltrate": "Infiltration"}  # spelling in the table of boxes -> in the table of labels
_NAME = re.compile(r"\d{8}_\d{3}\.png")

Box = tuple[float, float, float, float]  # x, y, width, height


def spelling(label: str) -> str:
    """Returns a finding as the table of labels spells it."""
    return _SPELLINGS.get(label, label)


def patient(name: str) -> str:
    """Returns the patient id in a file name."""
    return name[:8]


def find_table(folder: Path, pattern: str) -> Path:
    """Returns the file in `folder` that matches `pattern`; of several editions, the latest.

    Raises:
      InputError: no file matches.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(
            f"--images={folder}: no file {pattern}; give the folder that contains the publisher's tables and "
            "images_001 to images_012"
        )
    return found[-1]


def find_images(folder: Path) -> dict[str, Path]:
    """Returns file name -> path for every image below `folder`.

    They are in `images_001` to `images_012` (publisher), in `images_001/images` etc. (archives unpacked side
    by side, and Kaggle), or in `images` (archives unpacked into one folder). If a name occurs twice, the file
    that is first in this order is used.
    """
    parents = [*sorted(folder.glob("images_*")), *sorted(folder.glob("images_*/images")), folder / "images"]
    found: dict[str, Path] = {}
    for parent in parents:
        for path in sorted(parent.glob("*.png")):
            found.setdefault(path.name, path)
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields the rows of `table.rows` without spaces around fields and without trailing empty columns.

    The editions of the publisher and of Kaggle differ in the number of trailing empty columns.
    """
    for line, row in table.rows(path):
        fields = [field.strip() for field in row]
        while fields and not fields[-1]:
            fields.pop()
        if fields:
            yield line, fields


def checked_name(where: str, name: str) -> str:
    """Returns `name` if it is a file name of this data set.

    Raises:
      InputError: it is not; the message begins with `where`.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r} is not a file name such as 00000013_005.png")
    return name


def read_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Returns the boxes by finding and file name from `BBox_List_2017.csv` or a table with the same columns.

    Its header has nine fields, "Image Index,Finding Label,Bbox [x,y,w,h],,,", but its rows have six. So the
    columns are read by position. A repeated row counts once.

    Raises:
      InputError: a row is invalid; the message gives its line and value.
    """
    boxes: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    rows = _rows(path)
    _, header = next(rows, (0, [""]))
    if header[0] != "Image Index":
        raise InputError(
            f"{path}: begins with {header[0]!r}; the first line must be 'Image Index,Finding Label,"
            "Bbox [x,y,w,h]', each other line file name, finding, x, y, width, height"
        )
    for line, fields in rows:
        if len(fields) != 6:
            raise InputError(f"{path}: line {line}: {len(fields)} columns {fields}, must be 6")
        name, label = checked_name(f"{path}: line {line}", fields[0]), spelling(fields[1])
        if label not in FINDINGS:
            raise InputError(f"{path}: line {line}: finding {fields[1]!r} is not in {', '.join(FINDINGS)}")
        try:
            box = [float(field) for field in fields[2:]]
        except ValueError as error:
            raise InputError(f"{path}: line {line}: box {fields[2:]} must be four numbers") from error
        if (fault := image_files.box_fault(box, SIDE, SIDE)) is not None:
            raise InputError(f"{path}: line {line}: box {fields[2:]} {fault[1]}")
        if (found := (box[0], box[1], box[2], box[3])) not in boxes[label][name]:
            boxes[label][name].append(found)
    return boxes


def read_labels(path: Path) -> dict[str, frozenset[str]]:
    """Returns the findings of each image in `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`.

    Raises:
      InputError: a column is missing, a row is too short, or an image has two rows with different findings.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    columns = ("Image Index", "Finding Labels")
    for column in columns:
        if header.count(column) != 1:
            raise InputError(f"{path}: must have one column {column!r}; the header is {header}")
    name_column, label_column = map(header.index, columns)
    labels: dict[str, frozenset[str]] = {}
    for line, fields in rows:
        if len(fields) <= max(name_column, label_column):
            raise InputError(f"{path}: line {line}: only {len(fields)} columns {fields}")
        name = checked_name(f"{path}: line {line}", fields[name_column])
        found = frozenset(spelling(label.strip()) for label in fields[label_column].split("|"))
        if labels.setdefault(name, found) != found:
            raise InputError(
                f"{path}: line {line}: {name} is {fields[label_column]!r}, but in an earlier line "
                f"{'|'.join(sorted(labels[name]))!r}"
            )
    return labels


def read_list(path: Path) -> set[str]:
    """Returns the file names in `train_val_list.txt`, which has one per line.

    Raises:
      InputError: a line is not a file name, or the file is empty.
    """
    names = {checked_name(f"{path}: line {line}", ",".join(fields)) for line, fields in _rows(path)}
    if not names:
        raise InputError(f"{path}: has no file name")
    return names
