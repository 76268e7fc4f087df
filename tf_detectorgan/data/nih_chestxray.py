"""NIH ChestX-ray14 as the paper uses it: the few boxes of one finding, and the many images without.

The boxed images are divided by patient. Images labelled "No Finding" (clean) and images with the finding but
without a box (unboxed) come from the publisher's `train_val_list.txt` only, which shares no patient with the
boxes.
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

# Of training, validation, test: what the paper's 0.7, 0.1, 0.2 came to on its 79 images of nodules (0012).
SHARES = (57 / 79, 9 / 79, 13 / 79)
_SHOWN = 10  # names of images in a note


_DESCRIPTION = f"""NIH ChestX-ray14 (ChestX-ray8): frontal chest X-rays of the NIH Clinical Center, 1992 to
2015. Clean images are those labelled "{NO_FINDING}". "{NO_FINDING}" is not normal: it says that a program
found none of 14 findings in the text of the report. Other findings, devices, scars, and objects that the
report does not mention are among them. The publisher's boxes are one an image and finding at most: there may
be more to see."""
_CITATION = """X. Wang, Y. Peng, L. Lu, Z. Lu, M. Bagheri, R. M. Summers: ChestX-ray8: Hospital-scale Chest
X-ray Database and Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases.
CVPR 2017, pp. 3462-3471. Provided by the NIH Clinical Center without restrictions on use; it asks to be
named, to have its download site (nihcc.app.box.com/v/ChestXray-NIHCC) linked, and to have the paper cited."""
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
    """The checked images of every split, and notes for the user.

    Args:
      folder: the publisher's or Kaggle's, with the tables and the folders of images.
      finding: one of `nih_tables.FINDINGS`.
      shares: of training, validation and test, in boxed images.
      seed: of the division by patient.
      train_images: number of labelled training images to keep, 0 for all.
      extra_annotations: boxes that replace the table's in validation and test (see `nih_reannotation`).
      skip_bad: go on without the images that are not there or cannot be decoded.

    Raises:
      InputError: a table, an image or an option is at fault.
    """
    if not isdir(folder):
        raise InputError(f"--images={folder}: no such directory")
    sources, notes = _sources(folder, finding)
    result, left_out = image_builder.divide(sources, shares, seed, train_images, "")
    notes += left_out
    if extra_annotations:
        notes += _annotate_anew(result, nih_reannotation.read(extra_annotations, finding), extra_annotations)
    paths = nih_tables.find_images(folder)
    problems = Problems(folder)
    for split, rows in result.items():
        for source in rows:
            if source.file_name not in paths:
                problems.add(f"missing image of {split}", f"{source.file_name} ({split}): no such image")
    problems.settle(skip_bad)  # before the others are decoded, which takes long
    for split, rows in result.items():
        present = [source for source in rows if source.file_name in paths]
        bar = progress.bar(present, desc=f"checking {split}", unit="image")
        result[split] = [source for source in bar if _inspect(source, paths, problems)]
    notes += problems.settle(skip_bad)
    result = {split: rows for split, rows in result.items() if rows}
    image_builder.check_trainable(result)
    return result, notes


def _sources(folder: Path, finding: str) -> tuple[list[AnnotatedImage], list[str]]:
    """The images that the tables offer for a finding, and how many those are."""
    box_table = nih_tables.find_table(folder, "BBox_List_2017.csv")
    label_table = nih_tables.find_table(folder, "Data_Entry_2017*.csv")
    list_file = nih_tables.find_table(folder, "train_val_list.txt")
    boxes = nih_tables.read_boxes(box_table)[finding]
    labels = nih_tables.read_labels(label_table)
    offered = sorted(nih_tables.read_list(list_file))
    for file, names in ((box_table, boxes), (list_file, offered)):
        if unknown := sorted(set(names) - set(labels)):
            raise InputError(
                f"{label_table}: has no row for {unknown[0]}, one of {len(unknown)} of {file.name}"
            )
    with_finding = {name for name, found in labels.items() if finding in found}
    sources = [_source(name, rows) for name, rows in sorted(boxes.items())]
    for name in offered:
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
    """An image, not yet looked for; boxes in the tables' pixels. All without a box are for training."""
    source = AnnotatedImage(
        image_id=1000 * int(name[:8]) + int(name[9:12]),
        file_name=name,
        path=Path(name),
        group=nih_tables.patient(name),
        split=None,
        training_only=not boxes,
        clean=not boxes and not unboxed,
    )
    source.hidden = unboxed
    _set_boxes(source, boxes)
    return source


def _set_boxes(source: AnnotatedImage, boxes: Sequence[Box]) -> None:
    source.boxes = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    source.labels = [0] * len(boxes)


def _annotate_anew(
    division: dict[str, list[AnnotatedImage]], boxes: Mapping[str, Sequence[Box]], file: Path
) -> list[str]:
    """Replaces the boxes of validation and test images, in place; training keeps what is given to everybody.

    An image on which the readers saw nothing is left out: with the label of the finding it is not clean.
    """
    notes, used = [], set[str]()
    for split in ("validation_labelled", "test_labelled"):
        rows = division.get(split, [])
        anew = [source for source in rows if source.file_name in boxes]
        for source in anew:
            _set_boxes(source, boxes[source.file_name])
        used |= {source.file_name for source in anew}
        division[split] = [source for source in rows if source.boxes]
        notes.append(
            f"{split}: {len(anew)} of {len(rows)} images have {sum(len(s.boxes) for s in anew)} boxes of "
            f"{file.name}, the others the publisher's; left out, as nothing is to be seen: "
            f"{len(rows) - len(division[split])}"
        )
    if not used:
        raise InputError(f"--extra_annotations={file}: names no image of validation or test")
    training = {source.file_name for split, rows in division.items() if "train" in split for source in rows}
    if unused := boxes.keys() - used:
        note, strange = f"{len(unused)} images of {file.name} are in neither: not used", unused - training
        if strange:
            note += f", {len(strange)} of them not in training either: {', '.join(sorted(strange)[:_SHOWN])}"
        notes.append(note)
    return notes


def _inspect(source: AnnotatedImage, paths: Mapping[str, Path], problems: Problems) -> bool:
    """Decodes the image and brings its boxes to its pixels; false when it is of no use."""
    source.path = paths[source.file_name]
    if not image_files.inspect(source, problems):
        return False
    if source.height != source.width:
        problems.add(
            "image that is not square",
            f"{source.path}: {source.width} x {source.height} pixels; the boxes are for squares",
        )
        return False
    scale = source.width / SIDE
    source.boxes = [tuple(min(max(v, 0), SIDE) * scale for v in box) for box in source.boxes]  # type: ignore[misc]
    return True
