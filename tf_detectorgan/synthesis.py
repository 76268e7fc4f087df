"""Synthetic images with exact boxes: TFRecord of the data set's schema, PNGs with a COCO file, a gallery."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import disk, gallery, progress
from tf_detectorgan.batch import Synthesis
from tf_detectorgan.data import records
from tf_detectorgan.data.formats import export
from tf_detectorgan.data.pipeline import synthesis_batches
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation import audit
from tf_detectorgan.evaluation.auditors import Auditors
from tf_detectorgan.evaluation.looks import Looks

FIRST, FEW = 24, 8  # images shown: the first ones made; with judges also the best, the median, the worst


class _Shown:
    """The images for the gallery, picked while images pass by."""

    def __init__(self):
        self._first: list[dict[str, Any]] = []
        self._ranks: list[float] = []
        self._ranked: dict[int, list[tuple[float, int, dict[str, Any]]]] = {1: [], -1: []}

    def offer(self, number: int, rank: float | None, entry: Callable[[], dict[str, Any]]) -> None:
        """Image `number` with its audit; `entry` is called if it is to be shown."""
        if len(self._first) < FIRST:
            self._first.append(entry())
        if rank is None:
            return
        self._ranks.append(rank)
        for sign, best in self._ranked.items():
            key = (-sign * rank, number)
            if len(best) < FEW or key < best[-1][:2]:
                best[:] = sorted([*best, (*key, entry())], key=lambda one: one[:2])[:FEW]

    def sections(self) -> dict[str, list[dict[str, Any]]]:
        """Heading -> entries. Those about the median are the nearest to it among the first ones."""
        best, worst = ([entry for _, _, entry in self._ranked[sign]] for sign in (1, -1))
        away = np.abs(np.array(self._ranks) - np.median(self._ranks or 0.0))
        median = [self._first[i] for i in np.argsort(away[:FIRST], kind="stable")[:FEW]]
        return {
            "The first ones made": self._first,
            "Best by audit": best,
            "About the median by audit": median,
            "Worst by audit": worst,
        }


def synthesize(
    insert: Callable[[Synthesis], tf.Tensor],
    dataset: Dataset,
    directory: Path,
    *,
    count: int,
    batch_size: int,
    seed: int,
    placement: Placement,
    method: str,
    checkpoint: str,
    reach: float,
    judges: Auditors | None = None,
    describe: Callable[[np.ndarray, np.ndarray], Looks] | None = None,
    min_audit: float = 0.0,
    exports: Sequence[str] = (),
    between: Callable[[], None] = lambda: None,
) -> int:
    """Writes synthetic images to `directory`, which appears when all are finished; returns their number.

    Args:
      insert: Synthesis -> images [N, H, W, C] in [-1, 1].
      dataset: where backgrounds and matched objects come from (training split).
      directory: gets synthetic.tfrecord, annotations.json (COCO), images/*.png, gallery.html,
        contact_sheet.png, audit.json.
      count, batch_size: images made in all, and in one call of `insert`.
      seed, placement: image i is a function of (seed, i); where to insert.
      method, checkpoint: written into each image's provenance.
      reach: how far beyond a box `insert` may draw, in longer sides of the box.
      judges, min_audit: give each image its "audit" in the provenance, the rank of its object among real
        ones; images whose rank is below are made, but not written.
      describe: of `looks.describer`: the audit then compares objects by a network's features, too.
      exports: further formats of `export.WRITERS`, each into a folder of its name.
      between: called before every batch; what it raises ends the work, and nothing appears.

    Raises:
      InputError: no image reaches `min_audit`.
    """
    batches = synthesis_batches(
        dataset, count=count, batch_size=batch_size, seed=seed, start=0, placement=placement
    )
    origin = {"method": method, "checkpoint": checkpoint, "seed": seed}

    def examples(beside: _Beside) -> Iterator[dict[str, Any]]:
        with progress.bar(total=count, desc=f"synthesize {method}", unit="image", dynamic_ncols=True) as bar:
            for batch in batches:
                between()
                images = records.to_stored(insert(batch).numpy(), dataset.bit_depth)
                made = batch.seeds.numpy() < count
                bar.update(int(made.sum()))
                yield from beside.examples(batch, images, made)

    with disk.whole_directory(directory) as partial:
        (partial / "images").mkdir()
        beside = _Beside(partial, dataset, origin, reach, judges, describe, min_audit)
        kept = records.write_records(partial / "synthetic.tfrecord", examples(beside), dataset.features)
        if not kept:
            raise InputError(f"min_audit={min_audit}: none of the {count} images of {method} reaches it")
        beside.write(count, exports)
    return kept


class _Beside:
    """What lies beside the records: PNGs, COCO file, audit and gallery, gathered while images pass by."""

    def __init__(self, directory: Path, dataset: Dataset, origin, reach, judges, describe, min_audit: float):
        self._directory, self._dataset, self._origin = directory, dataset, origin
        self._reach, self._judges, self._describe, self._min_audit = reach, judges, describe, min_audit
        self._coco = _empty_coco(dataset.class_names)
        self._shown = _Shown()
        self._audited: list[audit.Measures] = []

    def examples(self, batch: Synthesis, images: np.ndarray, made: np.ndarray) -> Iterator[dict[str, Any]]:
        """The records of those stored images [N, H, W, C] that are `made` [N] and pass the audit."""
        stored = records.to_float(tf.constant(images), self._dataset.bit_depth).numpy()
        verdicts = self._judged(batch, stored)
        passed = verdicts["rank"] >= self._min_audit if verdicts else True
        wanted = np.flatnonzero(made & passed)
        if len(wanted):
            self._audited.append(self._measured(batch, stored, wanted, verdicts))
        for i in wanted.tolist():
            example = _example(batch, i, images[i], self._origin, verdicts)
            _add_to_coco(self._coco, example)
            _save_png(self._directory / example["file_name"], example["image"])
            rank = float(verdicts["rank"][i]) if verdicts else None
            entry = functools.partial(_gallery_entry, batch, i, example, self._dataset.bit_depth)
            self._shown.offer(int(batch.seeds[i]), rank, entry)
            yield example

    def write(self, count: int, exports: Sequence[str]) -> None:
        """Writes what was gathered of `count` images made, and all of it again in the formats `exports`."""
        found_real = self._judges.found_real() if self._judges else None
        measured = audit.joined(self._audited), self._measured_training()
        found = audit.audit(*measured, self._origin["seed"], found_real)
        found |= {"made": count, "min_audit": self._min_audit}
        for name, content in {"annotations.json": self._coco, "audit.json": found}.items():
            (self._directory / name).write_text(json.dumps(content), encoding="utf-8")
        sections = self._shown.sections()
        gallery.write_gallery(self._directory, sections, f"Synthetic images: {self._origin['method']}")
        gallery.contact_sheet(next(iter(sections.values()))[:8], self._directory / "contact_sheet.png")
        for kind in exports:
            export.write(kind, self._directory)

    def _judged(self, batch: Synthesis, stored: np.ndarray) -> dict[str, np.ndarray]:
        """What the judges say of images [N, H, W, C], and "found_before", of their backgrounds."""
        if self._judges is None:
            return {}
        what = batch.insertion.boxes, batch.insertion.labels, batch.matched_ids.numpy()
        before = self._judges.judge(batch.x, *what)["found"]
        return self._judges.judge(stored, *what) | {"found_before": before}

    def _measured(self, batch: Synthesis, stored: np.ndarray, wanted: np.ndarray, verdicts) -> audit.Measures:
        """The audit's measures of the `wanted` ones of images [N, H, W, C]."""
        boxes, content = (v.numpy()[wanted] for v in (batch.insertion.boxes, batch.insertion.content))
        objects = audit.Objects(stored[wanted], boxes, content)
        found = audit.measure(objects, batch.x.numpy()[wanted], self._reach, self._describe)
        return found._replace(more=found.more | {name: values[wanted] for name, values in verdicts.items()})

    def _measured_training(self) -> audit.Measures:
        """The audit's measures of every object of the labelled training images."""
        parts = []
        for record in self._dataset.serialized("train_labelled").map(self._dataset.decode):
            count = len(record.boxes)
            images = np.repeat(record.image.numpy()[None], count, axis=0)
            content = np.repeat(boxes_lib.of_sizes(record.valid_size).numpy()[None], count, axis=0)
            objects = audit.Objects(images, record.boxes.numpy(), content)
            parts.append(audit.measure(objects, describe=self._describe))
        return audit.joined(parts)


def _example(
    batch: Synthesis, i: int, image: np.ndarray, origin: dict[str, Any], verdicts: dict[str, np.ndarray]
) -> dict[str, Any]:
    box = batch.insertion.boxes[i].numpy()
    number = int(batch.seeds[i])
    provenance = {
        **origin,
        "number": number,
        "background_id": int(batch.background_ids[i]),
        "matched_id": int(batch.matched_ids[i]),
        "strength": round(float(batch.strength[i]), 3),
        "box": [round(float(v), 3) for v in box],
    }
    if verdicts:
        provenance |= {"audit": round(float(verdicts["rank"][i]), 3), "found": bool(verdicts["found"][i])}
    size = batch.valid_sizes[i].numpy()
    return {
        "image": image,
        "image_id": number + 1,
        "file_name": f"images/{number:06d}.png",
        "groups": list(dict.fromkeys(g.decode() for g in batch.groups[i].numpy())),
        "boxes": box[None],
        "labels": batch.insertion.labels[i].numpy()[None],
        "valid_size": size,
        "source_size": size,
        "provenance": json.dumps(provenance, sort_keys=True),
    }


def _empty_coco(class_names) -> dict[str, list]:
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(class_names)]
    return {"images": [], "annotations": [], "categories": categories}


def _add_to_coco(coco: dict[str, list], example: dict[str, Any]) -> None:
    x, y, w, h = (float(v) for v in boxes_lib.to_xywh(example["boxes"][0]))
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
    coco["annotations"].append(
        {
            "id": example["image_id"],
            "image_id": example["image_id"],
            "category_id": int(example["labels"][0]) + 1,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
        }
    )


def _save_png(path: Path, image: np.ndarray) -> None:
    """uint8 or uint16 grey, or uint8 colour (Pillow has no 16-bit colour: TensorFlow writes that)."""
    if image.dtype == np.uint16 and image.shape[-1] == 3:
        path.write_bytes(tf.io.encode_png(image).numpy())
    else:
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)


def _gallery_entry(batch: Synthesis, i: int, example: dict[str, Any], bit_depth: int) -> dict[str, Any]:
    def eight_bits(image):
        return records.to_stored(np.asarray(image), 8)

    ids = json.loads(example["provenance"])
    return {
        "background": eight_bits(batch.x[i]),
        "inserted": (example["image"] // (1 if bit_depth == 8 else 257)).astype(np.uint8),
        "matched": eight_bits(batch.matched[i]),
        "box": example["boxes"][0],
        "caption": f"{example['file_name']}: background {ids['background_id']}, "
        f"object of {ids['matched_id']}" + (f", audit {ids['audit']}" if "audit" in ids else ""),
    }
