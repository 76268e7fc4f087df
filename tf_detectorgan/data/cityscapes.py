"""Crops pedestrians of Cityscapes as PS-GAN does (Ouyang et al. 2018, arXiv 1804.02047): 256 x 256 pixels.

Sources: Cordts et al. 2016 (images, gtFine polygons), Zhang et al. 2017 (CityPersons boxes). A labelled crop
contains a whole pedestrian of at least 70 x 25 pixels; a clean crop contains no person. Until a crop is made,
coordinates are pixels of the full image, x to the right and y down.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os.path import isdir
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import progress
from tf_detectorgan.data import image_builder, image_files, shards, splits
from tf_detectorgan.data.image_files import AnnotatedImage, Problems
from tf_detectorgan.errors import InputError

SIDE = 256  # of a crop, pixels
MIN_HEIGHT, MIN_WIDTH = 70, 25  # of a pedestrian, pixels: the filter of PS-GAN
SHARES = (0.9, 0.1, 0.0)  # of the official training cities; the official validation cities are the test
_INSIDE = 0.5  # smallest fraction of a pedestrian's box inside a crop for which the crop keeps the box
_TRIES = 20  # positions tried for the clean crop of an image
_OFFICIAL = {"train": "train", "val": "test"}  # the official test set has no public boxes
_HUMANS = {"person", "rider", "persongroup", "ridergroup"}  # in gtFine; all CityPersons labels are human

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


class Scene(NamedTuple):
    """A full image: its pedestrians that pass the filter, and all boxes that may be a human."""

    path: Path
    city: str
    official: str  # train or val
    height: int
    width: int
    pedestrians: list[Corners]
    humans: list[Corners]


@dataclasses.dataclass
class Crop(AnnotatedImage):
    """A square crop of `SIDE` pixels from the image at `path`."""

    left: int = 0
    top: int = 0

    def read(self) -> np.ndarray:
        """Returns the crop's pixels [SIDE, SIDE, C]."""
        return _read_full(self.path)[self.top : self.top + SIDE, self.left : self.left + SIDE]


_DESCRIPTION = f"""Crops of {SIDE} x {SIDE} pixels of Cityscapes street scenes. Labelled: pedestrians of at
least {MIN_HEIGHT} x {MIN_WIDTH} pixels have boxes; smaller ones, riders and sitting people may have none.
Clean: no person is annotated. Groups are cities; the official validation cities are the test split."""
_CITATION = """M. Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR 2016.
Boxes, if from CityPersons: S. Zhang, R. Benenson, B. Schiele: CityPersons: A Diverse Dataset for Pedestrian
Detection. CVPR 2017. Licence of cityscapes-dataset.com: non-commercial use only, no redistribution."""
ABOUT = shards.About("cityscapes", "1.0.0", _DESCRIPTION, _CITATION)


@functools.lru_cache(maxsize=1)
def _read_full(path: Path) -> np.ndarray:
    """Reads an image; the cache decodes it once for its crops, which are read consecutively."""
    return image_files.read_image(path)


