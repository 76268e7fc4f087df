"""The directory of a run: created or resumed by `train`, reopened by commands that use its networks."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras
import keras_cv
import tensorflow as tf

from tf_detectorgan import checkpoints, config
from tf_detectorgan.data import phantom, records, shards
from tf_detectorgan.errors import InputError
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training import backbone_weights
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.run import Run, build_run
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers

# The settings of a run that may change: arms can be added, logging and evaluation can differ.
FREE = {
    "arm",
    "run_dir",
    "log_every",
    "validate_every",
    "checkpoint_every",
    "primary_iou",
    "preflight",
}


def begin(settings: Train, workers: Workers) -> Run:
    """Returns the run of `settings`; creates or checks its directory and, without --data_dir, the phantom.

    Raises:
      InputError: the directory belongs to a run with other settings or other data.
    """
    layout = RunLayout(Path(settings.run_dir))
    _determinism(settings)
    data_dir = settings.data_dir or layout.phantom

    def write() -> None:
        same_settings(layout.config, settings, FREE)
        source, file = settings.backbone_weights, layout.backbone_weights
        # Without config.json, the source of existing weights is unknown.
        if source != "none" and not (layout.config.exists() and file.exists()):
            backbone_weights.fetch(source, file)
        if not settings.data_dir:
            _phantom(settings, layout.phantom)
        same_data(layout.data_card, records.open_dataset(data_dir))
        checkpoints.write_text(layout.config, config.to_json(settings) + "\n")

    workers.run_on_chief(write)
    return build_run(settings, records.open_dataset(data_dir), StopSignal().install(), workers)


def reopen(run_dir: str, data_dir: str = "") -> Run:
    """Returns a run to be used, not trained: on one device, with its own data set or the one in `data_dir`.

    Raises:
      InputError: there is no run, its data set is missing or has changed, or `data_dir` has another image
        shape or other classes.
    """
    layout = RunLayout(Path(run_dir).expanduser())
    if not layout.config.is_file() or not layout.data_card.is_file():
        raise InputError(f"--run_dir={run_dir}: no run there; train one with this --run_dir first")
    settings = config.from_json(Train, layout.config.read_text(encoding="utf-8"), str(layout.config))
    settings = dataclasses.replace(settings, run_dir=str(layout.path), distribution="one", workers=1)
    _determinism(settings)
    own = Path(settings.data_dir).expanduser() if settings.data_dir else layout.phantom
    if not data_dir and not records.is_dataset(own):
        raise InputError(f"{own}: the data set of {layout.path} is missing; give its path with --data_dir")
    dataset = records.open_dataset(data_dir or own)
    evaluation_set = _evaluation_set_name(layout.data_card, dataset, data_dir)
    return build_run(settings, dataset, StopSignal(), Workers(), evaluation_set)


def _determinism(settings: Train) -> None:
    """With --deterministic, makes TensorFlow's ops bit-identical in every run, or raise (decision 0055)."""
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()


def _evaluation_set_name(file: Path, dataset: records.Dataset, data_dir: str) -> str:
    """Returns a name for a data set that is not the run's; "" for the run's own, also if it was moved."""
    own, given = _read(file), _card(dataset)
    if own["fingerprint"] == given["fingerprint"]:
        return ""
    if not data_dir:
        raise InputError(f"{dataset.directory} has changed since {file.parent} was trained on it; restore it")
    for key in ("image_shape", "class_names"):
        if own[key] != given[key]:
            raise InputError(f"--data_dir={data_dir}: {key} is {given[key]}, but the run has {own[key]}")
    return f"{Path(data_dir).expanduser().resolve().name}-{given['fingerprint'][:8]}"


def same_settings(file: Path, settings: Any, free: Collection[str], renew: str = "--run_dir") -> None:
    """Compares a command's options with those in `file`, if it exists.

    `renew`: the flag that the error message recommends to change.

    Raises:
      InputError: an option that is not in `free` has changed.
    """
    if not file.exists():
        return
    written = config.from_json(type(settings), file.read_text(encoding="utf-8"), str(file))
    old, new = dataclasses.asdict(written), dataclasses.asdict(settings)
    changed = [k for k in sorted(new) if old[k] != new[k] and k not in free]
    if changed:
        what = "; ".join(f"--{k} was {old[k]}, is {new[k]}" for k in changed)
        raise InputError(f"{file.parent} has a run with other settings ({what}); use a new {renew}")


def same_data(file: Path, dataset: records.Dataset) -> None:
    """Writes the data set's card to `file`.

    Raises:
      InputError: `file` exists and is the card of other data.
    """
    card = _card(dataset)
    if file.exists() and _read(file)["fingerprint"] != card["fingerprint"]:
        raise InputError(
            f"{file}: this run was started with other images than those in --data_dir; use a new --run_dir"
        )
    checkpoints.write_text(file, json.dumps(card, indent=2))


def _card(dataset: records.Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "version": dataset.version,
        "fingerprint": dataset.fingerprint(),
        "image_shape": list(dataset.image_shape),
        "bit_depth": dataset.bit_depth,
        "class_names": list(dataset.class_names),
        "description": dataset.description,
        "citation": dataset.citation,
        "counts": {
            f"{split}_{stream}": dataset.count(f"{split}_{stream}")
            for split in records.SPLITS
            for stream in records.STREAMS
        },
        "versions": {"python": platform.python_version()}
        | {module.__name__: module.__version__ for module in (tf, keras, keras_cv)},
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}); use a new --run_dir") from error


def _phantom(settings: Train, directory: Path) -> None:
    if not records.is_dataset(directory):
        spec = phantom.PhantomConfig(size=settings.phantom_size, train_images=settings.phantom_train_images)
        shards.build(phantom.plan(spec), directory)
