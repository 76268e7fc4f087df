"""The built-in data set: generated chest X-rays in all streams of the method. It needs no download."""

from __future__ import annotations

import dataclasses
from typing import Any

from tf_detectorgan.data import records, shards
from tf_detectorgan.data.chest_film import draw, patient

CLASS_NAMES = ("nodule",)
SIZES = (32, 1024)  # smallest and largest image side, pixels
_SPLIT = 1_000_000  # image numbers reserved for each split


@dataclasses.dataclass(frozen=True)
class PhantomConfig:
    """Image side, seed, and numbers of images per split and stream."""

    size: int = 64  # pixels
    seed: int = 0
    train_images: int = 57
    clean_images: int = 600
    unboxed_images: int = 200
    validation_images: int = 100
    test_images: int = 300
    test_clean_images: int = 100


def plan(config: PhantomConfig) -> shards.Plan:
    """Returns the plan of a data set of generated chest X-rays with exact boxes around faint nodules."""
    counts = {
        "train_labelled": config.train_images,
        "train_clean": config.clean_images,
        "train_unboxed": config.unboxed_images,
        "validation_labelled": config.validation_images,
        "test_labelled": config.test_images,
        "test_clean": config.test_clean_images,
    }
    return shards.Plan(
        # Version 1.0.0 had fainter nodules and no shadows that resemble nodules.
        shards.About("phantom", "2.0.0", f"Generated chest X-rays, {dataclasses.asdict(config)}"),
        schema=records.features((config.size, config.size, 1), 8, CLASS_NAMES),
        max_boxes=2,
        # Each split has its own range of image numbers, so a larger split begins with a smaller one's images.
        splits={
            split: range(_SPLIT * number, _SPLIT * number + counts[split])
            for number, split in enumerate(records.SPLIT_NAMES)
            if counts.get(split)
        },
        example=Film(config.seed, config.size),
    )


@dataclasses.dataclass(frozen=True)
class Film:
    """Draws images by their number."""

    seed: int
    size: int

    def __call__(self, index: int) -> dict[str, Any]:
        """Returns the example of image `index`."""
        stream = records.STREAMS[index // _SPLIT % len(records.STREAMS)]
        image, boxes = draw(self.seed, index, self.size, nodule=stream != "clean")
        boxes = boxes if stream == "labelled" else boxes[:0]
        return {
            "image": records.to_stored(2.0 * image[..., None] - 1.0, 8),
            "image_id": index,
            "file_name": f"phantom_{index:07d}.png",
            "groups": [f"patient_{patient(index):07d}"],
            "boxes": boxes,
            "labels": [0] * len(boxes),
            "valid_size": (self.size, self.size),
            "source_size": (self.size, self.size),
            "provenance": "",
        }