def divide(
    folder: Path,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    train_images: int = 0,
    skip_bad: bool = False,
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """Returns the checked crops of every split, and notes for the user.

    Args:
      folder: folder with the publishers' `leftImg8bit` and `gtBboxCityPersons` or `gtFine`.
      shares: fractions of training and validation among the official training cities; the third must be 0.
      seed: seed of the division of cities and of the positions of crops.
      train_images: number of labelled training crops to keep; 0: all.
      skip_bad: leave out images that cannot be decoded.

    Raises:
      InputError: a file or an option is invalid.
    """
    if shares[2]:
        raise InputError(
            f"--splits={','.join(map(str, shares))}: the third share must be 0; the test cities are given"
        )
    scenes, notes = _scenes(folder)
    problems = Problems(folder)
    crops = [
        crop
        for number, scene in enumerate(progress.bar(scenes, desc="cropping", unit="image"))
        for crop in _checked(scene, number, seed, problems)
    ]
    notes += problems.settle(skip_bad)
    for number, crop in enumerate(crops):
        crop.image_id = number
    _divide_cities(crops, shares, seed)
    result, left_out = image_builder.divide(crops, shares, seed, train_images, "split")
    return result, notes + left_out


def _scenes(folder: Path) -> tuple[list[Scene], list[str]]:
    """Returns all images with their annotations, ordered by name, and notes with their numbers."""
    kind = next((k for k in ("gtBboxCityPersons", "gtFine") if isdir(folder / k)), None)
    if kind is None or not isdir(folder / "leftImg8bit"):
        raise InputError(
            f"--images={folder}: must contain leftImg8bit, and gtBboxCityPersons (CityPersons) or gtFine"
        )
    scenes, missing = [], []
    for official in _OFFICIAL:
        for path in sorted((folder / "leftImg8bit" / official).glob("*/*_leftImg8bit.png")):
            city = path.parent.name
            stem = path.name.removesuffix("_leftImg8bit.png")
            ending = "_gtBboxCityPersons.json" if kind == "gtBboxCityPersons" else "_gtFine_polygons.json"
            file = folder / kind / official / city / (stem + ending)
            if file.is_file():
                scenes.append(_scene(path, city, official, file))
            else:
                missing.append(file)
    if missing:
        raise InputError(f"{missing[0]}: no such file, one of {len(missing)} missing annotation files")
    if not scenes:
        raise InputError(f"{folder / 'leftImg8bit'}: no image such as train/aachen/*_leftImg8bit.png")
    too_large = sum(not _fits(box) for scene in scenes for box in scene.pedestrians)
    notes = [
        f"boxes from {kind}: {sum(len(s.pedestrians) for s in scenes)} pedestrians of {len(scenes)} images"
    ]
    notes += [f"{too_large} pedestrians do not fit into {SIDE} pixels and have no crop"] if too_large else []
    return scenes, notes


def _scene(path: Path, city: str, official: str, file: Path) -> Scene:
    try:
        document = json.loads(file.read_text("utf-8"))
        height, width = int(document["imgHeight"]), int(document["imgWidth"])
        found = [(row["label"], _corners(row, height, width)) for row in document["objects"] if _human(row)]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{file}: not an annotation of Cityscapes or CityPersons ({error!r})") from error
    if min(height, width) < SIDE:
        raise InputError(f"{file}: imgWidth x imgHeight {width} x {height} is smaller than a crop of {SIDE}")
    pedestrians = [
        box
        for label, box in found
        if label in ("person", "pedestrian")
        and box[3] - box[1] >= MIN_HEIGHT
        and box[2] - box[0] >= MIN_WIDTH
    ]
    return Scene(path, city, official, height, width, pedestrians, [box for _, box in found])


def _human(row: Mapping[str, Any]) -> bool:
    return "bbox" in row or row["label"] in _HUMANS


def _corners(row: Mapping[str, Any], height: int, width: int) -> Corners:
    """Returns CityPersons' `bbox` (x, y, width, height) or the bounds of gtFine's `polygon`, clipped.

    CityPersons also covers occluded parts of a person, so its boxes may extend outside the image.
    """
    if "bbox" in row:
        x, y, w, h = map(float, row["bbox"])
        points = np.array([[x, y], [x + w, y + h]])
    else:
        points = np.array(row["polygon"], float).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError(f"{row['label']}: a coordinate is not finite")
    points = points.clip(0, [width, height])
    return (*points.min(0).tolist(), *points.max(0).tolist())


def _fits(box: Corners) -> bool:
    return max(box[2] - box[0], box[3] - box[1]) <= SIDE


def _checked(scene: Scene, number: int, seed: int, problems: Problems) -> Iterator[Crop]:
    """Yields the crops of an image; adds an image that cannot be decoded to `problems`."""
    full = AnnotatedImage(
        number, scene.path.name, scene.path, scene.city, None, False, None, scene.height, scene.width
    )
    if image_files.inspect(full, problems):
        for crop in crops_of(scene, seed):
            # The first crop has the fingerprint of the full image: crops of asphalt are all similar.
            crop.fingerprint, full.fingerprint = full.fingerprint, None
            yield crop


def crops_of(scene: Scene, seed: int) -> Iterator[Crop]:
    """Yields labelled crops until each pedestrian that fits is inside one, then a clean crop if possible.

    The position of a crop around its pedestrian is uniformly random. The clean crop has the vertical
    position of a labelled crop of the image; if there is none, it is vertically centred.
    """
    name = f"{scene.city}/{scene.path.name}"
    number = int.from_bytes(splits.digest(seed, name)[:8], "big")
    random = np.random.default_rng(number)
    whole = set[Corners]()
    tops = []
    for box in scene.pedestrians:
        if box in whole or not _fits(box):
            continue
        left = _position(random, box[0], box[2], scene.width)
        top = _position(random, box[1], box[3], scene.height)
        tops.append(top)
        window = (left, top, left + SIDE, top + SIDE)
        inside = [b for b in scene.pedestrians if _overlap(b, window) >= _INSIDE * _area(b)]
        whole |= {b for b in inside if _overlap(b, window) == _area(b)}
        yield _crop(scene, name, left, top, inside)
    for _ in range(_TRIES):
        left = int(random.integers(0, scene.width - SIDE + 1))
        top = int(random.choice(tops)) if tops else (scene.height - SIDE) // 2
        window = (left, top, left + SIDE, top + SIDE)
        if not any(_overlap(box, window) for box in scene.humans):
            yield _crop(scene, name, left, top, [])
            return


def _position(random: np.random.Generator, low: float, high: float, length: int) -> int:
    """Draws the start of a crop that contains [low, high] and lies inside [0, length]."""
    first, last = max(0, math.ceil(high) - SIDE), min(math.floor(low), length - SIDE)
    return int(random.integers(first, max(first, last) + 1))


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Corners, b: Corners) -> float:
    """Returns the area of the intersection of two boxes."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _crop(scene: Scene, name: str, left: int, top: int, boxes: Sequence[Corners]) -> Crop:
    clipped = [
        tuple(float(np.clip(v - (left, top)[i % 2], 0, SIDE)) for i, v in enumerate(box)) for box in boxes
    ]
    return Crop(
        image_id=-1,
        file_name=f"{name}@{left},{top}",
        path=scene.path,
        group=scene.city,
        split=_OFFICIAL[scene.official],
        training_only=False,
        clean=not boxes,
        height=SIDE,
        width=SIDE,
        grey=False,
        boxes=clipped,  # type: ignore[arg-type]
        labels=[0] * len(boxes),
        left=left,
        top=top,
    )


def _divide_cities(crops: Sequence[Crop], shares: Sequence[float], seed: int) -> None:
    """Moves complete official training cities to the validation split, in place."""
    counts: dict[str, Counter[str]] = {}
    for crop in crops:
        if crop.split == "train":
            counts.setdefault(crop.group, Counter())[crop.stream] += 1
    split_of = splits.assign(counts, shares, seed)
    for crop in crops:
        if crop.split == "train":
            crop.split = split_of[crop.group]
