"""What the joint step asks of the GAN it trains. Whatever answers this can have a detector in its loop.

Letters: N images a replica, H, W, C channels. theta: the generators' trainable variables. Every loss is this
replica's share of the global batch's (`replicas.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Batch, Insertion
from tf_detectorgan.training import replicas
from tf_detectorgan.training.loss_scale import Step


class Drawn(NamedTuple):
    """Images [N, H, W, C] that the generators make of a batch, each a function of theta."""

    x_syn: tf.Tensor  # clean x with an object at `batch.insertion`: what DET is shown
    beside: tuple[tf.Tensor, ...]  # what else is judged


class Judged(NamedTuple):
    """The generators' own objective: every opinion of the images but DET's."""

    terms: dict[str, tf.Tensor]  # name -> unweighted scalar, for the summaries
    wishes: dict[str, tf.Tensor]  # name -> weighted derivative at x_syn
    d_beside: tuple[tf.Tensor, ...]  # derivative at each image of `Drawn.beside`
    d_theta: list[tf.Tensor | None]  # of terms that reach theta by other ways than the drawn images


class BaseGAN(Protocol):
    """Networks with their optimizers, built, and what they play for."""

    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer

    @property
    def theta(self) -> list[keras.Variable]:
        """What the generators' optimizer trains, in its order."""

    @property
    def parts(self) -> dict[str, Any]:
        """Everything that `joint_step` changes, by name (networks, optimizers, pools): the checkpoint's."""

    def draw(self, batch: Batch) -> Drawn:
        """The forward pass of the generators."""

    def judge(self, batch: Batch, drawn: Drawn, step: Step) -> Judged:
        """The generators' objective and its derivatives, by `step.gradient`."""

    def train_discriminators(self, batch: Batch, drawn: Drawn, seed, step: Step) -> dict[str, tf.Tensor]:
        """One step on real and generated images; returns scalars. `seed`: int32 [2], of this step."""

    def insert(self, x, insertion: Insertion, strength=None) -> tf.Tensor:
        """x [N, H, W, C] with the objects of `insertion`, as `draw` makes x_syn: synthesis.

        `strength` [N]: as in `generators.insert`; a GAN that does not start from an object has no use for it.
        """

    def picture(self, batch: Batch) -> tf.Tensor:
        """[1, h, w, 3] for the summaries: what the generators do with a batch, beside what they are given."""


def discriminator_loss(real, fake, kind: str) -> tf.Tensor:
    """What a discriminator pays for its logits of real and of generated images, on average."""
    L_real = replicas.share(losses.adversarial_real(real, kind))
    return 0.5 * (L_real + replicas.share(losses.adversarial_fake(fake, kind)))
