"""Defines the names of a run directory's folders and files; no other module contains them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# Shown in README; a test compares it with a real run.
DIAGRAM = """\
RUN_DIR/
  config.json               options of train
  data_card.json            the data set: fingerprint, counts, classes, versions
  phantom/                  the drawn data set, without --data_dir
  backbone.weights.h5       what the backbone started from, with --backbone_weights
  preflight.json, preflight.log
  shared/                   phases that all arms share
    pretrain_gan/
    pretrain_detector/
    held_out_detector_0/ ...
  arms/ARM/
    joint/                  generators, discriminators and DET
    synthetic/              synthetic.tfrecord, annotations.json, images/, audit.json, gallery.html
    final_detector/
    evaluation/             metrics.json, detections.json; of other data in a folder of its own
  tensorboard/
  truth.json                boxes of the test split
  evaluation_samples.npz    test images for the report's pictures
  costs.json                seconds and memory of every phase
  report.html, report.md, cards.md
A phase's directory holds its checkpoints, and done.json when it is finished.
"""

DONE = "done.json"  # in a phase's directory, when it is finished
SYNTHETIC = "synthetic.tfrecord"
ANNOTATIONS = "annotations.json"
IMAGES = "images"
AUDIT = "audit.json"
GALLERY = "gallery.html"
CONTACT_SHEET = "contact_sheet.png"


class _Inside:
    """A descriptor for a path inside the directory of its owner."""

    def __init__(self, name: str):
        self._name = name

    def __get__(self, owner, kind=None) -> Path:
        return owner.path / self._name


@dataclasses.dataclass(frozen=True)
class ArmLayout:
    """The directory of one arm."""

    path: Path

    joint = _Inside("joint")
    synthetic = _Inside("synthetic")
    final_detector = _Inside("final_detector")

    def evaluation(self, evaluation_set: str = "") -> Path:
        """Returns the folder of the evaluation on the run's own data, or on `evaluation_set`."""
        return self.path / "evaluation" / evaluation_set


@dataclasses.dataclass(frozen=True)
class RunLayout:
    """A run directory."""

    path: Path

    config = _Inside("config.json")
    data_card = _Inside("data_card.json")
    phantom = _Inside("phantom")
    backbone_weights = _Inside("backbone.weights.h5")
    log = _Inside("train.log")  # output of `train` when `reproduce` starts it
    preflight = _Inside("preflight.json")
    preflight_log = _Inside("preflight.log")
    short_run = _Inside(".preflight")  # run directory of a preflight, while it runs
    devices = _Inside("devices.json")  # of a short run, written before its first phase
    trial = _Inside("trial.json")  # results of a process of gpu_check
    shared = _Inside("shared")
    pretrain_detector = _Inside("shared/pretrain_detector")
    arms = _Inside("arms")
    tensorboard = _Inside("tensorboard")
    samples = _Inside("evaluation_samples.npz")
    costs = _Inside("costs.json")
    report = _Inside("report.html")

    def pretrain_gan(self, kind: str) -> Path:
        """Returns the directory of a base GAN, whose kind is one of `training.settings.GANS`."""
        return self.shared / ("pretrain_gan" if kind == "cyclegan" else f"pretrain_{kind}")

    def held_out_detector(self, fold: int) -> Path:
        """Returns the directory of the detector trained without a fold; older runs have another name."""
        old = self.shared / f"audit_detector_{fold}"
        return old if old.is_dir() else self.shared / f"held_out_detector_{fold}"

    def arm(self, name: str) -> ArmLayout:
        return ArmLayout(self.arms / name)


def metrics(evaluation: Path, split: str = "test") -> Path:
    """Returns the metrics file of a split in a folder of `ArmLayout.evaluation`."""
    return evaluation / _split_file("metrics", split)


def detections(evaluation: Path, split: str = "test") -> Path:
    """Returns the file with the detections of a split, in COCO's results format."""
    return evaluation / _split_file("detections", split)


def truth(folder: Path, split: str = "test") -> Path:
    """Returns the boxes file of a split, in the run directory or in the folder of an evaluation set."""
    return folder / _split_file("truth", split)


def phase_name(directory: Path) -> str:
    """Returns a phase's name for progress bars: that of its folder, after that of its arm."""
    name, arm = directory.name, directory.parent.name
    return name if arm == "shared" else f"{arm}/{name}"


def _split_file(name: str, split: str) -> str:
    return f"{name}.json" if split == "test" else f"{name}_{split}.json"
