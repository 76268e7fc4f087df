"""Runs the short training of a preflight: python -m tf_detectorgan.preflight.child, with flags of `train`.

All phases and the report use the code of `train`, with few steps, validation images and test images.
"""

from __future__ import annotations

import json
import os

from tf_detectorgan.environment import TENSORFLOW
from tf_detectorgan.errors import EXIT_INTERRUPTED
from tf_detectorgan.preflight import kernel

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported
if __name__ == "__main__":  # which takes seconds, in which the parent may be killed
    kernel.end_with_parent()  # the next call of `train` needs the memory and the GPUs

import tensorflow as tf

from tf_detectorgan import checkpoints, command
from tf_detectorgan.experiments import report
from tf_detectorgan.preflight import plan
from tf_detectorgan.training import before_training, build, run_directory
from tf_detectorgan.training.phases import run_arms
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


def main(settings: Train) -> None:
    """Checks the settings as `train` does, runs all phases in --run_dir and writes the report."""
    run = train_in_short(settings)
    checkpoints.write_costs(run.layout.path)
    report.write_report(run.layout.path)


def train_in_short(settings: Train) -> Run:
    """Runs all phases in --run_dir, with few validation and test images; returns the run."""
    run = run_directory.begin(settings, Workers())
    run.dataset = run.dataset.limited(plan.limits(settings.detector_batch))
    before_training.residual_report(run)
    devices = {"replicas": run.strategy.num_replicas_in_sync, "gpu": bool(build.gpus())}
    # Traced here, so that the times per image below do not include tracing.
    run.detect(tf.zeros([settings.detector_batch, *run.dataset.image_shape]))
    checkpoints.write_text(run.layout.devices, json.dumps(devices))
    run_arms(run)
    return run


if __name__ == "__main__":
    command.run(Train, main, terminated=EXIT_INTERRUPTED)
