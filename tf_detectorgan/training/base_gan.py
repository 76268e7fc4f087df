"""The interface of a GAN that the joint step can train together with a detector.

Letters: N images per replica, H, W, C channels. theta are the generators' trainable variables. Every loss is
this replica's share of the global batch's loss (`replicas.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Batch, Insertion
from tf_detectorgan.training import replicas
from tf_detectorgan.training.loss_scale import Step


class Generated(NamedTuple):
    """The images [N, H, W, C] that the generators compute from a batch; all depend on theta."""

    x_syn: tf.Tensor  # x with the objects of `batch.insertion`: DET's synthetic input
    others: tuple[tf.Tensor, ...]  # the other generated images that a loss depends on


class GeneratorLosses(NamedTuple):
    """The base GAN's part of the generators' objective, and its gradients."""

    terms: dict[str, tf.Tensor]  # name -> unweighted scalar, for the summaries
    image_gradients: dict[str, tf.Tensor]  # name -> gradient of the weighted term with respect to x_syn
    d_others: tuple[tf.Tensor, ...]  # gradients with respect to `Generated.others`
    d_theta: list[
        tf.Tensor | None
    ]  # gradients of the terms that depend on theta other than through these images


class BaseGAN(Protocol):
    """The built generators and discriminators, with their optimizers and losses."""

    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer

    @property
    def theta(self) -> list[keras.Variable]:
        """The variables that the generators' optimizer trains, in the optimizer's order."""

    @property
    def parts(self) -> dict[str, Any]:
        """The networks, optimizers and image pools that a step changes, by their names in a checkpoint."""

    def generate(self, batch: Batch) -> Generated:
        """Returns the images that the generators compute from `batch`."""

    def generator_losses(self, batch: Batch, generated: Generated, step: Step) -> GeneratorLosses:
        """Returns the generators' losses and their gradients, computed by `step.gradient`."""

    def train_discriminators(
        self, batch: Batch, generated: Generated, seed, step: Step
    ) -> dict[str, tf.Tensor]:
        """Updates the discriminators on real and generated images; returns their losses.

        `seed`: int32 [2], different at every step.
        """

    def insert(self, x, insertion: Insertion, residual_scale=None) -> tf.Tensor:
        """Returns x [N, H, W, C] with the objects of `insertion`, computed as `generate` computes x_syn.

        `residual_scale` [N]: as in `generators.insert`. Ignored if the generator has no object as input.
        """

    def summary_image(self, batch: Batch) -> tf.Tensor:
        """Returns an image [1, h, w, 3] for TensorBoard: the generators' inputs and outputs, in rows."""


def discriminator_loss(real, fake, kind: str) -> tf.Tensor:
    """Returns the mean of a discriminator's losses on its logits of real and of generated images."""
    real_loss = replicas.share(losses.adversarial_real(real, kind))
    return 0.5 * (real_loss + replicas.share(losses.adversarial_fake(fake, kind)))
