"""The plan of a study: pairs of images of methods A and B, copied into the study's directory.

The page reads only `study.json` and `images/`. Boxes are COCO's (x, y, width, height) in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tf_detectorgan import disk
from tf_detectorgan.errors import InputError
from tf_detectorgan.run_layout import ANNOTATIONS, ArmLayout

SIDES = ("A", "B")
PLAN = "study.json"


@dataclasses.dataclass(frozen=True)
class ImagePair:
    """Two images of one background with an object in the same box.

    In an attention check, A is a real image, and B its copy with the box's pixels shuffled.
    """

    box: tuple[float, ...]
    check: bool
    origin: str  # file names, for the analysis of the answers; not shown


@dataclasses.dataclass(frozen=True)
class StudyPlan:
    """A study. The image of method A in pair k is `images/k_A.png`."""

    methods: tuple[str, str]
    seed: int
    pairs: tuple[ImagePair, ...]
    runs: tuple[str, ...] = ()  # directories of the methods' images


class Shown(NamedTuple):
    """One pair as shown to one rater."""

    pair: int
    left: str  # the method on the left, one of SIDES

    @property
    def sides(self) -> dict[str, str]:
        """Returns {"left": method, "right": method}."""
        return {"left": self.left, "right": SIDES[1 - SIDES.index(self.left)]}


class Candidate(NamedTuple):
    """A synthetic image on disk."""

    file: Path
    boxes: tuple[tuple[float, ...], ...]  # raters are shown the first one
    method: str
    background: int


class RealImage(NamedTuple):
    """A real image with one of its objects, for an attention check."""

    pixels: np.ndarray  # [H, W, C] uint8
    box: tuple[float, ...]
    name: str


def image_file(directory: Path, pair: int, side: str) -> Path:
    """Returns the path of an image of a pair."""
    return directory / "images" / f"{pair}_{side}.png"


def synthetic_images(directory: Path) -> list[Candidate]:
    """Returns the images that `train` or `synthesize` wrote to `directory` or, for arms, to its `synthetic`.

    Raises:
      InputError: there are no images, or the COCO file is invalid.
    """
    folders = (directory, ArmLayout(directory).synthetic)
    folder = next((d for d in folders if (d / ANNOTATIONS).is_file()), None)
    if folder is None:
        raise InputError(
            f"--run={directory}: contains no annotations.json; give an arm (runs/mine/arms/detectorgan) or a "
            "directory that tf_detectorgan.synthesize wrote"
        )
    try:
        document = json.loads((folder / ANNOTATIONS).read_text("utf-8"))
        boxes: dict[int, list[tuple[float, ...]]] = {}
        for row in document["annotations"]:
            boxes.setdefault(row["image_id"], []).append(tuple(row["bbox"]))
        return [
            Candidate(
                folder / row["file_name"],
                tuple(boxes[row["id"]]),
                row["provenance"]["method"],
                row["provenance"]["background_id"],
            )
            for row in document["images"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'annotations.json'}: is not a file of synthetic images of this package ({error!r})"
        ) from error


def matched(
    first: Sequence[Candidate], second: Sequence[Candidate], count: int, seed: int
) -> list[tuple[Candidate, Candidate]]:
    """Returns `count` pairs with the same background and boxes, drawn by `seed`.

    Raises:
      InputError: there are fewer pairs.
    """

    def key(image: Candidate):
        return image.background, *(round(v, 2) for box in image.boxes for v in box)

    others = {key(image): image for image in second}
    pairs = [(image, others[key(image)]) for image in first if key(image) in others]
    if len(pairs) < count:
        raise InputError(
            f"--pairs={count}: only {len(pairs)} images of {first[0].method} and {second[0].method} have the "
            "same background and boxes; reduce --pairs, or make images of both by tf_detectorgan.synthesize "
            "with the same --seed and --placement"
        )
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:count]
    return [pairs[i] for i in chosen]


def write(
    directory: Path,
    pairs: Sequence[tuple[Candidate, Candidate]],
    checks: Sequence[RealImage],
    methods: tuple[str, str],
    seed: int,
    runs: tuple[str, ...] = (),
) -> StudyPlan:
    """Copies the images and writes the plan; `directory` is created atomically.

    Images become 8-bit PNGs without metadata, which could contain the method's name.
    """
    rng = np.random.default_rng([seed, 1])
    rows = list[ImagePair]()
    with disk.whole_directory(directory) as partial:
        (partial / "images").mkdir()
        for first, second in pairs:
            for side, one in zip(SIDES, (first, second), strict=True):
                _picture(one.file).save(image_file(partial, len(rows), side))
            rows.append(ImagePair(first.boxes[0], False, f"{first.file.name}, {second.file.name}"))
        for real in checks:
            for side, pixels in zip(SIDES, (real.pixels, shuffled(real, rng)), strict=True):
                Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(
                    image_file(partial, len(rows), side)
                )
            rows.append(ImagePair(real.box, True, real.name))
        plan = StudyPlan(methods, seed, tuple(rows), runs)
        (partial / PLAN).write_text(json.dumps(dataclasses.asdict(plan), indent=1), encoding="utf-8")
    return plan


def read(directory: Path) -> StudyPlan:
    """Returns the plan in `directory`.

    Raises:
      InputError: there is no study, or its plan is invalid.
    """
    try:
        values: dict[str, Any] = json.loads((directory / PLAN).read_text("utf-8"))
        pairs = tuple(ImagePair(tuple(row["box"]), row["check"], row["origin"]) for row in values["pairs"])
        methods = (values["methods"][0], values["methods"][1])
        return StudyPlan(methods, values["seed"], pairs, tuple(values.get("runs", ())))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / PLAN}: cannot be read as a study ({error!r})") from error


def order(plan: StudyPlan, rater: int) -> list[Shown]:
    """Returns the pairs in a rater's random order; A is on the left in half of them."""
    rng = np.random.default_rng([plan.seed, 2, rater])
    count = len(plan.pairs)
    sides = rng.permutation(np.arange(count) % 2)
    return [Shown(int(pair), SIDES[sides[pair]]) for pair in rng.permutation(count)]


def shuffled(real: RealImage, rng: np.random.Generator) -> np.ndarray:
    """Returns the image [H, W, C] with the pixels of its box in random order, clearly less real."""
    pixels = real.pixels.copy()
    x, y, w, h = real.box
    rows = slice(max(0, int(y)), int(np.ceil(y + h)))
    columns = slice(max(0, int(x)), int(np.ceil(x + w)))
    inside = pixels[rows, columns]
    pixels[rows, columns] = rng.permutation(inside.reshape(-1, inside.shape[-1])).reshape(inside.shape)
    return pixels


def _picture(file: Path) -> Image.Image:
    """Returns an 8-bit grey or colour image; only the upper 8 of 16 bits are kept, as in browsers."""
    with Image.open(file) as image:
        if image.mode.startswith("I"):
            return Image.fromarray((np.asarray(image).astype(np.uint16) // 257).astype(np.uint8))
        kept = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        return Image.fromarray(np.asarray(kept))
