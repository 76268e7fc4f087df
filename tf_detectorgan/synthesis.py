"""Writes synthetic images with their boxes: TFRecord of the data set's schema, PNGs with a COCO file.

Letters: N rows of a batch, each one insertion; the rows of one image are consecutive. H, W, C as usual.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image
from tensorflow.python.framework.config import is_op_determinism_enabled  # no public name

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import disk, gallery, progress, run_layout
from tf_detectorgan.batch import Synthesis
from tf_detectorgan.data import records
from tf_detectorgan.data.pipeline import synthesis_batches
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation import audit
from tf_detectorgan.evaluation.held_out_detectors import HeldOutDetectors
from tf_detectorgan.models.generators import reach

ROWS = 32  # insertions in a batch
FIRST, FEW = 24, 8  # images in the gallery: the first ones; the best, median and worst by held-out detectors


class _Shown:
    """The images of the gallery, selected while images are made."""

    def __init__(self):
        self._first: list[dict[str, Any]] = []
        self._ranks: list[float] = []
        self._ranked: dict[int, list[tuple[float, int, dict[str, Any]]]] = {1: [], -1: []}

    def add(self, number: int, rank: float | None, entry: dict[str, Any]) -> None:
        """Adds an object of image `number`; `rank`: its rank among real objects, if known."""
        if len(self._first) < FIRST:
            self._first.append(entry)
        if rank is not None:
            self._ranks.append(rank)
            for sign, best in self._ranked.items():
                best[:] = sorted([*best, (-sign * rank, number, entry)], key=lambda one: one[:2])[:FEW]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """Returns heading -> entries. The median section has the first images whose rank is nearest to it."""
        best, worst = ([entry for _, _, entry in self._ranked[sign]] for sign in (1, -1))
        away = np.abs(np.array(self._ranks) - np.median(self._ranks or 0.0))
        median = [self._first[i] for i in np.argsort(away[:FIRST], kind="stable")[:FEW]]
        return {
            "First images": self._first,
            "Highest audit ranks": best,
            "Median audit ranks": median,
            "Lowest audit ranks": worst,
        }


def _for_contact_sheet(sections: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Returns the contact sheet's entries: the first eight, then two of each other section."""
    (_, first), *others = sections.items()
    named = [
        one | {"caption": f"{heading}: {one['caption']}"} for heading, some in others for one in some[:2]
    ]
    return first[:8] + named


class Inserter(NamedTuple):
    """The way in which an arm inserts objects, with its provenance."""

    method: str  # the arm's name
    # Returns images [N, H, W, C] in [-1, 1], each with the object of its row only.
    insert: Callable[[Synthesis], tf.Tensor]
    placement: Placement
    reach: float  # distance from a box up to which `insert` may change pixels, in longer sides of the box
    checkpoint: str = ""  # hash of the weights, if there are any


class Screening(NamedTuple):
    """The held-out detectors that rank objects among real ones, and the lowest rank that is kept."""

    held_out: HeldOutDetectors | None = None
    min_audit: float = 0.0


