"""Checks the images and boxes of a `Document` completely before anything is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from os.path import isfile, normpath
from pathlib import Path
from typing import Any

from tf_detectorgan import progress
from tf_detectorgan.data import image_files, medical_images
from tf_detectorgan.data.document import Document, Mark
from tf_detectorgan.data.image_files import AnnotatedImage, Problems
from tf_detectorgan.errors import InputError

_WHITE_VALUES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits in 16-bit files
# Lower-case text of boolean CSV fields and JSON values.
_BOOLEANS = {
    "1": True,
    "true": True,
    "yes": True,
    "0": False,
    "false": False,
    "no": False,
    "": None,
    "none": None,
}
_SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclasses.dataclass(frozen=True)
class Keys:
    """The keys of an image entry that give its group, split and other properties."""

    group: str = "split_group"
    exclude: str = "exclude"
    split: str = ""  # "": the images have no such key
    training_only: str = ""  # "key=value"


@dataclasses.dataclass
class CheckedDocument:
    """The usable images and the classes of a `Document`."""

    sources: list[AnnotatedImage]
    class_names: list[str]
    notes: list[str]  # messages for the user
    white: int = 65535  # value of white in 16-bit files


def check(
    document: Document,
    images: Path,
    *,
    keys: Keys,
    label_filter: Collection[str] = (),
    skip_bad: bool = False,
) -> CheckedDocument:
    """Checks a document and decodes all of its images; writes nothing.

    Args:
      document: the annotations as a reader returned them.
      images: folder of the images; a file name may also be relative to the annotation file's folder.
      keys: names of the keys of an image entry.
      label_filter: names of the categories to keep (none: all); images with boxes of others only are clean.
      skip_bad: leave out bad images and boxes instead of raising.

    Raises:
      InputError: there are problems; the message counts all of them and shows the first ten.
    """
    problems, notes = Problems(document.file), list(document.notes)
    labels, class_names = _categories(document.categories, label_filter, document.file)
    sources = _images(document.images, document.file, images, keys, problems, notes)
    readable = [
        s
        for s in progress.bar(sources.values(), desc="checking images", unit="image")
        if image_files.inspect(s, problems)
    ]
    if not any(keys.group in row for row in document.images):
        readable = _grouped_by_patient(readable, keys, problems, notes)
    known = {row["id"] for row in document.images if isinstance(row.get("id"), int)}
    _boxes(document.annotations, {s.image_id: s for s in readable}, known, labels, problems, notes)
    for s in readable:
        if s.clean and s.boxes:
            what = f"{s.file_name} (image {s.image_id}): has {len(s.boxes)} boxes, but clean is true"
            problems.add("clean image with boxes", what)
    readable = [s for s in readable if not (s.clean and s.boxes)]
    notes += problems.settle(skip_bad)
    brightest = max((s.brightest for s in readable if s.bit_depth == 16), default=65535)
    white = next(white for white in _WHITE_VALUES if brightest <= white)
    if white < 65535:
        notes.append(f"no 16-bit image is brighter than {brightest}, so {white} is used as white")
    return CheckedDocument(readable, class_names, notes, white)


def _categories(
    rows: Sequence[Mapping], label_filter: Collection[str], file: Path
) -> tuple[dict[int, int | None], list[str]]:
    """Returns category id -> label (None: filtered out), and the class names in the order of the ids."""
    names: dict[int, str] = {}
    for row in rows:
        number, name = row.get("id"), row.get("name")
        if (
            not isinstance(number, int)
            or not isinstance(name, str)
            or not (name and name.isprintable() and name == name.strip())
            or number in names
            or name in names.values()
        ):
            raise InputError(
                f"{file}: category {row}: must have a unique integer 'id' and a unique 'name', in one line "
                "and without leading or trailing spaces"
            )
        names[number] = name
    for name in label_filter:
        if name not in names.values():
            raise InputError(
                f"--label_filter: {name!r} is not one of the categories {', '.join(names.values())}"
            )
    kept = [number for number in sorted(names) if not label_filter or names[number] in label_filter]
    if not kept:
        raise InputError(f"{file}: 'categories' is empty; add the class names")
    labels = {number: label for label, number in enumerate(kept)}
    return {number: labels.get(number) for number in names}, [names[number] for number in kept]


def _images(
    rows: Sequence[Mapping], file: Path, folder: Path, keys: Keys, problems: Problems, notes: list[str]
) -> dict[int, AnnotatedImage]:
    """Returns the usable images by id; adds bad ones to `problems`, and leaves excluded ones out."""
    grouped = any(keys.group in row for row in rows)
    if not grouped and keys.group != Keys.group:
        raise InputError(f"--group_key={keys.group}: no image of {file} has this key; correct the name")
    only_key, _, only_value = keys.training_only.partition("=")
    if only_key and not any(only_key in row for row in rows):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has a key {only_key!r}")
    sources: dict[int, AnnotatedImage] = {}
    ambiguous: set[int] = set()  # ids of two files, or of one file with two ids: the boxes cannot be assigned
    owners: dict[str, int] = {}  # path -> id
    excluded = 0
    for index, row in enumerate(rows):
        if _BOOLEANS.get(_normalized(row.get(keys.exclude)), True):  # other text, such as a reason, is true
            excluded += 1
        elif (fault := _image_fault(index, row, sources, keys, grouped)) is not None:
            problems.add(*fault)
            if fault[0] == "duplicate image id" and row["file_name"] != sources[row["id"]].file_name:
                ambiguous.add(row["id"])
        else:
            number, name = row["id"], row["file_name"]
            path = next((p for p in (folder / name, file.parent / name) if isfile(p)), folder / name)
            if (first := owners.setdefault(normpath(path), number)) != number:
                problems.add("file named twice", f"{name}: is listed as image {first} and image {number}")
                ambiguous |= {first, number}
            sources[number] = AnnotatedImage(
                image_id=number,
                file_name=name,
                path=path,
                group=str(row[keys.group]) if grouped else name,
                split=_SPLIT_NAMES[row[keys.split]] if keys.split else None,
                training_only=bool(only_key) and _normalized(row.get(only_key)) == _normalized(only_value),
                clean=_BOOLEANS.get(_normalized(row.get("clean"))),
                height=row.get("height", 0),
                width=row.get("width", 0),
            )
    if excluded == len(rows):
        raise InputError(f"--exclude_key={keys.exclude}: excludes all {excluded} images of {file}; change it")
    if excluded:
        notes.append(f"{excluded} images left out because of their key {keys.exclude!r}")
    if only_key and not any(s.training_only for s in sources.values()):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has this value; correct it")
    return {number: source for number, source in sources.items() if number not in ambiguous}


def _grouped_by_patient(
    sources: Sequence[AnnotatedImage], keys: Keys, problems: Problems, notes: list[str]
) -> list[AnnotatedImage]:
    """Sets the groups to the PatientIDs of the DICOM files, if any has one; returns the usable images.

    An image without PatientID is then added to `problems` and left out (decision 0013).
    """
    patients = {
        source.image_id: str(medical_images.dicom_header(source.path).get("PatientID") or "")
        for source in sources
        if medical_images.is_dicom(source.path)
    }
    if not any(patients.values()):
        notes.append(f"no image has a key {keys.group!r}: each image is its own group (see --group_key)")
        return list(sources)
    for source in sources:
        source.group = patients.get(source.image_id, "")
        if not source.group:
            entry = f"{source.file_name} (image {source.image_id})"
            problems.add("image without group", f"{entry}: no {keys.group!r} and no PatientID; add one")
    return [source for source in sources if source.group]


def _image_fault(
    index: int, row: Mapping, sources: Mapping[int, AnnotatedImage], keys: Keys, grouped: bool
) -> tuple[str, str] | None:
    """Returns (reason, message) if an image entry is invalid, else None."""
    number, name = row.get("id"), row.get("file_name")
    if Mark.FAULT in row:
        return row[Mark.FAULT]
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
        return "image without id or file_name", f"images[{index}]: id {number!r}, file_name {name!r}"
    if not -(2**63) <= number < 2**63:
        return "image without id or file_name", f"images[{index}]: id {number} does not fit into 64 bits"
    if not (_is_utf8(name) and _is_utf8(str(row.get(keys.group)))):
        return "name that is not UTF-8", f"image {number}: {name!r}, or its {keys.group}; rename it"
    if number in sources:
        first = sources[number].file_name
        return "duplicate image id", f"image id {number} is given twice: {first}, {name}"
    if grouped and row.get(keys.group) is None:
        return "image without group", f"{name} (image {number}): no {keys.group!r}; add it"
    if keys.split and str(row.get(keys.split)) not in _SPLIT_NAMES:
        found = row.get(keys.split)
        return "unknown split", f"{name} (image {number}): {keys.split} {found!r} is not train, val or test"
    return None


def _normalized(value: Any) -> str:
    return str(value).strip().lower()


def _is_utf8(name: str) -> bool:
    """Returns whether a name can be encoded; names in file systems and JSON may have unpaired surrogates."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _boxes(
    rows: Sequence[Mapping],
    sources: Mapping[int, AnnotatedImage],
    known: Collection[Any],
    labels: Mapping[int, int | None],
    problems: Problems,
    notes: list[str],
) -> None:
    """Adds all valid boxes to their `AnnotatedImage`."""
    seen: set[Any] = set()
    crowds = repeated = 0
    for index, row in enumerate(rows):
        number, image_id = row.get("id", index), row.get("image_id")
        where = row.get(Mark.WHERE) or f"annotation {number} (image {image_id})"
        source = sources.get(image_id) if isinstance(image_id, int) else None
        fault = _id_fault(number, image_id, seen, known, where)
        if fault is None and source is not None:
            fault = _row_fault(row, source, labels, where)
        if fault is not None:
            problems.add(*fault)
            if source is not None:
                source.mark_incomplete()
        elif source is None:  # its image is left out
            continue
        elif (label := labels[row["category_id"]]) is None:
            source.other_classes = True
        elif row.get("iscrowd"):
            crowds += 1
            source.mark_incomplete()
        else:
            repeated += not source.add_box(row["bbox"], label)
    if repeated:
        notes.append(f"{repeated} boxes repeat a box of the same image and class, and are ignored")
    if crowds:
        notes.append(f"{crowds} boxes with iscrowd are ignored; their images are used for training only")


