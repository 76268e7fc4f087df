"""Estimates a run's hours by arithmetic, well enough to decide whether a preflight is worth its minutes.

Measured on two CPU cores with AVX-512, and what the formulas below give: a joint step of configs/demo.flags
(64 px, 12 filters, 4 blocks, 4 images a stream) 0.41 to 0.5 s, here 0.45; of configs/nih.flags (512 px, 64
filters, 9 blocks, 1 image) 53 to 67 s, here 60.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from tf_detectorgan.data import records
from tf_detectorgan.preflight import plan
from tf_detectorgan.training.settings import Train

# A GAN's or joint step: seconds per multiply-add of one pass through a generator, and per pixel of a stream
# for all else. The two steps above determine both.
SECONDS_PER_MAC, SECONDS_PER_PIXEL = 2.4e-10, 2.3e-5
# A detector's step, seconds per pixel of its batch. Small ones: demo.flags' 0.1 s for 8 images of 64 px.
# ResNet-50: in proportion to the joint step of nih.flags, by the FLOPs that benchmarks/scaling.py counts.
SMALL_DETECTOR, RESNET50 = 3e-6, 5.7e-6
SMALL = ("retinanet_small", "fcos_small")
GPU = 100  # times as fast: a guess, and no more is needed
BLOCKS, FEW_BLOCKS, FEW_BELOW = 9, 6, 128  # of generators, where the settings leave it to them


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
        for phase in plan.phases(s, test_images=0)
    )
    return seconds / s.workers / (GPU if has_gpu(devices, environment) else 1) / 3600


def gan_step_seconds(settings: Train, side: int) -> float:
    """Returns the seconds of a GAN's or joint step on two CPU cores, for images of side x side pixels."""
    per_pixel = SECONDS_PER_PIXEL + SECONDS_PER_MAC * generator_macs(settings, side)
    return per_pixel * settings.gan_batch * side**2


def generator_macs(settings: Train, side: int) -> int:
    """Returns the multiply-adds per pixel of a pass through a ResNet generator of f filters and b blocks.

    At full size 7 x 7 from about one channel to f and back, 98 f; 3 x 3 with 4f filters on a sixteenth of the
    pixels in each block, two a block: 18 b f^2; two convolutions down, 4.5 f^2 each, and two up, 18 f^2 each.
    """
    f = settings.generator_filters
    blocks = settings.generator_blocks or (FEW_BLOCKS if side <= FEW_BELOW else BLOCKS)
    return 98 * f + (45 + 18 * blocks) * f**2


def has_gpu(devices: Path = Path("/dev"), environment: Mapping[str, str] = os.environ) -> bool:
    """Returns whether TensorFlow will find a GPU, without TensorFlow, which would take its memory."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not hidden and any(devices.glob("nvidia[0-9]*"))