def synthesize(
    inserter: Inserter,
    dataset: Dataset,
    directory: Path,
    *,
    count: int,
    seed: int,
    screening: Screening,
    between: Callable[[], None] = lambda: None,
) -> int:
    """Writes synthetic images to `directory`, which is created when all are finished; returns their number.

    Args:
      inserter: the arm's. Objects that would overlap another one in the same image are left out.
      dataset: its training split provides backgrounds and matched objects.
      directory: will contain synthetic.tfrecord, annotations.json (COCO), images/*.png, gallery.html,
        contact_sheet.png, audit.json.
      count: number of images before screening.
      seed: image i is a function of (seed, i) and of the placement.
      screening: objects below the lowest rank are left out, and images without any other are not written.
      between: called before every batch and after the last; an exception that it raises removes everything.

    Raises:
      InputError: no image passes `screening`.
    """
    placement, method = inserter.placement, inserter.method
    batch_size = min(max(ROWS // placement.objects, 1), count)
    batches = synthesis_batches(
        dataset, count=count, batch_size=batch_size, seed=seed, start=0, placement=placement
    )

    def examples(writer: SyntheticSetWriter) -> Iterator[dict[str, Any]]:
        with progress.bar(total=count, desc=f"synthesize {method}", unit="image", dynamic_ncols=True) as bar:
            for batch in batches:
                between()
                valid = batch.seeds.numpy() < count
                yield from writer.examples(batch, inserter.insert(batch).numpy(), valid)
                bar.update(int(valid.sum()) // placement.objects)
            between()

    with disk.whole_directory(directory) as partial:
        (partial / "images").mkdir()
        writer = SyntheticSetWriter(partial, dataset, inserter, screening, seed)
        kept = records.write_records(partial / "synthetic.tfrecord", examples(writer), dataset.features)
        if not kept:
            raise InputError(
                f"min_audit={screening.min_audit}: no object in {count} images of {method} reaches it"
            )
        writer.finish()
    return kept


class SyntheticSetWriter:
    """Turns insertions into records, and writes PNGs, COCO file, audit and gallery of the same images."""

    def __init__(
        self, directory: Path, dataset: Dataset, inserter: Inserter, screening: Screening, seed: int
    ):
        self._directory, self._dataset, self._inserter = directory, dataset, inserter
        self._held_out, self._min_audit = screening
        self._origin = {
            "method": inserter.method,
            "checkpoint": inserter.checkpoint,
            "seed": seed,
            "deterministic": is_op_determinism_enabled(),
        }
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(dataset.class_names)]
        self._coco: dict[str, list] = {"images": [], "annotations": [], "categories": categories}
        self._shown = _Shown()
        self._audited: list[audit.Measures] = []
        self._objects = 0  # number of inserted objects, including those that fail the screening

    def examples(self, batch: Synthesis, inserted: np.ndarray, valid: np.ndarray) -> Iterator[dict[str, Any]]:
        """Yields the records of the images whose rows are `valid` [N] and pass the screening."""
        images = records.to_stored(inserted, self._dataset.bit_depth)
        stored = records.to_float(tf.constant(images), self._dataset.bit_depth).numpy()
        scores = self._scored(batch, stored)
        kept = valid & _apart(batch, self._inserter.reach)
        self._objects += int(kept.sum())
        if scores:
            kept &= scores["rank"] >= self._min_audit
        rows = np.flatnonzero(kept)
        if len(rows):
            self._audited.append(self._measured(batch, stored, rows, scores))
        numbers = batch.seeds.numpy()
        for _, same in itertools.groupby(rows.tolist(), lambda row: numbers[row]):
            yield self._image(batch, list(same), images, scores)

    def _scored(self, batch: Synthesis, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Returns held-out scores of images [N, H, W, C], and of their backgrounds ("found_before")."""
        if self._held_out is None:
            return {}
        objects = batch.insertion.boxes, batch.insertion.labels, batch.matched_ids.numpy()
        before = self._held_out.score_objects(batch.x, *objects)["found"]
        return self._held_out.score_objects(stored, *objects) | {"found_before": before}

    def _measured(self, batch: Synthesis, stored: np.ndarray, rows: np.ndarray, scores) -> audit.Measures:
        """Returns the audit's measures of the `rows` of images [N, H, W, C]."""
        boxes, content = (v.numpy()[rows] for v in (batch.insertion.boxes, batch.insertion.content))
        objects = audit.Objects(stored[rows], boxes, content)
        found = audit.measure(objects, batch.x.numpy()[rows], self._inserter.reach)
        return found._replace(more=found.more | {name: values[rows] for name, values in scores.items()})

    def _image(self, batch: Synthesis, rows: list[int], images: np.ndarray, scores) -> dict[str, Any]:
        """Returns the record of one image with the objects of `rows`; adds it to the other outputs."""
        background = records.to_stored(batch.x[rows[0]].numpy(), self._dataset.bit_depth)
        image = background
        for row in rows:  # their changes do not overlap
            image = np.where(images[row] != background, images[row], image)
        example = _example(batch, rows, image, self._origin, scores)
        _add_to_coco(self._coco, example)
        _save_png(self._directory / example["file_name"], image)
        for place, row in enumerate(rows):
            rank = float(scores["rank"][row]) if scores else None
            entry = _gallery_entry(batch, row, images[row], example, place)
            self._shown.add(int(batch.seeds[row]), rank, entry)
        return example

    def finish(self) -> None:
        """Writes the COCO file, the audit and the gallery of all images."""
        found_real = self._held_out.found_real() if self._held_out else None
        found = audit.audit(audit.joined(self._audited), *_measured_training(self._dataset), found_real)
        found |= {"made": self._objects, "min_audit": self._min_audit}
        for name, content in {run_layout.ANNOTATIONS: self._coco, run_layout.AUDIT: found}.items():
            (self._directory / name).write_text(json.dumps(content), encoding="utf-8")
        sections = self._shown.sections()
        gallery.write_gallery(self._directory, sections, f"Synthetic images: {self._inserter.method}")
        gallery.contact_sheet(_for_contact_sheet(sections), self._directory / "contact_sheet.png")


def _measured_training(dataset: Dataset) -> tuple[audit.Measures, list[bytes]]:
    """Returns the audit's measures and the groups of all objects of the labelled training images."""
    parts, groups = [], list[bytes]()
    for record in dataset.serialized("train_labelled").map(dataset.decode):
        count = len(record.boxes)
        images = np.repeat(record.image.numpy()[None], count, axis=0)
        content = np.repeat(boxes_lib.of_sizes(record.valid_size).numpy()[None], count, axis=0)
        parts.append(audit.measure(audit.Objects(images, record.boxes.numpy(), content)))
        groups += [record.groups[0].numpy()] * count
    return audit.joined(parts), groups


def _apart(batch: Synthesis, margin: float) -> np.ndarray:
    """Returns bool [N]: the row's changes overlap those of no earlier row of its image that is kept."""
    boxes, numbers = batch.insertion.boxes, batch.seeds.numpy()
    drawn = boxes_lib.dilate(boxes, reach(boxes, margin) + 1.0)  # + 1: pixels that both change in part
    overlaps = boxes_lib.iou(drawn, drawn).numpy() > 0
    apart = np.ones(len(numbers), bool)
    for row in range(len(numbers)):
        before = (numbers[:row] == numbers[row]) & apart[:row]
        apart[row] = not (overlaps[row, :row] & before).any()
    return apart


def _example(
    batch: Synthesis, rows: Sequence[int], image: np.ndarray, origin: dict[str, Any], scores
) -> dict[str, Any]:
    """Returns the record of `image` [H, W, C], in stored grey levels, with the objects of `rows`."""

    def provenance_of(row: int) -> dict[str, Any]:
        box = [round(float(v), 3) for v in batch.insertion.boxes[row]]
        residual_scale = round(float(batch.residual_scale[row]), 3)
        one = {"matched_id": int(batch.matched_ids[row]), "residual_scale": residual_scale, "box": box}
        if scores:
            one |= {"audit": round(float(scores["rank"][row]), 3), "found": bool(scores["found"][row])}
        return one

    first = rows[0]
    number, size = int(batch.seeds[first]), batch.valid_sizes[first].numpy()
    provenance = {
        **origin,
        "number": number,
        "background_id": int(batch.background_ids[first]),
        "objects": [provenance_of(row) for row in rows],
    }
    groups = np.concatenate([batch.groups[row].numpy() for row in rows])
    return {
        "image": image,
        "image_id": number + 1,
        "file_name": f"images/{number:06d}.png",
        "groups": list(dict.fromkeys(group.decode() for group in groups)),
        "boxes": tf.gather(batch.insertion.boxes, rows).numpy(),
        "labels": tf.gather(batch.insertion.labels, rows).numpy(),
        "valid_size": size,
        "source_size": size,
        "provenance": json.dumps(provenance, sort_keys=True),
    }


def _add_to_coco(coco: dict[str, list], example: dict[str, Any]) -> None:
    height, width = example["image"].shape[:2]
    coco["images"].append(
        {
            "id": example["image_id"],
            "file_name": example["file_name"],
            "width": width,
            "height": height,
            "groups": example["groups"],
            "provenance": json.loads(example["provenance"]),
        }
    )
    for box, label in zip(example["boxes"], example["labels"], strict=True):
        x, y, w, h = (float(v) for v in boxes_lib.to_xywh(box))
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": example["image_id"],
                "category_id": int(label) + 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
            }
        )


def _save_png(path: Path, image: np.ndarray) -> None:
    """Writes a PNG of 8 or 16 bits, grey or colour; by TensorFlow if Pillow cannot (16-bit colour)."""
    if image.dtype == np.uint16 and image.shape[-1] == 3:
        path.write_bytes(tf.io.encode_png(image).numpy())
    else:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)


def _gallery_entry(
    batch: Synthesis, row: int, image: np.ndarray, example: dict[str, Any], place: int
) -> dict[str, Any]:
    """Returns the gallery's entry of object `place` of the example; `image` has only this object."""

    def eight_bits(pixels):
        return records.to_stored(np.asarray(pixels), 8)

    provenance = json.loads(example["provenance"])
    one, many = provenance["objects"][place], len(provenance["objects"])
    which = "object" if many == 1 else f"{place + 1} of {many} objects,"
    return {
        "background": eight_bits(batch.x[row]),
        "inserted": (image // (257 if image.dtype == np.uint16 else 1)).astype(np.uint8),
        "matched": eight_bits(batch.matched[row]),
        "box": example["boxes"][place],
        "caption": f"{example['file_name']}: background {provenance['background_id']}, {which} "
        f"of {one['matched_id']}" + (f", audit {one['audit']}" if "audit" in one else ""),
    }
