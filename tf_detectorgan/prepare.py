"""Writes a prepared data set (TFRecords, split by groups) from images with boxes, or from a phantom.

python -m tf_detectorgan.prepare --images=photos --annotations=photos/boxes.json --out=data/photos
python -m tf_detectorgan.prepare --images=photos_in_voc_yolo_or_node21_layout --out=data/photos
python -m tf_detectorgan.prepare --dataset=nih --images=nih --finding=Nodule --out=data/nih
python -m tf_detectorgan.prepare --dataset=cityscapes --images=cityscapes --out=data/cityscapes
python -m tf_detectorgan.prepare --dataset=phantom --out=data/phantom
python -m tf_detectorgan.prepare --inspect=data/phantom
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from os.path import exists
from pathlib import Path
from types import ModuleType
from typing import Any

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import command
from tf_detectorgan.config import option
from tf_detectorgan.data import (
    cityscapes,
    contents,
    formats,
    image_builder,
    nih_chestxray,
    nih_tables,
    phantom,
    records,
    shards,
    split_guard,
    splits,
    validation,
)
from tf_detectorgan.data.image_files import AnnotatedImage
from tf_detectorgan.errors import EXIT_INTERRUPTED, InputError

_SMALL_BOX = 2.0  # stored pixels: objects with a shorter side cannot be detected


@dataclass(frozen=True)
class Prepare:
    """Options of `prepare`."""

    dataset: str = option(
        "auto",
        "format of the annotations, or name of a data set; auto: recognised by the files in --images or "
        "--annotations, nih and cityscapes by those in --images",
        choices=("auto", *formats.FORMATS, "nih", "cityscapes", "phantom"),
    )
    inspect: str = option("", "directory of a prepared data set: only write its data_card.html")
    out: str = option("", "directory to write; must not exist")
    overwrite: bool = option(False, "replace --out if it is a prepared data set")
    seed: int = option(0, "seed of the division into splits and of the phantom", low=0)
    train_images: int = option(0, "labelled training images to keep; 0: all (phantom: 57)", low=0)
    image_size: int = option(
        -1,
        "longer side in pixels; 0: do not resize; -1: 128, nih 512, cityscapes 256",
        low=-1,
        high=4096,
    )

    images: str = option(
        "",
        "directory of the images, default: that of --annotations; nih: with its tables; "
        "cityscapes: with leftImg8bit",
    )
    annotations: str = option("", "file or directory with the boxes; default: found in --images")
    splits: tuple[float, ...] = option(
        (),
        "fractions of training, validation, test; default: 0.7,0.1,0.2; nih: 57,9,13 of 79 as in the paper; "
        "cityscapes: 0.9,0.1,0 of the official training cities",
    )
    group_key: str = option(validation.Keys.group, "image key or CSV column that gives the group")
    exclude_key: str = option(validation.Keys.exclude, "image key; images for which it is true are left out")
    split_key: str = option("", "image key that gives the split, instead of --splits")
    train_only: str = option("", "key=value of images that are used for training only")
    label_filter: tuple[str, ...] = option((), "names of the categories to keep; default: all")
    channels: str = option("auto", "auto: 1 if all images are grey, else 3", choices=("auto", "1", "3"))
    skip_bad: bool = option(False, "leave out bad images and boxes, and print their numbers")
    allow_duplicates: bool = option(False, "allow the same image in two splits")

    finding: str = option("Nodule", "nih: the finding that the boxes mark", choices=nih_tables.FINDINGS)
    extra_annotations: str = option(
        "",
        "nih: COCO file, or CSV with the columns of BBox_List_2017.csv in that order; its boxes replace "
        "those of validation and test images",
    )

    phantom_clean_images: int = option(600, "phantom: clean training images", low=1)
    phantom_unboxed_images: int = option(200, "phantom: training images with nodules but no boxes", low=0)
    phantom_validation_images: int = option(100, "phantom: labelled validation images", low=0)
    phantom_test_images: int = option(300, "phantom: labelled test images", low=0)
    phantom_test_clean_images: int = option(100, "phantom: clean test images", low=0)


# Files by which --dataset=auto recognises a data set.
_PUBLISHED = {"nih": "BBox_List_2017.csv", "cityscapes": "leftImg8bit"}
# Options that only some data sets use.
_FORMATS = ("auto", *formats.FORMATS)
_USED_BY: dict[str, tuple[str, ...]] = (
    dict.fromkeys(("images", "splits", "skip_bad", "allow_duplicates"), (*_FORMATS, "nih", "cityscapes"))
    | dict.fromkeys(
        ("annotations", "group_key", "exclude_key", "split_key", "train_only", "label_filter", "channels"),
        _FORMATS,
    )
    | dict.fromkeys(("finding", "extra_annotations"), ("nih",))
    | {field.name: ("phantom",) for field in dataclasses.fields(Prepare) if field.name.startswith("phantom_")}
)
# Defaults that depend on the data set, in place of these values of `Prepare`.
_UNSET = (-1, ())
_DEFAULTS: dict = {"image_size": 128, "splits": (0.7, 0.1, 0.2)}
_DATASET_DEFAULTS: dict[str, dict] = {
    "cityscapes": {"image_size": cityscapes.SIDE, "splits": cityscapes.SHARES},
    "nih": {"image_size": 512, "splits": nih_chestxray.SHARES},
}


def prepare(options: Prepare) -> None:
    """Checks all inputs, writes the data set and prints its contents.

    Raises:
      InputError: an option, the annotation file or an image is invalid; nothing is written in this case.
    """
    if options.inspect:
        from tf_detectorgan.experiments import data_card  # here: it imports the networks, which takes long

        print(f"data card: {data_card.write(records.open_dataset(options.inspect))}")
        return
    if not options.out:
        raise InputError("--out= is missing; give the directory to write")
    shards.check_target(options.out, options.overwrite)
    options = dataclasses.replace(options, dataset=_recognised(options))
    _refuse_unused(options)
    defaults = _DEFAULTS | _DATASET_DEFAULTS.get(options.dataset, {})
    options = dataclasses.replace(
        options, **{k: v for k, v in defaults.items() if getattr(options, k) in _UNSET}
    )
    splits.check_shares(options.splits)
    plan, notes = _READERS[options.dataset](options)
    shards.build(plan, options.out, options.overwrite)
    dataset = records.open_dataset(options.out)
    notes += _report(dataset)
    for note in notes:
        print(f"note: {note}")


def _recognised(options: Prepare) -> str:
    """Returns "nih" or "cityscapes" if --images is such a folder, else `options.dataset`."""
    if options.dataset == "auto" and options.images and not options.annotations:
        for kind, name in _PUBLISHED.items():
            if exists(Path(options.images).expanduser() / name):
                return kind
    return options.dataset


def _refuse_unused(options: Prepare) -> None:
    """Raises InputError if an option is set that the data set does not use."""
    for field in dataclasses.fields(options):
        used_by = _USED_BY.get(field.name, (options.dataset,))
        if getattr(options, field.name) != field.default and options.dataset not in used_by:
            raise InputError(
                f"--{field.name}: has no effect with --dataset={options.dataset}, only with "
                f"{', '.join(used_by)}; remove it, or set --dataset"
            )


def _phantom(options: Prepare) -> tuple[shards.Plan, list[str]]:
    low, high = phantom.SIZES
    if not low <= options.image_size <= high:
        raise InputError(f"--image_size={options.image_size}: must be {low} to {high} for the phantom")
    config = phantom.PhantomConfig(
        size=options.image_size,
        seed=options.seed,
        train_images=options.train_images or phantom.PhantomConfig.train_images,
        clean_images=options.phantom_clean_images,
        unboxed_images=options.phantom_unboxed_images,
        validation_images=options.phantom_validation_images,
        test_images=options.phantom_test_images,
        test_clean_images=options.phantom_test_clean_images,
    )
    return phantom.plan(config), []


def _annotated(options: Prepare) -> tuple[shards.Plan, list[str]]:
    """Plans a data set from images with annotations in one of `formats.FORMATS`."""
    given = (Path(p).expanduser() if p else None for p in (options.annotations, options.images))
    location = formats.locate(options.dataset, *given)
    document = location.read()
    title, boxes = formats.FORMATS[location.kind].title, len(document.annotations)
    print(f"found {title}: {len(document.images)} images and {boxes} boxes in {location.annotations}")
    print(f"images below {location.images}")
    checked = validation.check(
        document,
        location.images,
        keys=validation.Keys(options.group_key, options.exclude_key, options.split_key, options.train_only),
        label_filter=options.label_filter,
        skip_bad=options.skip_bad,
    )
    division, left_out = image_builder.divide(
        checked.sources, options.splits, options.seed, options.train_images, options.split_key
    )
    duplicates = _check_duplicates(division, options)
    grey = all(source.grey for source in checked.sources)
    plan = image_builder.plan(
        division,
        checked.class_names,
        shards.About("coco", "1.0.0", "Images with boxes", document.citation),
        image_size=options.image_size,
        channels={"auto": 1 if grey else 3, "1": 1, "3": 3}[options.channels],
        white=checked.white,
    )
    return plan, checked.notes + left_out + duplicates


def _nih(options: Prepare) -> tuple[shards.Plan, list[str]]:
    extra = Path(options.extra_annotations).expanduser() if options.extra_annotations else None
    own = {"finding": options.finding, "extra_annotations": extra}
    needed = "NIH's tables and images_001 to images_012"
    return _published(options, nih_chestxray, "NIH ChestX-ray", needed, options.finding, 1, **own)


def _cityscapes(options: Prepare) -> tuple[shards.Plan, list[str]]:
    needed = "leftImg8bit and gtBboxCityPersons or gtFine"
    return _published(options, cityscapes, "Cityscapes", needed, "pedestrian", 3)


def _published(
    options: Prepare, reader: ModuleType, title: str, needed: str, class_name: str, channels: int, **own: Any
) -> tuple[shards.Plan, list[str]]:
    """Plans a data set from a publisher's folder with `needed`; `own`: further options of `reader`."""
    if not options.images:
        raise InputError(f"--images= is missing; give the folder with {needed}")
    division, notes = reader.divide(
        Path(options.images).expanduser(),
        shares=options.splits,
        seed=options.seed,
        train_images=options.train_images,
        skip_bad=options.skip_bad,
        **own,
    )
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in division.items())
    print(f"found {title} in {options.images}: {counts}")
    notes += _check_duplicates(division, options)
    form = {"image_size": options.image_size, "channels": channels}
    return image_builder.plan(division, [class_name], reader.ABOUT, **form), notes


