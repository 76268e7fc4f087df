"""Writes a page on a prepared data set: counts, box sizes, duplicates and example images."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import checkpoints, gallery
from tf_detectorgan.data import contents, records, split_guard
from tf_detectorgan.data.contents import Contents
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import figures
from tf_detectorgan.models import detectors
from tf_detectorgan.models.detectors.detector import Coverage
from tf_detectorgan.training.settings import Train

SHOWN = {"labelled": 12, "clean": 4, "unboxed": 4}  # number of training images shown
LISTED = 10  # number of duplicates and of groups listed
_STREAMS = {"labelled": "with boxes", "clean": "without objects", "unboxed": "with objects, no boxes"}


def write(dataset: records.Dataset) -> Path:
    """Writes `data_card.html`, which needs no other file, into the data set's directory; returns its path.

    Raises:
      InputError: a record file is damaged.
    """
    dataset.fingerprint()  # reads every record, so that damage is an error before the page is written
    names = [f"{part}_{stream}" for part in records.SPLITS for stream in records.STREAMS]
    splits = {name: contents.read(dataset, name, fingerprints=True) for name in names if dataset.count(name)}
    sizes = {name: contents.sizes(held.boxes) for name, held in splits.items() if len(held.boxes)}
    train = splits["train_labelled"].boxes if "train_labelled" in splits else np.zeros([0, 4])
    coverage, refusal = _coverage(dataset, train)
    page = gallery.environment().get_template("data_card.html")
    html = page.render(
        title=f"Data card: {dataset.directory.name}",
        dataset=dataset,
        rows=[_row(dataset, name, held) for name, held in splits.items()],
        histogram=figures.box_sizes(sizes, contents.sizes(train), coverage and coverage.covered)
        if sizes
        else None,
        detector=Train.detector,
        covered=float(coverage.covered.mean()) if coverage and len(train) else None,
        rule=coverage.rule if coverage else "",
        refusal=refusal,
        groups=_groups(splits),
        equal=_equal(splits),
        near=_near(splits),
        listed=LISTED,
        pictures={text: _pictures(dataset, stream) for stream, text in _STREAMS.items()},
    )
    path = dataset.directory / "data_card.html"
    checkpoints.write_text(path, html)
    return path


def _coverage(dataset: records.Dataset, boxes: np.ndarray) -> tuple[Coverage | None, str]:
    """Returns which boxes [n, 4] the default detector can learn well, or None and the reason for none."""
    try:
        detector = detectors.build(Train.detector, dataset.image_shape, len(dataset.class_names))
    except InputError as error:
        return None, str(error)
    return detector.coverage(boxes), ""


def _row(dataset: records.Dataset, split: str, held: Contents) -> dict[str, Any]:
    return {"split": split.replace("_", ", "), **held.summary(dataset.class_names)}


def _groups(splits: dict[str, Contents]) -> dict[str, Any]:
    """Returns the number of groups, the size of the largest, and the groups in more than one part."""
    images, parts = Counter[str](), defaultdict[str, set[str]](set)
    for split, held in splits.items():
        for groups in held.groups:
            images.update(groups)
            for group in groups:
                parts[group].add(split.partition("_")[0])
    name, largest = images.most_common(1)[0]
    split_groups = sorted(group for group, found in parts.items() if len(found) > 1)
    return {"count": len(images), "name": name, "largest": largest, "torn": split_groups}


def _equal(splits: dict[str, Contents]) -> list[list[str]]:
    """Returns the locations of each image that is stored more than once with identical pixels."""
    places = defaultdict[bytes, list[str]](list)
    for split, held in splits.items():
        for name, mark in zip(held.names, held.fingerprints, strict=True):
            places[mark.digest].append(f"{name} ({split.replace('_', ', ')})")
    return [found for found in places.values() if len(found) > 1]


def _near(splits: dict[str, Contents]) -> dict[str, Any]:
    """Returns the number of near-duplicate pairs between the splits, and the most similar pairs."""
    named = {split: list(zip(held.names, held.fingerprints, strict=True)) for split, held in splits.items()}
    count, nearest = split_guard.pairs(named)
    return {"count": count, "nearest": [str(pair) for pair in nearest]}


def _pictures(dataset: records.Dataset, stream: str) -> list[dict[str, Any]]:
    """Returns evenly spaced training images without padding, with their boxes and names."""
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
