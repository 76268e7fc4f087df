"""Reads NIH ChestX-ray14 as the paper uses it: few images with boxes of one finding, many without.

Images with boxes are divided by patient. Images labelled "No Finding" (clean) and images with the finding but
without a box (unboxed) are taken from the publisher's `train_val_list.txt` only; no patient in it has boxes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from os.path import isdir
from pathlib import Path

from tf_detectorgan import progress
from tf_detectorgan.data import image_builder, image_files, nih_reannotation, nih_tables, shards
from tf_detectorgan.data.image_files import AnnotatedImage, Problems
from tf_detectorgan.data.nih_tables import NO_FINDING, SIDE, Box
from tf_detectorgan.errors import InputError

# Training, validation, test: the result of the paper's 0.7, 0.1, 0.2 on its 79 images of nodules (0012).
SHARES = (57 / 79, 9 / 79, 13 / 79)
_SHOWN = 10  # image names that a note lists


_DESCRIPTION = f"""NIH ChestX-ray14 (ChestX-ray8): frontal chest X-rays of the NIH Clinical Center, 1992 to
2015. Clean images are those labelled "{NO_FINDING}". "{NO_FINDING}" is not normal: it means that a program
found none of 14 findings in the text of the report. These images may show other findings, devices, scars, and
objects that the report does not mention. The publisher gives at most one box per image and finding, so an
image may show more objects than boxes."""
_CITATION = """X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers: ChestX-ray8: Hospital-scale Chest
X-ray Database and Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases.
CVPR 2017, pp. 3462-3471. Provided by the NIH Clinical Center without restrictions on use. Users are asked to
name the NIH, to link its download site (nihcc.app.box.com/v/ChestXray-NIHCC) and to cite the paper."""
ABOUT = shards.About("nih_chest_xray", "1.0.0", _DESCRIPTION, _CITATION)


def divide(
    folder: Path,
    *,
    finding: str,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    train_images: int = 0,
    extra_annotations: Path | None = None,
    skip_bad: bool = False,
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Returns the checked images of every split, and notes for the user.

    Args:
      folder: folder of the publisher or of Kaggle with the tables and the image folders.
      finding: one of `nih_tables.FINDINGS`.
      shares: fractions of training, validation and test among the images with boxes.
      seed: seed of the division by patient.
      train_images: number of labelled training images to keep; 0: all.
      extra_annotations: boxes that replace those in validation and test (see `nih_reannotation`).
      skip_bad: leave out images that are missing or cannot be decoded.

    Raises:
      InputError: a table, an image or an option is invalid.
    """
    if not isdir(folder):
        raise InputError(f"--images={folder}: no such directory; correct the path")
    sources, notes = _sources(folder, finding)
    result, left_out = image_builder.divide(sources, shares, seed, train_images, "")
    notes += left_out
    if extra_annotations:
        notes += _replace_boxes(result, nih_reannotation.read(extra_annotations, finding), extra_annotations)
    paths = nih_tables.find_images(folder)
    problems = Problems(folder)
    for split, rows in result.items():
        for source in rows:
            if source.file_name not in paths:
                problems.add(f"missing image of {split}", f"{source.file_name} ({split}): no image file")
    problems.settle(skip_bad)  # before decoding the others, which takes long
    for split, rows in result.items():
        present = [source for source in rows if source.file_name in paths]
        bar = progress.bar(present, desc=f"checking {split}", unit="image")
        result[split] = [source for source in bar if _inspect(source, paths, problems)]
    notes += problems.settle(skip_bad)
    result = {split: rows for split, rows in result.items() if rows}
    image_builder.check_trainable(result)
    return result, notes