def _check_duplicates(division: Mapping[str, list[AnnotatedImage]], options: Prepare) -> list[str]:
    """Returns notes on images that are in two splits; raises InputError unless these are allowed."""
    prints = {
        split: [(source.file_name, source.fingerprint) for source in rows if source.fingerprint]
        for split, rows in division.items()
    }
    return split_guard.check(prints, options.allow_duplicates)


_READERS = dict.fromkeys(_FORMATS, _annotated) | {"cityscapes": _cityscapes, "nih": _nih, "phantom": _phantom}


def _report(dataset: records.Dataset) -> list[str]:
    """Prints the contents of each split, with box sizes in stored pixels; returns warnings."""
    height, width, channels = dataset.image_shape
    print(f"{'split':<22}{'images':>8}{'groups':>8}{'boxes':>8}   box size 5% / 50% / 95%, boxes per class")
    notes = []
    for split in records.SPLIT_NAMES:
        content = contents.read(dataset, split)
        row = content.summary(dataset.class_names)
        if content.names:
            text = f"{split:<22}{row['images']:>8}{row['groups']:>8}{row['boxes']:>8}"
            if content.labels:
                text += "   " + " / ".join(f"{size:.1f}" for size in row["sizes"])
                text += "".join(f", {name} {count}" for name, count in row["classes"].items())
            print(text)
        if split.endswith("_labelled"):
            notes += _warnings(split, content, row["classes"])
    print(f"{dataset.directory}: images of {height} x {width} x {channels}, {dataset.bit_depth} bit")
    return notes


def _warnings(split: str, content: contents.Contents, classes: Mapping[str, int]) -> list[str]:
    """Returns warnings about a labelled split."""
    if not content.names:
        return [f"{split}: no images"]
    notes = []
    sides = boxes_lib.to_xywh(content.boxes).numpy()[:, 2:]
    small = int((sides.min(axis=1) < _SMALL_BOX).sum())
    if small:
        notes.append(
            f"{split}: {small} of {len(content.boxes)} boxes are under {_SMALL_BOX:g} px wide or high; "
            "use a larger --image_size"
        )
    if missing := [name for name, count in classes.items() if not count]:
        notes.append(f"{split}: no box of {', '.join(missing)}")
    return notes


if __name__ == "__main__":
    command.run(Prepare, prepare, terminated=EXIT_INTERRUPTED)  # its Kubernetes Job continues in a new pod
