"""Images and boxes in the terms of a COCO annotation file, checked whole before anything is made of them."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from typing import Any

import numpy as np

from tf_detectorgan import progress
from tf_detectorgan.data import medical_images, resize, split_guard
from tf_detectorgan.data.document import Document, Mark
from tf_detectorgan.errors import InputError

_WHITES = (1023, 4095, 16383, 65535)  # of 10, 12, 14 and 16 bits, all kept in files of 16
_TOLERANCE = 1.0  # pixels that a box may lie outside: rounding of annotation tools; it is clipped
_SHOWN = 10  # problems in an error message
_SPLIT_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclasses.dataclass
class Source:
    """One image file and what the annotation file says about it."""

    image_id: int
    file_name: str
    path: Path
    group: str
    split: str | None  # the image's own, where it has one
    training_only: bool
    clean: bool | None  # the image's own statement
    height: int = 0
    width: int = 0
    bit_depth: int = 8
    grey: bool = True
    brightest: int = 0  # stored value
    boxes: list[tuple[float, float, float, float]] = dataclasses.field(default_factory=list)  # x0, y0, x1, y1
    labels: list[int] = dataclasses.field(default_factory=list)
    fingerprint: split_guard.Fingerprint | None = None  # set by `inspect`
    hidden: bool = False  # has objects without a usable box: a crowd, or a bad box that was skipped
    others: bool = False  # has boxes of categories that are not wanted

    @property
    def stream(self) -> str:
        """The stream that the image belongs to."""
        if self.boxes:
            return "labelled"
        if self.hidden or (self.clean is False and not self.others):
            return "unboxed"
        return "clean"

    def read(self) -> np.ndarray:
        """The image's pixels [height, width, C], see `resize.read_image`."""
        return resize.read_image(self.path)


class Problems:
    """Everything that is wrong with single images and boxes, collected so that one run finds all of it."""

    def __init__(self, file: Path):
        self.file = file
        self.messages: list[str] = []
        self.reasons: Counter[str] = Counter()

    def add(self, reason: str, message: str) -> None:
        self.reasons[reason] += 1
        self.messages.append(message)

    def raise_any(self) -> None:
        """Raises InputError with the first problems and the number of all."""
        if self.messages:
            count, shown = len(self.messages), self.messages[:_SHOWN]
            more = [f"... and {count - _SHOWN} more"] if count > _SHOWN else []
            raise InputError(
                f"{self.file}: {count} problem{'s' if count > 1 else ''}; correct them, or skip these images "
                "and boxes by --skip_bad:\n  " + "\n  ".join(shown + more)
            )


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

    sources: list[Source]
    class_names: list[str]
    notes: list[str]  # what a user should know, one sentence each
    skipped: Counter[str]
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
        s for s in progress.bar(sources.values(), desc="checking images", unit="image") if inspect(s, problems)
    ]
    known = {row["id"] for row in document.images if isinstance(row.get("id"), int)}
    _boxes(document.annotations, {s.image_id: s for s in readable}, known, labels, problems, notes)
    readable = [s for s in readable if _agrees(s, problems)]
    if not skip_bad:
        problems.raise_any()
    deep = max((s.brightest for s in readable if s.bit_depth == 16), default=65535)
    white = next(white for white in _WHITES if deep <= white)
    if white < 65535:
        notes.append(f"no 16-bit image is brighter than {deep}: {white} is taken for white")
    return Folder(readable, class_names, notes, problems.reasons, white)


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
            or not _is_text(name)
            or number in names
            or name in names.values()
        ):
            raise InputError(f"{file}: category {row}: needs an integer 'id' and a 'name', both unique")
        names[number] = name
    for name in wanted:
        if name not in names.values():
            raise InputError(
                f"--label_filter: {name!r} is none of the categories {', '.join(names.values())}"
            )
    kept = [number for number in sorted(names) if not wanted or names[number] in wanted]
    if not kept:
        raise InputError(f"{file}: 'categories' is empty")
    return {number: kept.index(number) if number in kept else None for number in names}, [
        names[n] for n in kept
    ]


def _images(
    rows: Sequence[Mapping], file: Path, folder: Path, keys: Keys, problems: Problems, notes: list[str]
) -> dict[int, Source]:
    """The images that are not excluded, by id; what is wrong with the others is in `problems`."""
    grouped = any(keys.group in row for row in rows)
    if not grouped and keys.group != Keys.group:
        raise InputError(f"--group_key={keys.group}: no image of {file} has this key")
    if not grouped:
        notes.append(f"no image has a key {keys.group!r}: every image is its own group (see --group_key)")
    only_key, _, only_value = keys.training_only.partition("=")
    if only_key and not any(only_key in row for row in rows):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has the key {only_key!r}")
    sources: dict[int, Source] = {}
    ambiguous: set[int] = set()  # ids of two files: whose are the boxes?
    excluded = 0
    for index, row in enumerate(rows):
        if row.get(keys.exclude):
            excluded += 1
        elif (fault := _image_fault(index, row, sources, keys, grouped)) is not None:
            problems.add(*fault)
            if fault[0] == "duplicate image id" and row["file_name"] != sources[row["id"]].file_name:
                ambiguous.add(row["id"])
        else:
            number, name = row["id"], row["file_name"]
            sources[number] = Source(
                image_id=number,
                file_name=name,
                path=next((p for p in (folder / name, file.parent / name) if isfile(p)), folder / name),
                group=str(row[keys.group]) if grouped else name,
                split=_SPLIT_NAMES[row[keys.split]] if keys.split else None,
                training_only=bool(only_key) and str(row.get(only_key)) == only_value,
                clean=row["clean"] if isinstance(row.get("clean"), bool) else None,
                height=row.get("height", 0),
                width=row.get("width", 0),
            )
    if excluded:
        notes.append(f"{excluded} images left out because of their key {keys.exclude!r}")
    if only_key and not any(s.training_only for s in sources.values()):
        raise InputError(f"--train_only={keys.training_only}: no image of {file} has this value")
    return {number: source for number, source in sources.items() if number not in ambiguous}