def _id_fault(
    number: Any, image_id: Any, seen: set[Any], known: Collection[Any], where: str
) -> tuple[str, str] | None:
    """Returns (reason, message) if the ids of an annotation are invalid; adds its own id to `seen`."""
    if not isinstance(number, (int, str)):
        return "malformed annotation id", f"{where}: the id must be an integer or a string"
    if number in seen:
        return "duplicate annotation id", f"{where}: this annotation id is given twice"
    seen.add(number)
    if not isinstance(image_id, int) or image_id not in known:
        return "unknown image id", f"{where}: image_id {image_id!r} is not the id of an image"
    return None


def _row_fault(
    row: Mapping, source: AnnotatedImage, labels: Mapping[int, int | None], where: str
) -> tuple[str, str] | None:
    """Returns (reason, message) if an annotation of a usable image is invalid, else None."""
    if Mark.FAULT in row:
        return row[Mark.FAULT]
    category = row.get("category_id")
    if not isinstance(category, int) or category not in labels:
        return "unknown category", f"{where}: category_id {category!r} is not one of {sorted(labels)}"
    if labels[category] is None or row.get("iscrowd"):  # this box is not used
        return None
    fault = image_files.box_fault(row.get("bbox"), source.height, source.width)
    return fault and (fault[0], f"{source.file_name}, {where}: bbox {row.get('bbox')!r} {fault[1]}")
