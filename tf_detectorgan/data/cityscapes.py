"""Pedestrians of Cityscapes as PS-GAN crops them (Ouyang et al. 2018, arXiv 1804.02047): 256 x 256 pixels.

Cordts et al. 2016 (images, gtFine polygons) and Zhang et al. 2017 (CityPersons boxes). A labelled crop has a
pedestrian of at least 70 x 25 pixels wholly inside, a clean one nobody. Coordinates are pixels of the whole
image, x to the right and y down, until a crop is made.
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

SIDE = 256  # of a crop
MIN_HEIGHT, MIN_WIDTH = 70, 25  # of a pedestrian, PS-GAN's filter
SHARES = (0.9, 0.1, 0.0)  # of the official training cities; the official validation cities are the test
_INSIDE = 0.5  # share of a pedestrian's box from which on a crop has it boxed
_TRIES = 20  # places tried for the clean crop of an image
_OFFICIAL = {"train": "train", "val": "test"}  # the official test set has no public boxes
_HUMANS = {"person", "rider", "persongroup", "ridergroup"}  # labels of gtFine; all of CityPersons' are human

Corners = tuple[float, float, float, float]  # x0, y0, x1, y1


class Scene(NamedTuple):
    """One whole image: its pedestrians that pass the filter, and everything that may be a human."""

    path: Path
    city: str
    official: str  # train or val
    height: int
    width: int
    pedestrians: list[Corners]
    humans: list[Corners]


@dataclasses.dataclass
class Crop(AnnotatedImage):
    """A square of `SIDE` pixels of the image at `path`."""

    left: int = 0
    top: int = 0

    def read(self) -> np.ndarray:
        """The crop's pixels [SIDE, SIDE, C]."""
        return _read_whole(self.path)[self.top : self.top + SIDE, self.left : self.left + SIDE]


_DESCRIPTION = f"""Crops of {SIDE} x {SIDE} pixels of Cityscapes street scenes. Labelled: pedestrians of at
least {MIN_HEIGHT} x {MIN_WIDTH} pixels; smaller ones, riders and people who sit may be there without a box.
Clean: nobody is annotated. Groups are cities; the official validation cities are the test."""
_CITATION = """M. Cordts et al.: The Cityscapes Dataset for Semantic Urban Scene Understanding. CVPR 2016.
Boxes, if from CityPersons: S. Zhang, R. Benenson, B. Schiele: CityPersons: A Diverse Dataset for Pedestrian
Detection. CVPR 2017. For non-commercial use by the licence of cityscapes-dataset.com; not to be passed on."""
ABOUT = shards.About("cityscapes", "1.0.0", _DESCRIPTION, _CITATION)


@functools.lru_cache(maxsize=1)
def _read_whole(path: Path) -> np.ndarray:
    """Crops of one image follow one another: it is decoded once for all of them."""
    return image_files.read_image(path)


def divide(
    folder: Path,
    *,
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    train_images: int = 0,
    skip_bad: bool = False,
) -> tuple[dict[str, list[AnnotatedImage]], list[str]]:
    """The checked crops of every split, and notes for the user.

    Args:
      folder: with `leftImg8bit` and `gtBboxCityPersons` or `gtFine`, as the publishers have them.
      shares: of training and validation among the official training cities; the third must be 0.
      seed: of the division of cities, and of the places of crops.
      train_images: number of labelled training crops to keep, 0 for all.
      skip_bad: go on without the images that cannot be decoded.

    Raises:
      InputError: a file or an option is at fault.
    """
    if shares[2]:
        raise InputError(
            f"--splits={','.join(map(str, shares))}: the test is the official one; the third share must be 0"
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
    """All images with their annotations, in the order of their names."""
    kind = next((k for k in ("gtBboxCityPersons", "gtFine") if isdir(folder / k)), None)
    if kind is None or not isdir(folder / "leftImg8bit"):
        raise InputError(
            f"--images={folder}: needs the folders leftImg8bit, and gtBboxCityPersons (CityPersons) or gtFine"
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
        raise InputError(f"{missing[0]}: no such file, one of {len(missing)} annotations that are missing")
    if not scenes:
        raise InputError(f"{folder / 'leftImg8bit'}: no image such as train/aachen/*_leftImg8bit.png")
    large = sum(not _fits(box) for scene in scenes for box in scene.pedestrians)
    notes = [
        f"boxes from {kind}: {sum(len(s.pedestrians) for s in scenes)} pedestrians of {len(scenes)} images"
    ]
    notes += [f"{large} pedestrians do not fit into {SIDE} pixels and have no crop"] if large else []
    return scenes, notes


def _scene(path: Path, city: str, official: str, file: Path) -> Scene:
    try:
        document = json.loads(file.read_text("utf-8"))
        height, width = int(document["imgHeight"]), int(document["imgWidth"])
        found = [(row["label"], _corners(row, height, width)) for row in document["objects"] if _human(row)]
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{file}: is no annotation of Cityscapes or CityPersons ({error!r})") from error
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
    """The box of CityPersons' `bbox` (x, y, width, height) or around gtFine's `polygon`, inside the image.

    CityPersons completes hidden people, so its boxes may reach outside.
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
    """The crops of an image that can be decoded."""
    whole = AnnotatedImage(
        number, scene.path.name, scene.path, scene.city, None, False, None, scene.height, scene.width
    )
    if image_files.inspect(whole, problems):
        for crop in crops_of(scene, seed):
            # An image is known again as a whole, by its first crop: one of asphalt looks like any other.
            crop.fingerprint, whole.fingerprint = whole.fingerprint, None
            yield crop


def crops_of(scene: Scene, seed: int) -> Iterator[Crop]:
    """Labelled crops until every pedestrian that fits is whole in one, and a clean crop where there is room.

    A crop lies anywhere around its pedestrian with equal chance. The clean one lies at the height of a
    labelled one of its image, or where those of a street are.
    """
    name = f"{scene.city}/{scene.path.name}"
    number = int.from_bytes(splits.digest(seed, name)[:8], "big")
    random = np.random.default_rng(number)
    whole = set[Corners]()
    tops = []
    for box in scene.pedestrians:
        if box in whole or not _fits(box):
            continue
        left = _place(random, box[0], box[2], scene.width)
        top = _place(random, box[1], box[3], scene.height)
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


def _place(random: np.random.Generator, low: float, high: float, length: int) -> int:
    """Where a crop begins that has [low, high] inside and lies inside [0, length]."""
    first, last = max(0, math.ceil(high) - SIDE), min(math.floor(low), length - SIDE)
    return int(random.integers(first, max(first, last) + 1))


def _area(box: Corners) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _overlap(a: Corners, b: Corners) -> float:
    """Area of the intersection of two boxes."""
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
    """Makes whole official training cities the validation split, in place."""
    counts: dict[str, Counter[str]] = {}
    for crop in crops:
        if crop.split == "train":
            counts.setdefault(crop.group, Counter())[crop.stream] += 1
    split_of = splits.assign(counts, shares, seed)
    for crop in crops:
        if crop.split == "train":
            crop.split = split_of[crop.group]
