"""The built-in data set: drawn chest X-rays in the streams that the method needs. No download, no network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tf_detectorgan.data import records, shards
from tf_detectorgan.data.chest_film import draw, patient

CLASS_NAMES = ("nodule",)
SIZES = (32, 1024)  # the smallest and the largest side that it is drawn at, pixels


@dataclasses.dataclass
class PhantomConfig(tfds.core.BuilderConfig):
    """Numbers of images per split and stream, and how to draw them."""

    name: str = "default"  # TFDS wants another name for other settings
    size: int = 64  # pixels
    seed: int = 0
    train_images: int = 57
    clean_images: int = 600
    unboxed_images: int = 200
    validation_images: int = 100
    test_images: int = 300
    test_clean_images: int = 100


class Phantom(shards.Builder, skip_registration=True):  # type: ignore[call-arg]
    """Drawn chest X-rays with exact boxes around faint nodules."""

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {
        "2.0.0": "Nodules a person can see, among shadows that look like them.",
        "1.0.0": "First version.",
    }
    BUILDER_CONFIGS = [PhantomConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return records.describe(
            self,
            records.features((size, size, 1), 8, CLASS_NAMES),
            max_boxes=2,
            description=f"Drawn chest X-rays, {dataclasses.asdict(self.builder_config)}",
        )

    def counts(self) -> dict[str, int]:
        """Images per split."""
        config = self.builder_config
        wanted = {
            "train_labelled": config.train_images,
            "train_clean": config.clean_images,
            "train_unboxed": config.unboxed_images,
            "validation_labelled": config.validation_images,
            "test_labelled": config.test_images,
            "test_clean": config.test_clean_images,
        }
        return {split: count for split, count in wanted.items() if count}

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[shards.Part]]:
        config, found = self.builder_config, {}
        for split, count in self.counts().items():
            part, stream = split.rsplit("_", 1)
            # Every split counts from its own base, so a larger split begins with the smaller one's images.
            number = len(records.STREAMS) * records.SPLITS.index(part) + records.STREAMS.index(stream)
            indices = range(1_000_000 * number, 1_000_000 * number + count)
            film = Film(config.seed, config.size, stream)
            found[split] = shards.parts(film, indices, self.info.features)
        return found


@dataclasses.dataclass(frozen=True)
class Film:
    """Draws the images of one stream by their number."""

    seed: int
    size: int
    stream: str

    def __call__(self, index: int) -> dict[str, Any]:
        """The example of image `index`."""
        image, boxes = draw(self.seed, index, self.size, nodule=self.stream != "clean")
        boxes = boxes if self.stream == "labelled" else boxes[:0]
        return {
            "image": records.to_stored(2.0 * image[..., None] - 1.0, 8),
            "image_id": index,
            "file_name": f"phantom_{index:07d}.png",
            "groups": [f"patient_{patient(index):07d}"],
            "boxes": boxes,
            "labels": np.zeros(len(boxes), np.int64).tolist(),
            "valid_size": np.array([self.size, self.size], np.int32),
            "source_size": np.array([self.size, self.size], np.int32),
            "provenance": "",
        }
