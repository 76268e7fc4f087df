"""Lists the phases of a run, estimates its hours, and derives the settings of the short run.

The estimate only decides whether a preflight is worth its minutes. Measured times on two CPU cores with
AVX-512, and the estimates of the formulas below: a joint step of configs/demo.flags (64 px, 12 filters, 4
blocks, 4 images a stream) 0.41 to 0.5 s, estimate 0.45; of configs/nih.flags (512 px, 64 filters, 9 blocks, 1
image) 53 to 67 s, estimate 60.
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

# The first step is traced, the second timed. The final detector has another number of steps than the
# pretrained one, so that its step is traced separately, as in the run.
STEPS = {"pretrain_gan_steps": 2, "joint_steps": 2, "pretrain_detector_steps": 2, "final_detector_steps": 3}
BATCHES = 2  # of synthetic images, of the size in the run: the first is traced, the second timed

# Seconds of a GAN or joint step per multiply-add of one pass through a generator, and per pixel of a stream
# for the rest. Both are determined by the two measured steps above.
SECONDS_PER_MAC, SECONDS_PER_PIXEL = 2.4e-10, 2.3e-5
# Seconds of a detector step per pixel of its batch. Small detector: 0.1 s for 8 images of 64 px (demo.flags).
# ResNet-50: in proportion to the joint step of nih.flags, by the FLOPs that benchmarks/roofline.py counts.
SMALL_DETECTOR, RESNET50 = 3e-6, 5.7e-6
SMALL = ("retinanet_small", "fcos_small")
GPU = 100  # assumed speed-up over the CPU; a rough value is sufficient


class PhasePlan(NamedTuple):
    """A phase of a run, with a folder and a done.json of its own."""

    folder: Path  # in the run directory
    kind: str  # "gan", "joint", "detector", "images" or "evaluation"
    amount: int  # number of images for the last two kinds, otherwise of steps

    @property
    def name(self) -> str:
        """Returns the phase's name on progress bars."""
        return phase_name(self.folder)


def phases(settings: Train, test_images: int) -> list[PhasePlan]:
    """Returns the phases in the order of `training.phases.run_arms`."""
    s, run, arms = settings, RunLayout(Path()), {name: ARMS[name] for name in settings.arm}
    kinds = dict.fromkeys(arm.gan for arm in arms.values() if arm.gan)
    found = [PhasePlan(run.pretrain_gan(kind), "gan", s.pretrain_gan_steps) for kind in kinds]
    detectors = [run.pretrain_detector] if any(arm.detector for arm in arms.values()) else []
    if any(arm.images != "none" for arm in arms.values()):
        detectors += [run.held_out_detector(k) for k in range(s.crossfit_folds)]
    found += [PhasePlan(folder, "detector", s.pretrain_detector_steps) for folder in detectors]
    for name, arm in arms.items():
        layout = run.arm(name)
        if arm.images == "generator":
            found.append(PhasePlan(layout.joint, "joint" if arm.detector else "gan", s.joint_steps))
        if arm.images != "none":
            found.append(PhasePlan(layout.synthetic, "images", s.synthetic_count))
        found.append(PhasePlan(layout.final_detector, "detector", s.final_detector_steps))
        found.append(PhasePlan(layout.evaluation(), "evaluation", test_images))
    return found


def in_short(settings: Train, run_dir: str) -> Train:
    """Returns the settings of a short run in `run_dir`, with the graphs and batches of one worker of the run.

    Image summaries, validation and checkpoints are written once, at the end of a phase.
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
    """Returns the limits for `Dataset.limited`: one batch of each kind of evaluated image."""
    return {f"{split}_{kind}": detector_batch for split in ("validation", "test") for kind in EVALUATED}


def evaluated_images(dataset: Dataset, split: str) -> int:
    """Returns the number of images in an evaluation of `split`; 0 for validation without labelled images."""
    if split == "validation" and not dataset.count("validation_labelled"):
        return 0
    return sum(dataset.count(f"{split}_{kind}") for kind in EVALUATED)


def hours(
    settings: Train, devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ
) -> float:
    """Returns the estimated hours of all steps of a run, without synthesis and evaluation.

    Raises:
      InputError: --data_dir is not a prepared data set.
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
    """Returns the estimated seconds of a GAN or joint step on two CPU cores, for side x side pixels.

    Multiply-adds per pixel of a ResNet generator with f filters and b blocks: 98 f for the 7 x 7 convolutions
    at full size between about one channel and f; 18 b f^2 for two 3 x 3 convolutions per block, with 4f
    filters on 1/16 of the pixels; 4.5 f^2 per downsampling and 18 f^2 per upsampling layer, two of each.
    """
    f, blocks = settings.generator_filters, settings.generator_blocks or default_blocks(side)
    macs = 98 * f + (45 + 18 * blocks) * f**2
    return (SECONDS_PER_PIXEL + SECONDS_PER_MAC * macs) * settings.gan_batch * side**2