def _image_fault(
    index: int, row: Mapping, sources: Mapping[int, Source], keys: Keys, grouped: bool
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


def _is_text(name: str) -> bool:
    """Whether records can hold it: file systems and JSON also give halves of UTF-16 pairs."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def inspect(source: Source, problems: Problems) -> bool:
    """Decodes the file and notes its size, depth, colour and fingerprint.

    False, and a problem, when it is of no use.
    """
    who = f"{source.path} (image {source.image_id})"
    if not isfile(source.path):  # unlike Path.is_file, false for a name too long for any file
        problems.add(
            "missing image", f"{who}: no such file, neither beside the annotation file; see --images"
        )
        return False
    try:
        pixels = resize.read_image(source.path)
    except InputError:  # a library that is not installed
        raise
    except Exception as error:  # decoders raise many kinds; all mean the same to the user
        problems.add("undecodable image", f"{who}: cannot be decoded ({error})")
        return False
    height, width = pixels.shape[:2]
    for name, stated, found in (("width", source.width, width), ("height", source.height, height)):
        if stated and stated != found:
            problems.add(
                "image of another size",
                f"{who}: {name} {stated!r} in the annotation file, {found} in the image file: "
                "its boxes would lie elsewhere (a rotation by EXIF?)",
            )
            return False
    source.height, source.width = height, width
    source.bit_depth, source.grey = 8 * pixels.dtype.itemsize, resize.is_grey(pixels)
    # DICOM states what is white, and its reader has scaled to that.
    source.brightest = 65535 if medical_images.is_dicom(source.path) else int(pixels.max())
    source.fingerprint = split_guard.fingerprint(pixels)
    return True


def _boxes(
    rows: Sequence[Mapping],
    sources: Mapping[int, Source],
    known: Collection[Any],
    labels: Mapping[int, int | None],
    problems: Problems,
    notes: list[str],
) -> None:
    """Puts every good box into its `Source`, clipped to the image."""
    seen: set[Any] = set()
    crowds = 0
    for index, row in enumerate(rows):
        number, image_id, category = row.get("id", index), row.get("image_id"), row.get("category_id")
        who = row.get(Mark.WHERE) or f"annotation {number} (image {image_id})"
        source = sources.get(image_id) if isinstance(image_id, int) else None
        if not isinstance(number, (int, str)):
            problems.add("malformed annotation id", f"{who}: must be a whole number or a text")
            _hide(source)
            continue
        if number in seen:
            problems.add("duplicate annotation id", f"{who}: this annotation id is given twice")
            _hide(source)
            continue
        seen.add(number)
        if source is None:
            if not isinstance(image_id, int) or image_id not in known:
                problems.add("unknown image id", f"{who}: image_id {image_id!r} is not among the images")
            continue
        if Mark.FAULT in row:
            problems.add(*row[Mark.FAULT])
            _hide(source)
            continue
        if not isinstance(category, int) or category not in labels:
            problems.add("unknown category", f"{who}: category_id {category!r} is none of {sorted(labels)}")
            _hide(source)
            continue
        label = labels[category]
        if label is None:
            source.others = True
        elif row.get("iscrowd"):
            crowds += 1
            _hide(source)
        elif (fault := box_fault(row.get("bbox"), source.height, source.width)) is not None:
            problems.add(fault[0], f"{source.file_name}, {who}: bbox {row.get('bbox')!r} {fault[1]}")
            _hide(source)
        else:
            x, y, w, h = row["bbox"]
            corners = (max(x, 0.0), max(y, 0.0), min(x + w, source.width), min(y + h, source.height))
            source.boxes.append(corners)
            source.labels.append(label)
    if crowds:
        notes.append(f"{crowds} boxes with iscrowd are ignored; their images are used for training only")


def _hide(source: Source | None) -> None:
    """Marks an image whose boxes are incomplete: it is not clean, and no ground truth to test with."""
    if source is not None:
        source.hidden = source.training_only = True


def box_fault(box: Any, height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with a COCO box on an image of that size, as (reason, sentence); None when it is good."""
    numbers = isinstance(box, list) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) for v in box
    )
    if not numbers or len(box) != 4:
        return "malformed box", "must be four numbers x, y, width, height"
    if not all(abs(v) < 2**63 for v in box):
        return "NaN or infinite box", "has a value that is not finite, or beyond 64 bits"
    x, y, w, h = box
    if w < 0 or h < 0:
        return "negative box size", "has a negative width or height; it must be x, y, width, height"
    if w == 0 or h == 0:
        return "zero-area box", "has no area"
    outside = max(-x, -y, x + w - width, y + h - height)
    if outside > _TOLERANCE:
        return (
            "box outside the image",
            f"lies up to {outside:g} px outside the image of {width} x {height} px",
        )
    if min(x + w, width) - max(x, 0) <= 0 or min(y + h, height) - max(y, 0) <= 0:
        return "zero-area box", "has no area inside the image"
    return None


def _agrees(source: Source, problems: Problems) -> bool:
    if source.clean and source.boxes:
        problems.add(
            "clean image with boxes",
            f"{source.file_name} (image {source.image_id}): clean is true, boxes {len(source.boxes)}",
        )
        return False
    return True
