"""Is Eqn 3 exact for your detector? python -m tf_detectorgan.gradcheck --flagfile=configs/demo.flags.

Takes the flags of `train`, opens (or begins) its run directory and compares, in float64, every mode's
derivative of L~_real to the synthetic images with central differences. The detector has its first weights.
`k_steps` takes --unroll_steps, or 2. With --precision the mode `exact` in this precision is compared with
itself in float32, too. Exit codes: 0 `exact` and `k_steps` are exact; 1 not, or too far from float32; 78 bad
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

from tf_detectorgan import door
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.data import pipeline
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.models.generators import paste
from tf_detectorgan.models.layers import dtype_policy
from tf_detectorgan.training import build, exactness, run_directory, second_order, unroll, update_rules
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS, Train
from tf_detectorgan.training.workers import Workers

DIRECTIONS = 3
TOLERANCE = 1e-6  # a Keras norm planted in a detector: 4.5e-5; registered detectors: 1e-9 (decision 0075)
NEAR = {"mixed_bfloat16": 0.9, "mixed_float16": 0.99}  # cosine of Eqn 3's derivative to float32's (0122)
WARM_UP = 2  # steps, so that the optimizer's moments are not 0


def main(settings: Train) -> None:
    """Prints the table and leaves with exit code 1 when the mode `exact` is not exact."""
    run = run_directory.begin(settings, Workers())
    batch = first_batch(run)
    DET, optimizer = full_precision(run, "float64")
    y, synthetic, y2, *later = streams(batch, tf.float64)
    what = f"{settings.detector}, {settings.joint_detector_optimizer}, {len(y2.images)} images"
    try:
        for found in (obstacles := second_order.obstacles(DET, y)):
            print(f"no exact second derivative: {found.op} ({found.kind}); use {found.instead}")
        for _ in range(WARM_UP):
            update_rules.commit(optimizer, unroll.lookahead(DET, optimizer, y, synthetic, None).update)
        checks = exactness.check_modes(
            *(DET, optimizer, y, synthetic, y2, later),
            directions=DIRECTIONS,
            seed=settings.seed,
            recompute=settings.unroll_recompute,
        )
    except (LookupError, RuntimeError) as error:  # an op without a derivative; a gradient that is None
        print(f"{what}: Eqn 3 cannot be computed: {error}")
        sys.exit(1)
    print(f"{'mode':<18}{'relative error':>16}{'cosine to exact':>18}")
    for check in checks:
        print(f"{check.mode:<18}{check.error:>16.1e}{check.cosine:>18.6f}")
    exact = all(is_exact(check) for check in checks if check.mode != "finite_difference")
    print(
        f"{what}: the derivative is {'exact' if exact else 'NOT exact'} to {TOLERANCE:.0e} along "
        f"{DIRECTIONS} directions; {len(obstacles)} ops without an exact second derivative"
    )
    if not exact and not obstacles:
        print(
            "no op of the network or the loss stops the derivative; not looked at were custom gradients "
            "(tf.custom_gradient): look there"
        )
    near = settings.precision == "float32" or is_near(run, batch)
    if not exact or not near:
        sys.exit(1)


def is_exact(check: exactness.Check) -> bool:
    """Whether the mode `exact` is. A derivative that is 0 everywhere, rightly or not, shows nothing."""
    return check.error <= TOLERANCE and check.cosine != 0


def full_precision(run: Run, dtype: str) -> tuple[Detector, keras.optimizers.Optimizer]:
    """DET in `dtype`, from now on Keras's own, with its optimizer of the joint phase; on one device."""
    one_device = tf.distribute.get_strategy()
    settings = dataclasses.replace(run.settings, precision="float32")
    keras.config.set_floatx(dtype)
    with dtype_policy(dtype):
        DET = build.detector(settings, run.dataset, one_device)
        return DET, build.joint_detector_optimizer(settings, DET, one_device)


def is_near(run: Run, batch: Batch) -> bool:
    """Prints how far the mode `exact` in --precision is from itself in float32; whether NEAR allows it."""
    precision, one_device = run.settings.precision, tf.distribute.get_strategy()
    DET, optimizer = full_precision(run, "float32")
    y, synthetic, y2, *_ = streams(batch, tf.float32)
    for _ in range(WARM_UP):
        update_rules.commit(optimizer, unroll.lookahead(DET, optimizer, y, synthetic, None).update)
    rounded = build.detector(run.settings, run.dataset, one_device)
    its = build.joint_detector_optimizer(run.settings, rounded, one_device)
    loss_scale = build.loss_scale(run.settings, one_device)
    found = exactness.check_precision(DET, optimizer, rounded, its, y, synthetic, y2, loss_scale)
    near = found.cosine >= NEAR[precision]
    scaled = f" at a loss scale of {float(loss_scale.scale):g}" if loss_scale else ""
    print(
        f"{precision} against float32{scaled}: cosine {found.cosine:.4f}, relative error {found.error:.1e}; "
        f"{'near' if near else 'NOT near'} enough, which is a cosine of {NEAR[precision]} or more"
    )
    return near


def first_batch(run: Run) -> Batch:
    """The joint phase's first batch, with real images for as many virtual steps as are checked."""
    s = run.settings
    batches = pipeline.joint_batches(
        run.dataset,
        batch_size=s.gan_batch,
        seed=s.seed,
        start_step=s.gan_steps,
        steps=s.gan_steps + 1,
        placement=build.placement(s, ARMS["detectorgan"]),
        unroll_real=s.unroll_real,
        unroll_steps=max(2, s.unroll_steps),
    )
    batch = next(iter(batches))
    # Objects laid over or pasted in, as before any generator is trained.
    composed = build.composition(s, len(run.dataset.class_names))
    alpha = composed.blend(batch.insertion.boxes, batch.insertion.content, *batch.x.shape[1:3])
    return batch._replace(x=paste(batch.x, batch.insertion.exemplars, alpha))


def streams(batch: Batch, dtype: tf.DType) -> list[Labelled]:
    """y, x with the inserted objects, y2 and the later steps' y; images in `dtype`."""
    synthetic = Labelled(batch.x, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
    all_streams = (batch.y, synthetic, batch.y2, *batch.y_later)
    return [one._replace(images=tf.cast(one.images, dtype)) for one in all_streams]


if __name__ == "__main__":
    door.run(Train, main)
