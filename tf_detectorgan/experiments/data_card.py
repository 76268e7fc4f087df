"""A page that shows what a prepared data set holds, before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import checkpoints, gallery
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import figures
from tf_detectorgan.models import detectors
from tf_detectorgan.models.detectors.detector import Coverage
from tf_detectorgan.training.settings import Train

SHOWN = {"labelled": 12, "clean": 4, "unboxed": 4}  # pictures of the training split
LISTED = 10  # pairs of equal pictures
_STREAMS = {"labelled": "with boxes", "clean": "without the object", "unboxed": "whose boxes are not given"}


class Contents(NamedTuple):
    """What one split holds, images undecoded."""

    names: list[str]
    groups: list[tuple[str, ...]]
    hashes: list[bytes]  # of the stored PNG: equal if every pixel is
    boxes: np.ndarray  # [n, 4], see boxes.py
    labels: list[int]


def contents(dataset: records.Dataset, split: str) -> Contents:
    """Reads a split through once."""
    found = Contents([], [], [], np.zeros([0, 4]), [])
    boxes = [found.boxes]
    for image in dataset.listed(split):
        found.names.append(image.file_name)
        found.groups.append(image.groups)
        found.hashes.append(hashlib.sha256(image.png).digest())
        boxes.append(image.boxes)
        found.labels.extend(image.labels)
    return found._replace(boxes=np.concatenate(boxes))


def write(dataset: records.Dataset) -> Path:
    """Writes `data_card.html`, which needs no other file, into the data set's directory; returns its path."""
    names = [f"{part}_{stream}" for part in records.SPLITS for stream in records.STREAMS]
    splits = {name: contents(dataset, name) for name in names if dataset.count(name)}
    sizes = {name: _sizes(held.boxes) for name, held in splits.items() if len(held.boxes)}
    train = splits["train_labelled"].boxes if "train_labelled" in splits else np.zeros([0, 4])
    coverage, refusal = _coverage(dataset, train)
    page = gallery.environment().get_template("data_card.html")
    html = page.render(
        title=f"Data card: {dataset.directory.name}",
        dataset=dataset,
        rows=[_row(dataset, name, held) for name, held in splits.items()],
        histogram=figures.box_sizes(sizes, _sizes(train), coverage and coverage.covered) if sizes else None,
        detector=Train.detector,
        covered=float(coverage.covered.mean()) if coverage and len(train) else None,
        rule=coverage.rule if coverage else "",
        refusal=refusal,
        groups=_groups(splits),
        equal=_equal(splits),
        listed=LISTED,
        pictures={text: _pictures(dataset, stream) for stream, text in _STREAMS.items()},
    )
    path = dataset.directory / "data_card.html"
    checkpoints.write_text(path, html)
    return path


def _coverage(dataset: records.Dataset, boxes: np.ndarray) -> tuple[Coverage | None, str]:
    """Which boxes [n, 4] the default detector can learn well; or why it cannot be trained on such images."""
    try:
        detector = detectors.build(Train.detector, dataset.image_shape, len(dataset.class_names))
    except InputError as error:
        return None, str(error)
    return detector.coverage(boxes), ""


def _sizes(boxes: np.ndarray) -> np.ndarray:
    """Root of the area of boxes [n, 4], stored pixels."""
    return np.sqrt(np.prod(boxes_lib.to_xywh(boxes.astype(np.float32)).numpy()[:, 2:], axis=1))


def _row(dataset: records.Dataset, split: str, held: Contents) -> dict[str, Any]:
    counts = Counter(held.labels)
    return {
        "split": split.replace("_", ", "),
        "images": len(held.names),
        "groups": len({group for groups in held.groups for group in groups}),
        "boxes": len(held.boxes),
        "classes": [counts[number] for number in range(len(dataset.class_names))],
        "sizes": np.quantile(_sizes(held.boxes), (0.05, 0.5, 0.95)).tolist() if len(held.boxes) else None,
    }


def _groups(splits: dict[str, Contents]) -> dict[str, Any]:
    """Number of groups, images of the largest one, and the groups that lie in more than one part."""
    images, parts = Counter[str](), defaultdict[str, set[str]](set)
    for split, held in splits.items():
        for groups in held.groups:
            images.update(groups)
            for group in groups:
                parts[group].add(split.partition("_")[0])
    name, largest = images.most_common(1)[0]
    torn = sorted(group for group, found in parts.items() if len(found) > 1)
    return {"count": len(images), "name": name, "largest": largest, "torn": torn}


def _equal(splits: dict[str, Contents]) -> list[list[str]]:
    """The places of pictures that are stored more than once, every pixel the same."""
    places = defaultdict[bytes, list[str]](list)
    for split, held in splits.items():
        for name, digest in zip(held.names, held.hashes, strict=True):
            places[digest].append(f"{name} ({split.replace('_', ', ')})")
    return [found for found in places.values() if len(found) > 1]


def _pictures(dataset: records.Dataset, stream: str) -> list[dict[str, Any]]:
    """Evenly spaced training images, without their padding."""
    split = f"train_{stream}"
    step = max(dataset.count(split) // SHOWN[stream], 1)
    cards = []
    for record in dataset.serialized(split).shard(step, 0).take(SHOWN[stream]).map(dataset.decode):
        height, width = record.valid_size.numpy().tolist()
        names = [dataset.class_names[label] for label in record.labels.numpy()]
        cards.append(
            {
                "uri": gallery.image_uri(records.to_stored(record.image.numpy()[:height, :width], 8)),
                "size": (height, width),
                "name": record.file_name.numpy().decode(),
                "groups": [group.decode() for group in record.groups.numpy()],
                "classes": ", ".join(f"{count} {name}" for name, count in Counter(names).items()),
                "boxes": boxes_lib.to_xywh(record.boxes).numpy().tolist(),
            }
        )
    return cards
