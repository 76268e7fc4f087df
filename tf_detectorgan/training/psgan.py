"""PS-GAN as base GAN (Ouyang et al. 2018; section 4.2 of the paper), and pix2pix, PS-GAN without DIS_person.

The training data are aligned pairs: y with one box filled with noise, and y. G is trained to restore the
object. For a clean image with noise in a box, G therefore inserts an object.
Letters: N images per replica, H, W, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Batch, Insertion
from tf_detectorgan.models.generators import Composition
from tf_detectorgan.models.person_discriminator import PersonDiscriminator
from tf_detectorgan.models.unet import redraw
from tf_detectorgan.training import replicas, summaries
from tf_detectorgan.training.base_gan import Generated, GeneratorLosses, discriminator_loss
from tf_detectorgan.training.loss_scale import Step

IMAGE_LOSS, PERSON_LOSS = "log", "lsgan"  # of Ouyang et al., eqn 1 and 2
LAMBDA_L1 = 100.0  # of Ouyang et al. and of pix2pix


@dataclasses.dataclass(frozen=True)
class AlignedObjective:
    """The weight of G's adversarial losses, and how G's output is composed into the image."""

    lambda_gan: float
    composition: Composition


@dataclasses.dataclass
class PSGAN:
    """Generator G, DIS_image for (input, image) pairs, and DIS_person for the box; None for pix2pix."""

    objective: AlignedObjective
    G: keras.Model
    DIS_image: keras.Model
    DIS_person: PersonDiscriminator | None
    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer

    @property
    def theta(self) -> list[keras.Variable]:
        return self.G.trainable_variables

    @property
    def parts(self) -> dict[str, Any]:
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "objective"}
        return {name: part for name, part in parts.items() if part is not None}

    def generate(self, batch: Batch) -> Generated:
        """Returns x_syn and, as the other image, y_redrawn: y restored from `batch.y_noised`."""
        composition = self.objective.composition
        y_redrawn = redraw(self.G, batch.y_noised, batch.y_boxes, batch.y_content, composition)
        return Generated(self.insert(batch.x, batch.insertion), (y_redrawn,))

    def generator_losses(self, batch: Batch, generated: Generated, step: Step) -> GeneratorLosses:
        """Returns G's losses. All are computed at y_redrawn, whose target is y; none depends on x_syn."""
        o, (y_redrawn,) = self.objective, generated.others
        with tf.GradientTape() as tape:
            tape.watch(y_redrawn)
            logits = self.DIS_image(tf.concat([batch.y_noised, y_redrawn], -1))
            terms = {
                "L_image": replicas.share(losses.adversarial_generator(logits, IMAGE_LOSS)),
                "L_l1": replicas.share(losses.l1(y_redrawn, batch.y.images)),
            }
            objective = o.lambda_gan * terms["L_image"] + LAMBDA_L1 * terms["L_l1"]
            if self.DIS_person is not None:
                logits = self.DIS_person(y_redrawn, batch.y_boxes)
                terms["L_person"] = replicas.share(losses.adversarial_generator(logits, PERSON_LOSS))
                objective += o.lambda_gan * terms["L_person"]
        return GeneratorLosses(
            terms, {}, (step.gradient(tape, objective, y_redrawn),), [None] * len(self.theta)
        )

    def train_discriminators(
        self, batch: Batch, generated: Generated, seed, step: Step
    ) -> dict[str, tf.Tensor]:
        """Updates the discriminators: y is real, y_redrawn generated. DIS_image gets y_noised as well."""
        y, (y_redrawn,), boxes = batch.y.images, generated.others, batch.y_boxes
        nets = [net for net in (self.DIS_image, self.DIS_person) if net is not None]
        phi = [v for net in nets for v in net.trainable_variables]
        with tf.GradientTape() as tape:
            real, fake = (self.DIS_image(tf.concat([batch.y_noised, image], -1)) for image in (y, y_redrawn))
            terms = {"L_DIS_image": discriminator_loss(real, fake, IMAGE_LOSS)}
            if self.DIS_person is not None:
                real, fake = (self.DIS_person(image, boxes) for image in (y, y_redrawn))
                terms["L_DIS_person"] = discriminator_loss(real, fake, PERSON_LOSS)
            objective = tf.add_n(list(terms.values()))
        g = step.gradient(tape, objective, phi)
        replicas.require_gradients(g, [v.path for v in phi], "the discriminators' objective")
        step.apply(self.discriminator_optimizer, replicas.total(g))
        return terms

    def insert(self, x, insertion: Insertion, residual_scale=None) -> tf.Tensor:
        """Returns G's output for `insertion.exemplars`, which for this GAN are x with noise in the box."""
        composition = self.objective.composition
        return redraw(self.G, insertion.exemplars, insertion.boxes, insertion.content, composition)

    def summary_image(self, batch: Batch) -> tf.Tensor:
        x_syn, (y_redrawn,) = self.generate(batch)
        return summaries.insertion_picture(batch.x, batch.insertion, x_syn, batch.y, y_redrawn)
