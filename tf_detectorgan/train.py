"""Trains everything: python -m tf_detectorgan.train --flagfile=configs/demo.flags.

Phases, each checkpointed and skipped when done: pretrain_gan, pretrain_detector, then for every --arm joint, synthetic
images, final_detector, evaluate; a report at the end. Run the same command again to resume. Exit codes: 75 interrupted, all
finished steps saved; 78 bad input.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported: keeps the progress bars readable

import keras
import keras_cv
import tensorflow as tf

from tf_detectorgan import checkpoints, config, door
from tf_detectorgan.data import phantom, records
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import report
from tf_detectorgan.models.detectors.anchors import coverage
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.phases import Run, run_arms
from tf_detectorgan.training.settings import Train

COVERED, WANTED_COVERAGE = 0.5, 0.95


def main(settings: Train) -> None:
    run = open_run(settings)
    anchor_report(run)
    run_arms(run)
    write_timings(run.path)
    page = report.write_report(run.path)
    print(report.result_table(run.path))
    print(f"run: {run.path}; TensorBoard: tensorboard --logdir {run.path / 'tensorboard'}; report: {page}")


def open_run(settings: Train) -> Run:
    """The run directory with its settings written down, the data set opened (the phantom drawn if need be).

    Raises:
      InputError: the directory belongs to a run with other settings or other data.
    """
    path = Path(settings.run_dir)
    _same_settings(path / "config.json", settings)
    tf.config.experimental.enable_op_determinism()
    dataset = records.open_dataset(settings.data_dir or _phantom(settings, path / "phantom"))
    _same_data(path, dataset)
    checkpoints.write_text(path / "config.json", config.to_json(settings) + "\n")
    return Run(settings, dataset, StopSignal().install())


def _same_settings(file: Path, settings: Train) -> None:
    """More arms may be added to a run, and it may be watched differently; nothing else may change."""
    if not file.exists():
        return
    old = json.loads(file.read_text(encoding="utf-8"))
    new = json.loads(config.to_json(settings))
    free = {"arm", "run_dir", "log_every", "image_every", "validate_every", "checkpoint_every"}
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k not in free]
    if changed:
        what = "; ".join(f"--{k} was {old.get(k)}, is {new.get(k)}" for k in changed)
        raise InputError(f"{file.parent} holds a run with other settings ({what}); use a new --run_dir")


def _same_data(path: Path, dataset: records.Dataset) -> None:
    card = {
        "name": dataset.name,
        "version": dataset.version,
        "fingerprint": dataset.fingerprint(),
        "image_shape": list(dataset.image_shape),
        "bit_depth": dataset.bit_depth,
        "class_names": list(dataset.class_names),
        "citation": dataset.citation,
        "counts": {
            f"{split}_{stream}": dataset.count(f"{split}_{stream}")
            for split in records.SPLITS
            for stream in records.STREAMS
        },
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in (tf, keras, keras_cv)},
    }
    file = path / "data_card.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["fingerprint"] != card["fingerprint"]:
        raise InputError(f"{file}: this run was begun with other images than --data_dir holds; use a new --run_dir")
    checkpoints.write_text(file, json.dumps(card, indent=2))


def _phantom(settings: Train, directory: Path) -> Path:
    if not records.is_dataset(directory):
        drawn = phantom.PhantomConfig(
            name="run", size=settings.phantom_size, train_images=settings.phantom_train_images
        )
        records.build(lambda data_dir: phantom.Phantom(data_dir=data_dir, config=drawn), directory)
    return directory


def anchor_report(run: Run) -> None:
    """Says which share of the training boxes some anchor overlaps with IoU 0.5 or more, and warns when it is low."""
    decoded = run.dataset.serialized("train_labelled").map(run.dataset.decode)
    boxes = tf.concat([record.boxes for record in decoded], 0)
    best = coverage(run.detector.anchors, boxes)
    share = float((best >= COVERED).mean())
    print(f"anchors: {share:.0%} of {len(best)} training boxes overlap one of {len(run.detector.anchors)} by IoU >= 0.5")
    if share < WANTED_COVERAGE:
        print(
            f"warning: below {WANTED_COVERAGE:.0%}; worst IoU {best.min():.2f}. Boxes without such an anchor learn from their "
            "best one only: set --anchor_sizes, --anchor_ratios"
        )


def write_timings(path: Path) -> None:
    """timings.json: seconds of each phase, from the records that phases leave behind."""
    seconds = {
        str(file.parent.relative_to(path)): json.loads(file.read_text(encoding="utf-8")).get("seconds")
        for file in sorted(path.glob("*/**/done.json"))
    }
    checkpoints.write_text(path / "timings.json", json.dumps({k: v for k, v in seconds.items() if v is not None}))


if __name__ == "__main__":
    door.run(Train, main)
