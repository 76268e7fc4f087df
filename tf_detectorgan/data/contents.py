"""The images, boxes and fingerprints of a split of a prepared data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import boxes as box_ops
from tf_detectorgan import progress
from tf_detectorgan.data import split_guard
from tf_detectorgan.data.records import Dataset, Listed


class Contents(NamedTuple):
    """The images and boxes of a split, in the order of its images."""

    names: list[str]
    groups: list[tuple[str, ...]]
    fingerprints: list[split_guard.Fingerprint]  # of the images without padding; empty if not computed
    boxes: np.ndarray  # [n, 4], see boxes.py
    labels: list[int]

    def summary(self, class_names: Iterable[str]) -> dict[str, Any]:
        """Returns numbers of images, groups, boxes and boxes of each class, and quantiles of box sizes."""
        count = Counter(self.labels)
        return {
            "images": len(self.names),
            "groups": len({group for groups in self.groups for group in groups}),
            "boxes": len(self.boxes),
            "classes": {name: count[label] for label, name in enumerate(class_names)},
            "sizes": np.quantile(sizes(self.boxes), (0.05, 0.5, 0.95)).tolist() if len(self.boxes) else None,
        }


def read(dataset: Dataset, split: str, fingerprints: bool = False) -> Contents:
    """Reads a split once; decodes its images only if `fingerprints` are to be computed."""
    found = Contents([], [], [], np.zeros([0, 4]), [])
    boxes = [found.boxes]
    images: Iterable[Listed] = dataset.listed(split)
    if fingerprints:
        images = progress.bar(images, desc=f"reading {split}", total=dataset.count(split), unit="image")
    for image in images:
        found.names.append(image.file_name)
        found.groups.append(image.groups)
        if fingerprints:
            height, width = image.valid_size
            found.fingerprints.append(split_guard.fingerprint(dataset.pixels(image)[:height, :width]))
        boxes.append(image.boxes)
        found.labels.extend(image.labels)
    return found._replace(boxes=np.concatenate(boxes))


def sizes(boxes: np.ndarray) -> np.ndarray:
    """Returns the square root of the area of boxes [n, 4], in stored pixels, [n]."""
    return np.sqrt(box_ops.area(boxes.astype(np.float32)).numpy())
