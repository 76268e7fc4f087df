"""Images and boxes in the terms of a COCO annotation file, checked whole before anything is made of them."""

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

_WHITES = (255, 1023, 4095, 16383, 65535)  # of 8, 10, 12, 14 and 16 bits, all kept in files of 16
# What tables write, and JSON's values are as text, in a column that says yes or no.
_SAID = {
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
    """Which keys of an image entry say what."""

    group: str = "split_group"
    exclude: str = "exclude"
    split: str = ""  # "": images carry no split of their own
    training_only: str = ""  # "key=value"


@dataclasses.dataclass
class Folder:
    """What a `Document` holds once it is checked."""

    sources: list[AnnotatedImage]
    class_names: list[str]
    notes: list[str]  # what a user should know, one sentence each
    white: int = 65535  # stored value of white in 16-bit files


def check(
    document: Document,
    images: Path,
    *,
    keys: Keys,
    label_filter: Collection[str] = (),
    skip_bad: bool = False,
) -> Folder:
    """Checks a document and every image it names; writes nothing.

    Args:
      document: what a reader found.
      images: where the images are; a file name may also be relative to the annotation file's folder.
      keys: names of the keys of an image entry.
      label_filter: names of the categories to keep (none: all); an image with boxes of others only is clean.
      skip_bad: leave out bad images and boxes instead of raising.

    Raises:
      InputError: everything that is wrong, the first ten problems in full.
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
            what = f"{s.file_name} (image {s.image_id}): clean is true, boxes {len(s.boxes)}"
            problems.add("clean image with boxes", what)
    readable = [s for s in readable if not (s.clean and s.boxes)]
    notes += problems.settle(skip_bad)
    deep = max((s.brightest for s in readable if s.bit_depth == 16), default=65535)
    white = next(white for white in _WHITES if deep <= white)
    if white < 65535:
        notes.append(f"no 16-bit image is brighter than {deep}: {white} is taken for white")
    return Folder(readable, class_names, notes, white)


def _categories(
    rows: Sequence[Mapping], wanted: Collection[str], file: Path
) -> tuple[dict[int, int | None], list[str]]:
    """Category id to label (None: not wanted), and the labels' names in the order of the ids."""
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
                f"{file}: category {row}: needs an integer 'id' and a 'name', both unique, the name in one "
                "line and without spaces around it"
            )
        names[number] = name
    for name in wanted:
        if name not in names.values():
            raise InputError(
                f"--label_filter: {name!r} is none of the categories {', '.join(names.values())}"
            )
    kept = [number for number in sorted(names) if not wanted or names[number] in wanted]
    if not kept:
        raise InputError(f"{file}: 'categories' is empty")
    labels = {number: label for label, number in enumerate(kept)}
    return {number: labels.get(number) for number in names}, [names[number] for number in kept]


def _images(
    rows: Sequence[Mapping], file: Path, folder: Path, keys: Keys, problems: Problems, notes: list[str]
) -> dict[int, AnnotatedImage]:
    """The images that are not excluded, by id; what is wrong with the others is in `problems`."""
    grouped = any(keys.group in row for row in rows)
    if not grouped and keys.group != Keys.group:
        raise InputError(f"--group_key={keys.group}: no image of {file} has this key")
    only_key, _, only_value = keys.training_only.partition("=")
    if only_key and not any(only_key in row for row in rows):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has the key {only_key!r}")
    sources: dict[int, AnnotatedImage] = {}
    ambiguous: set[int] = set()  # ids of two files, or of one file with two ids: whose are the boxes?
    owners: dict[str, int] = {}  # path -> id
    excluded = 0
    for index, row in enumerate(rows):
        if _SAID.get(_word(row.get(keys.exclude)), True):  # a reason is a yes
            excluded += 1
        elif (fault := _image_fault(index, row, sources, keys, grouped)) is not None:
            problems.add(*fault)
            if fault[0] == "duplicate image id" and row["file_name"] != sources[row["id"]].file_name:
                ambiguous.add(row["id"])
        else:
            number, name = row["id"], row["file_name"]
            path = next((p for p in (folder / name, file.parent / name) if isfile(p)), folder / name)
            if (first := owners.setdefault(normpath(path), number)) != number:
                problems.add("file named twice", f"{name}: is image {first} and image {number}")
                ambiguous |= {first, number}
            sources[number] = AnnotatedImage(
                image_id=number,
                file_name=name,
                path=path,
                group=str(row[keys.group]) if grouped else name,
                split=_SPLIT_NAMES[row[keys.split]] if keys.split else None,
                training_only=bool(only_key) and _word(row.get(only_key)) == _word(only_value),
                clean=_SAID.get(_word(row.get("clean"))),
                height=row.get("height", 0),
                width=row.get("width", 0),
            )
    if excluded == len(rows):
        raise InputError(f"{file}: all {excluded} images are left out because of their key {keys.exclude!r}")
    if excluded:
        notes.append(f"{excluded} images left out because of their key {keys.exclude!r}")
    if only_key and not any(s.training_only for s in sources.values()):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has this value")
    return {number: source for number, source in sources.items() if number not in ambiguous}


