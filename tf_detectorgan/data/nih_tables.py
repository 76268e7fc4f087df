"""The tables and folders of NIH ChestX-ray14, as its publisher and as Kaggle hand them out.

Wang et al., "ChestX-ray8", CVPR 2017. Their boxes are (x, y, width, height) in pixels of 1024 x 1024 images,
origin at the top left. The first eight digits of a file's name, such as 00000013_005.png, are the patient.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tf_detectorgan.data import image_files
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError

SIDE = 1024  # pixels of the tables' coordinates
FINDINGS = (  # those with boxes
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
_SPELLINGS = {"Infiltrate": "Infiltration"}  # of the table of boxes, and of the table of labels
_NAME = re.compile(r"\d{8}_\d{3}\.png")

Box = tuple[float, float, float, float]  # x, y, width, height


def spelt(label: str) -> str:
    """A finding as the table of labels spells it."""
    return _SPELLINGS.get(label, label)


def patient(name: str) -> str:
    """The patient whose image a file is."""
    return name[:8]


def find_table(folder: Path, pattern: str) -> Path:
    """The table of that name, the latest where there are several years of it.

    Raises:
      InputError: there is none.
    """
    found = sorted(folder.glob(pattern))
    if not found:
        raise InputError(
            f"--images={folder}: no file {pattern}; give the folder that holds the publisher's tables and "
            "images_001 to images_012"
        )
    return found[-1]


def find_images(folder: Path) -> dict[str, Path]:
    """Every image below `folder` by its name.

    They lie in `images_001` to `images_012` (publisher), in `images_001/images` (its archives unpacked side
    by side, and Kaggle), or in `images` (its archives unpacked into one another). Of two files of one name,
    the first in this order is taken.
    """
    parents = [*sorted(folder.glob("images_*")), *sorted(folder.glob("images_*/images")), folder / "images"]
    found: dict[str, Path] = {}
    for parent in parents:
        for path in sorted(parent.glob("*.png")):
            found.setdefault(path.name, path)
    return found


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """`table.rows` without spaces around fields, and without empty columns at the end.

    The publisher's and Kaggle's editions have such columns in different numbers.
    """
    for line, row in table.rows(path):
        fields = [field.strip() for field in row]
        while fields and not fields[-1]:
            fields.pop()
        if fields:
            yield line, fields


def checked_name(where: str, name: str) -> str:
    """The name of an image, when it is one.

    Raises:
      InputError: it is not; `where` says whose it is.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{where}: {name!r} is no name such as 00000013_005.png")
    return name


def read_boxes(path: Path) -> dict[str, dict[str, list[Box]]]:
    """Boxes by finding and file name, of `BBox_List_2017.csv` or a table of its form.

    Its header is broken: nine fields, "Image Index,Finding Label,Bbox [x,y,w,h],,,", above rows of six. So
    the columns are read by their place. A row that is there twice counts once.

    Raises:
      InputError: a row is not of this form, with its line and value.
    """
    boxes: dict[str, dict[str, list[Box]]] = defaultdict(lambda: defaultdict(list))
    rows = _rows(path)
    _, header = next(rows, (0, [""]))
    if header[0] != "Image Index":
        raise InputError(
            f"{path}: begins with {header[0]!r}; the first line must be 'Image Index,Finding Label,"
            "Bbox [x,y,w,h]', the others file name, finding, x, y, width, height"
        )
    for line, fields in rows:
        if len(fields) != 6:
            raise InputError(f"{path}: line {line}: {len(fields)} columns {fields} where 6 are wanted")
        name, label = checked_name(f"{path}: line {line}", fields[0]), spelt(fields[1])
        if label not in FINDINGS:
            raise InputError(f"{path}: line {line}: finding {fields[1]!r} is none of {', '.join(FINDINGS)}")
        try:
            box = [float(field) for field in fields[2:]]
        except ValueError as error:
            raise InputError(f"{path}: line {line}: box {fields[2:]} is not four numbers") from error
        if (fault := image_files.box_fault(box, SIDE, SIDE)) is not None:
            raise InputError(f"{path}: line {line}: box {fields[2:]} {fault[1]}")
        if (found := (box[0], box[1], box[2], box[3])) not in boxes[label][name]:
            boxes[label][name].append(found)
    return boxes


def read_labels(path: Path) -> dict[str, frozenset[str]]:
    """The findings of every image, of `Data_Entry_2017.csv` or `Data_Entry_2017_v2020.csv`.

    Raises:
      InputError: a column is missing, a row is too short, or an image is there twice with other findings.
    """
    rows = _rows(path)
    _, header = next(rows, (0, []))
    columns = ("Image Index", "Finding Labels")
    for column in columns:
        if header.count(column) != 1:
            raise InputError(f"{path}: needs one column {column!r}, its header is {header}")
    name_column, label_column = map(header.index, columns)
    labels: dict[str, frozenset[str]] = {}
    for line, fields in rows:
        if len(fields) <= max(name_column, label_column):
            raise InputError(f"{path}: line {line}: only {len(fields)} columns {fields}")
        name = checked_name(f"{path}: line {line}", fields[name_column])
        found = frozenset(spelt(label.strip()) for label in fields[label_column].split("|"))
        if labels.setdefault(name, found) != found:
            raise InputError(
                f"{path}: line {line}: {name} is {fields[label_column]!r}, in a line before "
                f"{'|'.join(sorted(labels[name]))!r}"
            )
    return labels


def read_list(path: Path) -> set[str]:
    """File names of `train_val_list.txt`, one a line.

    Raises:
      InputError: a line is no file name, or there is none.
    """
    names = {checked_name(f"{path}: line {line}", ",".join(fields)) for line, fields in _rows(path)}
    if not names:
        raise InputError(f"{path}: names no image")
    return names
