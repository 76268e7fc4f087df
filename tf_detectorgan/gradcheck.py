"""Checks the derivative of Eqn 3: python -m tf_detectorgan.gradcheck --flagfile=configs/demo.flags.

Takes the flags of `train` and opens (or creates) its run directory. Compares the derivative of L~_real with
respect to the synthetic images with central differences in float64, through one unrolled step and through
--unroll_steps (at least 2). The detector has its initial weights. With --precision=mixed_bfloat16, it also
compares the derivative in this precision with that in float32. Exit codes: 0 exact; 1 not exact, or too
different from float32; 78 bad input.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import keras
import tensorflow as tf

from tf_detectorgan import command
from tf_detectorgan.batch import Labelled
from tf_detectorgan.data import pipeline
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.models.generators import paste
from tf_detectorgan.models.layers import dtype_policy
from tf_detectorgan.training import build, exactness, run_directory, second_order
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS, Train
from tf_detectorgan.training.workers import Workers

DIRECTIONS = 3
TOLERANCE = 1e-6  # a detector with one of Keras's norms: 4.5e-5; registered detectors: 1e-9 (decision 0075)
MIN_COSINE = 0.9  # of Eqn 3's derivatives in bfloat16 and in float32 (decision 0120)


def main(settings: Train) -> None:
    """Prints the table; ends with exit code 1 if the derivative is not exact."""
    run = run_directory.begin(settings, Workers())
    streams_32 = first_streams(run)
    DET, optimizer = full_precision(run, "float64")
    streams = streams_32.cast(tf.float64)
    what = f"{settings.detector}, {settings.joint_detector_optimizer}, {len(streams.y2.images)} images"
    try:
        for obstacle in (obstacles := second_order.obstacles(DET, streams.y)):
            print(f"no exact second derivative: {obstacle.op} ({obstacle.kind}); use {obstacle.instead}")
        exactness.warm_up(DET, optimizer, streams)
        checks = exactness.check_steps(
            *(DET, optimizer, streams),
            directions=DIRECTIONS,
            seed=settings.seed,
            recompute=settings.unroll_recompute,
        )
    except (LookupError, RuntimeError) as error:  # an op has no derivative, or a gradient is None
        print(f"{what}: Eqn 3 cannot be computed: {error}")
        sys.exit(1)
    print(f"{'unrolled steps':<14}{'relative error':>16}")
    for check in checks:
        print(f"{check.steps:<14}{check.error:>16.1e}")
    exact = all(is_exact(check) for check in checks)
    print(
        f"{what}: the derivative is {'exact' if exact else 'NOT exact'} to {TOLERANCE:.0e} along "
        f"{DIRECTIONS} directions; {len(obstacles)} ops without an exact second derivative"
    )
    if not exact and not obstacles:
        print(
            "no op of the network or the loss stops the derivative; custom gradients (tf.custom_gradient) "
            "were not checked: check those of the detector"
        )
    near = settings.precision != "mixed_bfloat16" or is_near(run, streams_32)
    if not exact or not near:
        sys.exit(1)


def is_exact(check: exactness.Check) -> bool:
    """Returns whether the derivative is exact; False if it is 0 everywhere, which shows nothing."""
    return check.error <= TOLERANCE and check.norm != 0


def full_precision(run: Run, dtype: str) -> tuple[Detector, keras.optimizers.Optimizer]:
    """Returns DET in `dtype`, which becomes Keras's floatx, and its joint-phase optimizer, on one device."""
    one_device = tf.distribute.get_strategy()
    settings = dataclasses.replace(run.settings, precision="float32")
    keras.config.set_floatx(dtype)
    with dtype_policy(dtype):
        DET = build.detector(settings, run.dataset, one_device)
        return DET, build.joint_detector_optimizer(settings, DET, one_device)


def is_near(run: Run, streams: exactness.Streams) -> bool:
    """Compares the derivative in --precision with float32's; prints and returns if it is near enough."""
    precision, one_device = run.settings.precision, tf.distribute.get_strategy()
    DET, optimizer = full_precision(run, "float32")
    exactness.warm_up(DET, optimizer, streams)
    rounded = build.detector(run.settings, run.dataset, one_device)
    rounded_optimizer = build.joint_detector_optimizer(run.settings, rounded, one_device)
    error, cosine = exactness.check_precision(DET, optimizer, rounded, rounded_optimizer, streams)
    near = cosine >= MIN_COSINE
    print(
        f"{precision} compared with float32: cosine {cosine:.4f}, relative error {error:.1e}; "
        f"{'near' if near else 'NOT near'} enough (a cosine of at least {MIN_COSINE})"
    )
    return near


def first_streams(run: Run) -> exactness.Streams:
    """Returns the streams of the joint phase's first batch, with real images for all unrolled steps; float32.

    The synthetic images have pasted exemplars, as before any generator is trained.
    """
    s, arm = run.settings, ARMS["detectorgan"]
    batches = pipeline.joint_batches(
        run.dataset,
        batch_size=s.gan_batch,
        seed=s.seed,
        start_step=s.pretrain_gan_steps,
        steps=s.pretrain_gan_steps + 1,
        placement=build.placement(s, arm.images, arm.gan),
        unroll_steps=max(2, s.unroll_steps),
    )
    batch = next(iter(batches))
    composition = build.composition(s, len(run.dataset.class_names))
    alpha = composition.blend(batch.insertion.boxes, batch.insertion.content, *batch.x.shape[1:3])
    x_syn = paste(batch.x, batch.insertion.exemplars, alpha)
    synthetic = Labelled(x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
    return exactness.Streams(batch.y, synthetic, batch.y2, batch.y_later)


if __name__ == "__main__":
    command.run(Train, main)
