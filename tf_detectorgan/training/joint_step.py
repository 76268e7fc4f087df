"""The joint step of DetectorGAN, in the paper's order and symbols (section 3, Eqn 1 to 4).

Letters: N images per replica, H, W, C channels. theta are the generators' weights, W are DET's trainable
weights. x is a batch of clean images, m the masks of the boxes to fill; y and y2 are two batches of real
labelled images, drawn independently. Every loss is this replica's share of the global batch's loss
(`replicas.py`).
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import replicas, unroll
from tf_detectorgan.training.base_gan import BaseGAN
from tf_detectorgan.training.loss_scale import LossScale, Step


@dataclasses.dataclass
class JointModels:
    """The networks that the joint step trains, with their optimizers."""

    gan: BaseGAN
    DET: Detector | None = None  # None: the GAN is trained alone
    detector_optimizer: keras.optimizers.Optimizer | None = None  # of a class that update_rules.py supports
    loss_scale: LossScale | None = None  # None: no loss scaling


@dataclasses.dataclass(frozen=True)
class Objective:
    """The weights of the detector's losses in the generators' objective, see `joint_step`."""

    lambda_real: float  # 0: Eqn 3 is left out
    lambda_syn: float  # > 0: G_X maximises L_syn [paper]; < 0: G_X minimises it (ACGAN)
    syn_cap: float  # upper bound on the global L_syn; inf: none; ignored if lambda_syn < 0
    recompute: bool = False  # recompute DET's activations on x_syn, do not store them


GAN_ONLY = Objective(0.0, 0.0, 0.0)  # for a GAN that is trained without a detector


def joint_step(models: JointModels, objective: Objective, batch: Batch, seed) -> dict[str, tf.Tensor]:
    """Updates the generators, DET and the discriminators once, with x_syn computed once, by the old theta.

    With x_syn = G_X(x, m), the generators' weights theta minimise

        L_GAN(theta)  -  lambda_syn min(L_syn, syn_cap)  +  lambda_real L~_real

        L_GAN    the base GAN's objective; for CycleGAN Eqn 4, BboxLoss, cycle and identity losses
        L_syn  = L_d(DET(x_syn; W))                                                           (Eqn 2)
        L~_real = L_d(DET(y2; W')), W' = W after one update on L_real + L_syn                 (Eqn 3)

    DET's weights W minimise L_real + L_syn, with L_real = L_d(DET(y; W)) (Eqn 1). Eqn 3 uses the same update,
    computed once. The discriminators minimise their adversarial losses. With K unrolled steps, L~_real is the
    loss after K of them, and only the first is applied to DET.

    With a loss scale, either all networks are updated or none. `seed`: int32 [2], different at every step.
    Returns scalars by name: this replica's share of each loss, and the `_squared_norms`.
    """
    gan, DET, o, step = models.gan, models.DET, objective, Step(models.loss_scale)
    with tf.GradientTape() as tape:
        generated = gan.generate(batch)  # x_syn = G_X(x, m)

    gradient_scalars: dict[str, tf.Tensor] = {}  # 0 in a step that the loss scale skips
    terms, image_gradients, d_others, d_theta = gan.generator_losses(batch, generated, step)  # L_GAN
    if DET is not None:
        boxes, labels = (v[:, None] for v in (batch.insertion.boxes, batch.insertion.labels))  # one per image
        synthetic = Labelled(generated.x_syn, boxes, labels)
        # Run in sequence: L_GAN's activations are freed before DET's are stored (decision 0135).
        with tf.control_dependencies(
            [tf.group(*image_gradients.values(), *d_others, *(d for d in d_theta if d is not None))]
        ):
            unrolled = unroll.unrolled_step(
                DET,
                models.detector_optimizer,
                batch.y,
                synthetic,
                batch.y2 if o.lambda_real else None,
                batch.y_later,
                o.recompute,
            )
        terms |= {"L_real": unrolled.L_real, "L_syn": unrolled.L_syn}  # Eqn 1 and 2
        below = replicas.total(unrolled.L_syn) < o.syn_cap
        below_cap = tf.cast(below, tf.float32) if o.lambda_syn > 0 else 1.0  # d min(L_syn, syn_cap) / d L_syn
        image_gradients["syn"] = -o.lambda_syn * below_cap * unrolled.d_L_syn
        if unrolled.d_L_real_unrolled is not None:  # Eqn 3
            gradient_scalars["L_real_unrolled"] = unrolled.L_real_unrolled
            image_gradients["real"] = o.lambda_real * unrolled.d_L_real_unrolled

    # No loss of PS-GAN depends on x_syn, only on `generated.others`: without DET it has no gradient.
    d_x_syn = [tf.add_n(list(image_gradients.values()))] if image_gradients else []
    images = [generated.x_syn, *generated.others] if image_gradients else list(generated.others)
    g = step.gradient(tape, images, gan.theta, [*d_x_syn, *d_others])
    # a: by way of the images; b: directly. None: the variable does not influence the objective in that way.
    g = [b if a is None else a if b is None else a + b for a, b in zip(g, d_theta, strict=True)]
    replicas.require_gradients(g, [v.path for v in gan.theta], "the generators' objective")
    step.apply(gan.generator_optimizer, replicas.total(g))
    if DET is not None:
        step.commit(models.detector_optimizer, unrolled.update)
    terms |= gan.train_discriminators(batch, generated, seed, step)
    return terms | step.end(gradient_scalars | _squared_norms(image_gradients, batch.insertion.boxes))


SQUARED = "squared_norm/"


def _squared_norms(image_gradients: dict[str, tf.Tensor], boxes) -> dict[str, tf.Tensor]:
    """Returns the squared norm of each term's image gradient, inside and outside the boxes [N, 4]."""
    norms = {}
    for name, gradient in image_gradients.items():
        inside = boxes_lib.mask(boxes, gradient.shape[1], gradient.shape[2])[..., None]
        norms[f"{SQUARED}{name}_inside"] = tf.reduce_sum(inside * gradient * gradient)
        norms[f"{SQUARED}{name}_outside"] = tf.reduce_sum((1 - inside) * gradient * gradient)
    return norms
