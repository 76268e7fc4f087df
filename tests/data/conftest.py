"""A data set in memory, with the interface of `records.Dataset`."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import records

CLASS_NAMES = ("nodule", "mass")


class MemoryDataset:
    """Splits are given as lists of examples for `records.encode`."""

    name = "memory"

    def __init__(self, side, splits, channels=1):
        self.image_shape = (side, side, channels)
        self.class_names = CLASS_NAMES
        self.features = records.features(self.image_shape, 8, CLASS_NAMES)
        self.max_boxes = max([len(e["labels"]) for split in splits.values() for e in split] + [1])
        self.examples = splits
        self._strings = {
            name: [records.encode(self.features, example) for example in split]
            for name, split in splits.items()
        }

    def count(self, split):
        return len(self._strings.get(split, []))

    def serialized(self, split):
        strings = self._strings.get(split, [])
        return tf.data.Dataset.from_tensor_slices(tf.constant(strings, tf.string, [len(strings)]))

    def decode(self, serialized):
        return records.decode(self.features, serialized)


def make_example(rng, image_id, side, *, boxes=0, padded=False):
    """Returns an image of noise over a gradient; its boxes have fractional corners, whole for odd ids."""
    height, width = rng.integers(side // 2, side + 1, 2).tolist() if padded else (side, side)
    image = np.zeros((side, side, 1), np.uint8)
    slope = np.linspace(0, rng.integers(40, 120), width)[None, :, None] * rng.choice([-1, 1]) + 120
    image[:height, :width] = slope + rng.integers(0, 60, (height, width, 1)) - 30
    size = rng.uniform(side / 8, side / 3, (boxes, 2))
    low = rng.uniform(0, 1, (boxes, 2)) * ((width, height) - size)
    corners = np.concatenate([low, low + size], axis=1).astype(np.float32)
    if image_id % 2:
        corners = np.floor(corners)
    return {
        "image": image,
        "image_id": image_id,
        "file_name": f"{image_id}.png",
        "groups": [f"group{image_id}"],
        "boxes": corners,
        "labels": rng.integers(0, 2, boxes),
        "valid_size": (height, width),
        "source_size": (2 * height, 2 * width),
        "provenance": "",
    }


@pytest.fixture(scope="session")
def make_dataset():
    """make_dataset(side=32, ...): arguments are images per split; ids begin at 0, 100, 200, 300, 400."""

    def make(side=32, clean=7, labelled=5, unboxed=4, test=5, padded=False):
        rng = np.random.default_rng(0)
        splits = {
            "train_clean": [make_example(rng, i, side, padded=padded) for i in range(clean)],
            "train_labelled": [
                make_example(rng, 100 + i, side, boxes=1 + i % 3, padded=padded) for i in range(labelled)
            ],
            "train_unboxed": [make_example(rng, 200 + i, side, padded=padded) for i in range(unboxed)],
            "test_labelled": [make_example(rng, 300 + i, side, boxes=1) for i in range(test)],
            "test_clean": [make_example(rng, 400 + i, side) for i in range(2)],
        }
        return MemoryDataset(side, {name: split for name, split in splits.items() if split})

    return make
