"""Is Eqn 3 exact for your detector? python -m tf_detectorgan.gradcheck --flagfile=configs/demo.flags.

Takes the flags of `train`, opens (or begins) its run directory and compares, in float64, the derivative of
L~_real to the synthetic images with central differences, through one virtual step and through --unroll_steps
(at least 2). The detector has its first weights. With --precision=mixed_bfloat16 the derivative in this
precision is compared with that in float32, too. Exit codes: 0 exact; 1 not, or too far from float32; 78 bad
input.
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
TOLERANCE = 1e-6  # a Keras norm planted in a detector: 4.5e-5; registered detectors: 1e-9 (decision 0075)
NEAR = 0.9  # cosine of Eqn 3's derivative in bfloat16 to float32's (decision 0120)


def main(settings: Train) -> None:
    """Prints the table and leaves with exit code 1 when the derivative is not exact."""
    run = run_directory.begin(settings, Workers())
    given = first_streams(run)
    DET, optimizer = full_precision(run, "float64")
    streams = given.cast(tf.float64)
    what = f"{settings.detector}, {settings.joint_detector_optimizer}, {len(given.y2.images)} images"
    try:
        for found in (obstacles := second_order.obstacles(DET, streams.y)):
            print(f"no exact second derivative: {found.op} ({found.kind}); use {found.instead}")
        exactness.warm_up(DET, optimizer, streams)
        checks = exactness.check_steps(
            *(DET, optimizer, streams),
            directions=DIRECTIONS,
            seed=settings.seed,
            recompute=settings.unroll_recompute,
        )
    except (LookupError, RuntimeError) as error:  # an op without a derivative; a gradient that is None
        print(f"{what}: Eqn 3 cannot be computed: {error}")
        sys.exit(1)
    print(f"{'virtual steps':<14}{'relative error':>16}")
    for check in checks:
        print(f"{check.steps:<14}{check.error:>16.1e}")
    exact = all(is_exact(check) for check in checks)
    print(
        f"{what}: the derivative is {'exact' if exact else 'NOT exact'} to {TOLERANCE:.0e} along "
        f"{DIRECTIONS} directions; {len(obstacles)} ops without an exact second derivative"
    )
    if not exact and not obstacles:
        print(
            "no op of the network or the loss stops the derivative; not looked at were custom gradients "
            "(tf.custom_gradient): look there"
        )
    near = settings.precision != "mixed_bfloat16" or is_near(run, given)
    if not exact or not near:
        sys.exit(1)


def is_exact(check: exactness.Check) -> bool:
    """Whether the derivative is. One that is 0 everywhere, rightly or not, shows nothing."""
    return check.error <= TOLERANCE and check.norm != 0


def full_precision(run: Run, dtype: str) -> tuple[Detector, keras.optimizers.Optimizer]:
    """DET in `dtype`, from now on Keras's own, with its optimizer of the joint phase; on one device."""
    one_device = tf.distribute.get_strategy()
    settings = dataclasses.replace(run.settings, precision="float32")
    keras.config.set_floatx(dtype)
    with dtype_policy(dtype):
        DET = build.detector(settings, run.dataset, one_device)
        return DET, build.joint_detector_optimizer(settings, DET, one_device)


def is_near(run: Run, streams: exactness.Streams) -> bool:
    """Prints how far the derivative in --precision is from that in float32; whether NEAR allows it."""
    precision, one_device = run.settings.precision, tf.distribute.get_strategy()
    DET, optimizer = full_precision(run, "float32")
    exactness.warm_up(DET, optimizer, streams)
    rounded = build.detector(run.settings, run.dataset, one_device)
    its = build.joint_detector_optimizer(run.settings, rounded, one_device)
    error, cosine = exactness.check_precision(DET, optimizer, rounded, its, streams)
    near = cosine >= NEAR
    print(
        f"{precision} against float32: cosine {cosine:.4f}, relative error {error:.1e}; "
        f"{'near' if near else 'NOT near'} enough, which is a cosine of {NEAR} or more"
    )
    return near


def first_streams(run: Run) -> exactness.Streams:
    """Streams of the joint phase's first batch, with real images for all virtual steps; float32.

    Objects are laid over or pasted into the synthetic images, as before any generator is trained.
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
    composed = build.composition(s, len(run.dataset.class_names))
    alpha = composed.blend(batch.insertion.boxes, batch.insertion.content, *batch.x.shape[1:3])
    x_syn = paste(batch.x, batch.insertion.exemplars, alpha)
    synthetic = Labelled(x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
    return exactness.Streams(batch.y, synthetic, batch.y2, batch.y_later)


if __name__ == "__main__":
    command.run(Train, main)
