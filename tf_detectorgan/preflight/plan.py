"""The phases of a run before it begins, and the settings of the same run in short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from tf_detectorgan import synthesis
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.evaluation.detect import EVALUATED
from tf_detectorgan.training.settings import ARMS, Train

# The first step is traced, the second timed. A final detector has another number of steps than a pretrained
# one, so that its step is traced for itself, as in the run.
STEPS = {"gan_steps": 2, "joint_steps": 2, "pretrain_detector_steps": 2, "final_steps": 3}
BATCHES = 2  # of synthetic images, each as large as the run's: the first is traced, the second timed


class Phase(NamedTuple):
    """A part of a run with one folder and one done.json."""

    folder: str  # in the run directory
    kind: str  # "gan", "joint", "detector", "images" or "evaluation"
    amount: int  # of images for the last two, else of steps

    @property
    def name(self) -> str:
        """Returns the phase's name as progress bars show it."""
        return self.folder.removeprefix("shared/").removeprefix("arms/")


def phases(settings: Train, test_images: int) -> list[Phase]:
    """Returns the phases of `training.phases.run_arms` in its order."""
    s, arms = settings, {name: ARMS[name] for name in settings.arm}
    found = [
        Phase(f"shared/pretrain_{'gan' if kind == 'cyclegan' else kind}", "gan", s.gan_steps)
        for kind in dict.fromkeys(arm.gan for arm in arms.values() if arm.gan)
    ]
    detectors = ["pretrain_detector"] if any(arm.detector for arm in arms.values()) else []
    if any(arm.images != "none" for arm in arms.values()):
        detectors += [f"audit_detector_{k}" for k in range(s.audit_folds)]
    found += [Phase(f"shared/{name}", "detector", s.pretrain_detector_steps) for name in detectors]
    for name, arm in arms.items():
        home = f"arms/{name}"
        if arm.images == "generator":
            found.append(Phase(f"{home}/joint", "joint" if arm.detector else "gan", s.joint_steps))
        if arm.images != "none":
            found.append(Phase(f"{home}/synthetic", "images", s.synthetic_count))
        found.append(Phase(f"{home}/final_detector", "detector", s.final_steps))
        found.append(Phase(f"{home}/evaluation", "evaluation", test_images))
    return found


def in_short(settings: Train, run_dir: str) -> Train:
    """Returns settings of a short run in `run_dir` with the graphs and batches of the run on one machine.

    Pictures, validation and checkpoints come once, at the end of a phase.
    """
    s = settings
    steps: dict[str, Any] = {name: min(most, getattr(s, name)) for name, most in STEPS.items()}
    once: dict[str, Any] = dict.fromkeys(("validate_every", "checkpoint_every"), 1000)
    batch = max(synthesis.ROWS // s.synthetic_objects, 1)
    return dataclasses.replace(
        s,
        run_dir=run_dir,
        workers=1,
        gan_batch=max(s.gan_batch // s.workers, 1),
        detector_batch=max(s.detector_batch // s.workers, 1),
        synthetic_count=min(BATCHES * batch, s.synthetic_count),
        min_audit=0.0,  # untrained detectors may find nothing
        log_every=1,  # waits for the device after each step
        preflight="false",
        **steps,
        **once,
    )


def limits(detector_batch: int) -> Mapping[str, int]:
    """Returns the limits for `Dataset.limited`: a batch of each kind of image that is evaluated."""
    return {f"{split}_{kind}": detector_batch for split in ("validation", "test") for kind in EVALUATED}


def evaluated_images(dataset: Dataset, split: str) -> int:
    """Returns the number of images in an evaluation of `split`; 0 for validation without labelled ones."""
    if split == "validation" and not dataset.count("validation_labelled"):
        return 0
    return sum(dataset.count(f"{split}_{kind}") for kind in EVALUATED)