def _grouped_by_patient(
    sources: Sequence[AnnotatedImage], keys: Keys, problems: Problems, notes: list[str]
) -> list[AnnotatedImage]:
    """Images without groups of their own, of the patients that DICOM files name, or as they are.

    If some have a patient, one without is a problem, and left out (decision 0013).
    """
    patients = {
        source.image_id: str(medical_images.dicom_header(source.path).get("PatientID") or "")
        for source in sources
        if medical_images.is_dicom(source.path)
    }
    if not any(patients.values()):
        notes.append(f"no image has a key {keys.group!r}: every image is its own group (see --group_key)")
        return list(sources)
    for source in sources:
        source.group = patients.get(source.image_id, "")
        if not source.group:
            who = f"{source.file_name} (image {source.image_id})"
            problems.add("image without group", f"{who}: no {keys.group!r}, and no PatientID, as others have")
    return [source for source in sources if source.group]


def _image_fault(
    index: int, row: Mapping, sources: Mapping[int, AnnotatedImage], keys: Keys, grouped: bool
) -> tuple[str, str] | None:
    """What is wrong with an image entry, as (reason, sentence); None when it is good."""
    number, name = row.get("id"), row.get("file_name")
    if Mark.FAULT in row:
        return row[Mark.FAULT]
    if not isinstance(number, int) or isinstance(number, bool) or not isinstance(name, str):
        return "image without id or file_name", f"images[{index}]: id {number!r}, file_name {name!r}"
    if not -(2**63) <= number < 2**63:
        return "image without id or file_name", f"images[{index}]: id {number} does not fit into 64 bits"
    if not (_is_text(name) and _is_text(str(row.get(keys.group)))):
        return "name that is no UTF-8", f"image {number}: {name!r}, or its {keys.group}: rename it"
    if number in sources:
        first = sources[number].file_name
        return "duplicate image id", f"image id {number} is given twice: {first}, {name}"
    if grouped and row.get(keys.group) is None:
        return "image without group", f"{name} (image {number}): no {keys.group!r}"
    if keys.split and str(row.get(keys.split)) not in _SPLIT_NAMES:
        found = row.get(keys.split)
        return "unknown split", f"{name} (image {number}): {keys.split} {found!r} is not train, val or test"
    return None


def _word(value: Any) -> str:
    return str(value).strip().lower()


def _is_text(name: str) -> bool:
    """Whether records can hold it: file systems and JSON also give halves of UTF-16 pairs."""
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
    """Puts every good box into its `AnnotatedImage`."""
    seen: set[Any] = set()
    crowds = repeated = 0
    for index, row in enumerate(rows):
        number, image_id = row.get("id", index), row.get("image_id")
        who = row.get(Mark.WHERE) or f"annotation {number} (image {image_id})"
        source = sources.get(image_id) if isinstance(image_id, int) else None
        fault = _id_fault(number, image_id, seen, known, who)
        if fault is None and source is not None:
            fault = _row_fault(row, source, labels, who)
        if fault is not None:
            problems.add(*fault)
            if source is not None:
                source.hide()
        elif source is None:  # of an image that is left out
            continue
        elif (label := labels[row["category_id"]]) is None:
            source.others = True
        elif row.get("iscrowd"):
            crowds += 1
            source.hide()
        else:
            repeated += not source.add_box(row["bbox"], label)
    if repeated:
        notes.append(f"{repeated} boxes that are given twice for their image, of the same class, count once")
    if crowds:
        notes.append(f"{crowds} boxes with iscrowd are ignored; their images are used for training only")


def _id_fault(
    number: Any, image_id: Any, seen: set[Any], known: Collection[Any], who: str
) -> tuple[str, str] | None:
    """What is wrong with an annotation's ids, as (reason, sentence); its own is noted in `seen`."""
    if not isinstance(number, (int, str)):
        return "malformed annotation id", f"{who}: must be a whole number or a text"
    if number in seen:
        return "duplicate annotation id", f"{who}: this annotation id is given twice"
    seen.add(number)
    if not isinstance(image_id, int) or image_id not in known:
        return "unknown image id", f"{who}: image_id {image_id!r} is not among the images"
    return None


def _row_fault(
    row: Mapping, source: AnnotatedImage, labels: Mapping[int, int | None], who: str
) -> tuple[str, str] | None:
    """What is wrong with an annotation of a known image, as (reason, sentence)."""
    if Mark.FAULT in row:
        return row[Mark.FAULT]
    category = row.get("category_id")
    if not isinstance(category, int) or category not in labels:
        return "unknown category", f"{who}: category_id {category!r} is none of {sorted(labels)}"
    if labels[category] is None or row.get("iscrowd"):  # whose boxes nobody uses
        return None
    fault = image_files.box_fault(row.get("bbox"), source.height, source.width)
    return fault and (fault[0], f"{source.file_name}, {who}: bbox {row.get('bbox')!r} {fault[1]}")
