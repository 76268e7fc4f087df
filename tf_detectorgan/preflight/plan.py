"""The phases of a run before it begins, its hours by arithmetic, and the settings of the same run in short.

Hours are estimated well enough to decide whether a preflight is worth its minutes. Measured on two CPU cores
with AVX-512, and what the formulas below give: a joint step of configs/demo.flags (64 px, 12 filters, 4
blocks, 4 images a stream) 0.41 to 0.5 s, here 0.45; of configs/nih.flags (512 px, 64 filters, 9 blocks, 1
image) 53 to 67 s, here 60.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tf_detectorgan import synthesis
from tf_detectorgan.cluster.devices import gpus
from tf_detectorgan.data import records
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.evaluation.detect import EVALUATED
from tf_detectorgan.models.generators import default_blocks
from tf_detectorgan.run_layout import RunLayout, phase_name
from tf_detectorgan.training.settings import ARMS, Train

# The first step is traced, the second timed. A final detector has another number of steps than a pretrained
# one, so that its step is traced for itself, as in the run.
STEPS = {"pretrain_gan_steps": 2, "joint_steps": 2, "pretrain_detector_steps": 2, "final_detector_steps": 3}
BATCHES = 2  # of synthetic images, each as large as the run's: the first is traced, the second timed

# A GAN's or joint step: seconds per multiply-add of one pass through a generator, and per pixel of a stream
# for all else. The two steps above determine both.
SECONDS_PER_MAC, SECONDS_PER_PIXEL = 2.4e-10, 2.3e-5
# A detector's step, seconds per pixel of its batch. Small ones: demo.flags' 0.1 s for 8 images of 64 px.
# ResNet-50: in proportion to the joint step of nih.flags, by the FLOPs that benchmarks/roofline.py counts.
SMALL_DETECTOR, RESNET50 = 3e-6, 5.7e-6
SMALL = ("retinanet_small", "fcos_small")
GPU = 100  # times as fast: a guess, and no more is needed


class PhasePlan(NamedTuple):
    """A part of a run with one folder and one done.json."""

    folder: Path  # in the run directory
    kind: str  # "gan", "joint", "detector", "images" or "evaluation"
    amount: int  # of images for the last two, else of steps

    @property
    def name(self) -> str:
        """Returns the phase's name as progress bars show it."""
        return phase_name(self.folder)


def phases(settings: Train, test_images: int) -> list[PhasePlan]:
    """Returns the phases of `training.phases.run_arms` in its order."""
    s, run, arms = settings, RunLayout(Path()), {name: ARMS[name] for name in settings.arm}
    kinds = dict.fromkeys(arm.gan for arm in arms.values() if arm.gan)
    found = [PhasePlan(run.pretrain_gan(kind), "gan", s.pretrain_gan_steps) for kind in kinds]
    detectors = [run.pretrain_detector] if any(arm.detector for arm in arms.values()) else []
    if any(arm.images != "none" for arm in arms.values()):
        detectors += [run.held_out_detector(k) for k in range(s.crossfit_folds)]
    found += [PhasePlan(folder, "detector", s.pretrain_detector_steps) for folder in detectors]
    for name, arm in arms.items():
        home = run.arm(name)
        if arm.images == "generator":
            found.append(PhasePlan(home.joint, "joint" if arm.detector else "gan", s.joint_steps))
        if arm.images != "none":
            found.append(PhasePlan(home.synthetic, "images", s.synthetic_count))
        found.append(PhasePlan(home.final_detector, "detector", s.final_detector_steps))
        found.append(PhasePlan(home.evaluation(), "evaluation", test_images))
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


def hours(
    settings: Train, devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ
) -> float:
    """Returns the hours that all steps of a run take; synthesis and evaluation are left out.

    Raises:
      InputError: --data_dir is no prepared data set.
    """
    s = settings
    side = records.open_dataset(s.data_dir).image_shape[0] if s.data_dir else s.phantom_size
    detector = (SMALL_DETECTOR if s.detector in SMALL else RESNET50) * s.detector_batch * side**2
    generators = gan_step_seconds(s, side)
    seconds = sum(
        phase.amount * {"gan": generators, "joint": generators, "detector": detector}.get(phase.kind, 0.0)
        for phase in phases(s, test_images=0)
    )
    return seconds / s.workers / (GPU if gpus(environment, devices) else 1) / 3600


def gan_step_seconds(settings: Train, side: int) -> float:
    """Returns the seconds of a GAN's or joint step on two CPU cores, for images of side x side pixels.

    Multiply-adds per pixel of a ResNet generator of f filters and b blocks: at full size 7 x 7 from about one
    channel to f and back, 98 f; 3 x 3 with 4f filters on a sixteenth of the pixels in each block, two a
    block: 18 b f^2; two convolutions down, 4.5 f^2 each, and two up, 18 f^2 each.
    """
    f, blocks = settings.generator_filters, settings.generator_blocks or default_blocks(side)
    macs = 98 * f + (45 + 18 * blocks) * f**2
    return (SECONDS_PER_PIXEL + SECONDS_PER_MAC * macs) * settings.gan_batch * side**2
