"""Divides checked images into splits, and resizes and pads them for the records."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_detectorgan.data import records, resize, shards, splits
from tf_detectorgan.data.image_files import AnnotatedImage
from tf_detectorgan.errors import InputError


def divide(
    sources: Sequence[AnnotatedImage], shares: Sequence[float], seed: int, train_images: int, split_key: str
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Returns the images of every split that is not empty, and notes on images that are left out.

    Args:
      sources: checked images.
      shares: fractions of training, validation and test images; not used if `split_key` is given.
      seed: seed of the division.
      train_images: number of labelled training images to keep; 0: all.
      split_key: the image key that gives the split; "": divide by `shares`.

    Raises:
      InputError: a group is in two splits, or there are no labelled or no clean training images.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for source in sources:
        counts[source.group][source.stream] += 1
    training_only = {source.group for source in sources if source.training_only}
    if split_key:
        split_of: dict[str, str] = {}
        for source in sources:
            part = source.split or "train"
            if (first := split_of.setdefault(source.group, part)) != part:
                both = " and ".join(sorted((first, part)))
                raise InputError(
                    f"--split_key={split_key}: group {source.group!r} is in the splits {both}; "
                    "put all images of a group (patient, scene, ...) into one"
                )
    else:
        split_of = splits.assign(counts, shares, seed, training_only)
    result: dict[str, list[AnnotatedImage]] = {split: [] for split in records.SPLIT_NAMES}
    for source in sources:
        part = split_of[source.group]
        if part == "train" or not source.training_only:
            result[f"{part}_{source.stream}"].append(source)
    check_trainable(result)
    notes = []
    if lost := len(sources) - sum(map(len, result.values())):
        notes.append(f"{lost} images with incomplete boxes left out of validation and test")
    labelled = result["train_labelled"]
    if train_images:
        groups: dict[str, list[int]] = defaultdict(list)
        for source in labelled:
            groups[source.group].append(source.image_id)
        kept = splits.keep_exactly(groups, train_images, seed)
        result["train_labelled"] = [source for source in labelled if source.image_id in kept]
        if len(kept) < len(labelled):
            notes.append(f"{len(labelled) - len(kept)} labelled training images left out by --train_images")
    return {split: rows for split, rows in result.items() if rows}, notes


def check_trainable(plan: Mapping[str, Sequence[AnnotatedImage]]) -> None:
    """Checks that there are training images with boxes and training images without the object.

    Raises:
      InputError: one of the two is missing.
    """
    for stream, remedy in (
        ("labelled", "add images with boxes"),
        ("clean", "add images without the object"),
    ):
        if not plan.get(f"train_{stream}"):
            raise InputError(f"no training images are {stream}: {remedy} to the training split")


def plan(
    division: Mapping[str, Sequence[AnnotatedImage]],
    class_names: Sequence[str],
    about: shards.About,
    *,
    image_size: int,
    channels: int = 1,
    white: int = 65535,
) -> shards.Plan:
    """Returns the plan of a data set of images with boxes, resized and padded to squares.

    Args:
      division: the checked images of every split.
      class_names: names in the order of the labels.
      about: description of the data set.
      image_size: longer side in pixels after resizing; 0: do not resize.
      channels: 1 or 3.
      white: value of white in 16-bit files.
    """
    sources = [source for rows in division.values() for source in rows]
    longest = image_size or max(max(s.height, s.width) for s in sources)
    side = 32 * math.ceil(longest / 32)  # the networks downsample by up to 2 ** 5
    bit_depth = max(s.bit_depth for s in sources)
    return shards.Plan(
        about,
        schema=records.features((side, side, channels), bit_depth, class_names),
        max_boxes=max(len(s.boxes) for s in sources),
        splits=division,
        example=Form(side, image_size, channels, bit_depth, white),
    )


@dataclasses.dataclass(frozen=True)
class Form:
    """The stored form of an image."""

    side: int  # of the padded square, stored pixels
    image_size: int  # longer side of the image in it; 0: as in the file
    channels: int
    bit_depth: int
    white: int  # value of white in 16-bit files

    def __call__(self, source: AnnotatedImage) -> dict[str, Any]:
        """Returns the record of an image (see `records.features`)."""
        longest = self.image_size or max(source.height, source.width)
        height, width = resize.target_size(source.height, source.width, longest)
        pixels = resize.convert(source.read(), self.channels, self.bit_depth, self.white)
        pixels = np.rint(resize.pad(resize.resize(pixels, height, width), self.side))
        scale = np.array([width / source.width, height / source.height] * 2)
        return {
            "image": pixels.astype({8: np.uint8, 16: np.uint16}[self.bit_depth]),
            "image_id": source.image_id,
            "file_name": source.file_name,
            "groups": [source.group],
            "boxes": (np.array(source.boxes, np.float64).reshape(-1, 4) * scale).astype(np.float32),
            "labels": source.labels,
            "valid_size": np.array([height, width], np.int32),
            "source_size": np.array([source.height, source.width], np.int32),
            "provenance": "",
        }