def _sources(folder: Path, finding: str) -> tuple[list[AnnotatedImage], list[str]]:
    """Returns the images that the tables list for a finding, and notes with their numbers."""
    box_table = nih_tables.find_table(folder, "BBox_List_2017.csv")
    label_table = nih_tables.find_table(folder, "Data_Entry_2017*.csv")
    list_file = nih_tables.find_table(folder, "train_val_list.txt")
    boxes = nih_tables.read_boxes(box_table)[finding]
    labels = nih_tables.read_labels(label_table)
    listed = sorted(nih_tables.read_list(list_file))
    for file, names in ((box_table, boxes), (list_file, listed)):
        if unknown := sorted(set(names) - set(labels)):
            raise InputError(
                f"{label_table}: no row for {unknown[0]}, one of {len(unknown)} missing images of {file.name}"
            )
    with_finding = {name for name, found in labels.items() if finding in found}
    sources = [_source(name, rows) for name, rows in sorted(boxes.items())]
    for name in listed:
        if name in with_finding and name not in boxes:
            sources.append(_source(name, unboxed=True))
        elif labels[name] == {NO_FINDING}:
            sources.append(_source(name))
    streams = Counter(source.stream for source in sources)
    return sources, [
        f"{label_table.name}: {len(with_finding)} images are labelled {finding}, "
        f"{len(with_finding - set(boxes))} of them have no box of it; {streams['unboxed']} of those, and "
        f'{streams["clean"]} images labelled "{NO_FINDING}", are in {list_file.name} and used for training',
        f'"{NO_FINDING}" is not normal: a program found none of 14 findings in the text of the report',
    ]


def _source(name: str, boxes: Sequence[Box] = (), *, unboxed: bool = False) -> AnnotatedImage:
    """Returns an image without path or size, boxes in pixels of the tables; without boxes: for training."""
    source = AnnotatedImage(
        image_id=1000 * int(name[:8]) + int(name[9:12]),
        file_name=name,
        path=Path(name),
        group=nih_tables.patient(name),
        split=None,
        training_only=not boxes,
        clean=not boxes and not unboxed,
    )
    source.incomplete = unboxed
    _set_boxes(source, boxes)
    return source


def _set_boxes(source: AnnotatedImage, boxes: Sequence[Box]) -> None:
    source.boxes = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    source.labels = [0] * len(boxes)


def _replace_boxes(
    division: dict[str, list[AnnotatedImage]], boxes: Mapping[str, Sequence[Box]], file: Path
) -> list[str]:
    """Replaces the boxes of validation and test images in place; training keeps the publisher's boxes.

    An image with an empty list of new boxes is left out: it has the label of the finding, so it is not clean.
    """
    notes, used = [], set[str]()
    for split in ("validation_labelled", "test_labelled"):
        rows = division.get(split, [])
        replaced = [source for source in rows if source.file_name in boxes]
        for source in replaced:
            _set_boxes(source, boxes[source.file_name])
        used |= {source.file_name for source in replaced}
        division[split] = [source for source in rows if source.boxes]
        notes.append(
            f"{split}: {len(replaced)} of {len(rows)} images have {sum(len(s.boxes) for s in replaced)} "
            f"boxes from {file.name}, the others the publisher's; left out because {file.name} has no box: "
            f"{len(rows) - len(division[split])}"
        )
    if not used:
        raise InputError(f"--extra_annotations={file}: has no image of validation or test")
    training = {source.file_name for split, rows in division.items() if "train" in split for source in rows}
    if unused := boxes.keys() - used:
        note, unknown = f"{len(unused)} images of {file.name} are in neither: not used", unused - training
        if unknown:
            note += f", {len(unknown)} of them not in training either: {', '.join(sorted(unknown)[:_SHOWN])}"
        notes.append(note)
    return notes


def _inspect(source: AnnotatedImage, paths: Mapping[str, Path], problems: Problems) -> bool:
    """Decodes the image and scales its boxes to its pixels; returns False if it cannot be used."""
    source.path = paths[source.file_name]
    if not image_files.inspect(source, problems):
        return False
    if source.height != source.width:
        problems.add(
            "image that is not square",
            f"{source.path}: {source.width} x {source.height} pixels, but the boxes refer to a square image",
        )
        return False
    scale = source.width / SIDE
    source.boxes = [tuple(min(max(v, 0), SIDE) * scale for v in box) for box in source.boxes]  # type: ignore[misc]
    return True
