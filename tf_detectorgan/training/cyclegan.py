"""CycleGAN with BboxLoss as base GAN: the paper's Fig. 2 without DET, and Eqn 4.

Letters: N images per replica, H, W, C channels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Batch, Insertion
from tf_detectorgan.models.generators import Composition, bbox_target, bbox_weight, insert, reinsert, remove
from tf_detectorgan.resampling import crop
from tf_detectorgan.training import replicas, summaries
from tf_detectorgan.training.base_gan import Generated, GeneratorLosses, discriminator_loss
from tf_detectorgan.training.image_pool import ImagePool
from tf_detectorgan.training.loss_scale import Step


@dataclasses.dataclass(frozen=True)
class CycleObjective:
    """The kind and weights of the losses of G_X and G_Y, and how their inputs and outputs are composed."""

    gan_loss: str
    lambda_gan: float
    lambda_bbox: float
    lambda_cycle: float
    lambda_identity: float
    crop_size: int  # side of the crops that are DIS_localX's input, in pixels
    composition: Composition


@dataclasses.dataclass
class CycleGAN:
    """G_X inserts objects, G_Y removes them; with three discriminators, and two image pools per replica."""

    objective: CycleObjective
    G_X: keras.Model
    G_Y: keras.Model
    DIS_globalX: keras.Model
    DIS_localX: keras.Model
    DIS_globalY: keras.Model
    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer
    pools_X: list[ImagePool]
    pools_Y: list[ImagePool]

    @property
    def theta(self) -> list[keras.Variable]:
        return self.G_X.trainable_variables + self.G_Y.trainable_variables

    @property
    def parts(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "objective"}

    def generate(self, batch: Batch) -> Generated:
        """Returns x_syn = G_X(x, m) and, as the other image, G_Y(y, m)."""
        x_syn = self.insert(batch.x, batch.insertion)
        return Generated(x_syn, (remove(self.G_Y, *batch.y, batch.y_content, self.objective.composition),))

    def generator_losses(self, batch: Batch, generated: Generated, step: Step) -> GeneratorLosses:
        """Returns the generators' losses; the image gradients are those of the terms that depend on x_syn."""
        o, x_syn, (y_clean,), boxes = self.objective, generated.x_syn, generated.others, batch.insertion.boxes
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x_syn, y_clean])
            # Eqn 4, the generators' part.
            L_globalX = replicas.share(losses.adversarial_generator(self.DIS_globalX(x_syn), o.gan_loss))
            crops = crop(x_syn, boxes, o.crop_size)
            L_localX = replicas.share(losses.adversarial_generator(self.DIS_localX(crops), o.gan_loss))
            L_globalY = replicas.share(losses.adversarial_generator(self.DIS_globalY(y_clean), o.gan_loss))
            # BboxLoss: the distance of the object to the matched object.
            weight = bbox_weight(batch.insertion, o.composition, *x_syn.shape[1:3])
            target = bbox_target(batch.x, batch.insertion, o.composition)
            L_bbox = replicas.share(losses.bbox_loss(x_syn, target, weight))
            adversarial_Y = o.lambda_gan * L_globalY
            weighted = {
                "global": o.lambda_gan * L_globalX,
                "local": o.lambda_gan * L_localX,
                "bbox": o.lambda_bbox * L_bbox,
            }
        image_gradients = {name: step.gradient(tape, term, x_syn) for name, term in weighted.items()}
        losses_y, (d_y_cycle, *d_G_X) = self._cycle_y(batch, y_clean, step)
        # Run in sequence: the activations of y's cycle are freed before those of x's cycle are stored.
        with tf.control_dependencies([d_y_cycle, *d_G_X]):
            losses_x, (image_gradients["cycle"], *d_G_Y) = self._cycle_x(batch, x_syn, step)
        d_y = step.gradient(tape, adversarial_Y, y_clean) + d_y_cycle
        L_cycle, L_identity = (a + b for a, b in zip(losses_y, losses_x, strict=True))
        terms = {
            "L_globalX": L_globalX,
            "L_localX": L_localX,
            "L_globalY": L_globalY,
            "L_bbox": L_bbox,
            "L_cycle": L_cycle,
            "L_identity": L_identity,
        }
        return GeneratorLosses(terms, image_gradients, (d_y,), [*d_G_X, *d_G_Y])

    def train_discriminators(
        self, batch: Batch, generated: Generated, seed, step: Step
    ) -> dict[str, tf.Tensor]:
        """Updates the discriminators by Eqn 4 on real and pooled images; u trains DIS_globalX only."""
        o, replica, (y_clean,) = self.objective, replicas.index(), generated.others
        seed = seed + tf.constant([0, 7919], tf.int32) * replica
        fake_X, fake_boxes = self.pools_X[replica].exchange(generated.x_syn, batch.insertion.boxes, seed)
        fake_Y, _ = self.pools_Y[replica].exchange(y_clean, batch.y_boxes, seed + 2)
        nets = (self.DIS_globalX, self.DIS_localX, self.DIS_globalY)
        phi = [v for net in nets for v in net.trainable_variables]
        with tf.GradientTape() as tape:

            def loss(net, real, fake):
                count = tf.shape(real)[0]
                logits = net(tf.concat([real, fake], 0))
                return discriminator_loss(logits[:count], logits[count:], o.gan_loss)

            terms = {
                "L_DIS_globalX": loss(self.DIS_globalX, tf.concat([batch.y.images, batch.u], 0), fake_X),
                "L_DIS_localX": loss(
                    self.DIS_localX,
                    crop(batch.y.images, batch.y_boxes, o.crop_size),
                    crop(fake_X, fake_boxes, o.crop_size),
                ),
                "L_DIS_globalY": loss(self.DIS_globalY, batch.x, fake_Y),
            }
            objective = tf.add_n(list(terms.values()))
        g = step.gradient(tape, objective, phi)
        replicas.require_gradients(g, [v.path for v in phi], "the discriminators' objective")
        step.apply(self.discriminator_optimizer, replicas.total(g))
        return terms

    def insert(self, x, insertion: Insertion, residual_scale=None) -> tf.Tensor:
        return insert(self.G_X, x, insertion, self.objective.composition, residual_scale)

    def summary_image(self, batch: Batch) -> tf.Tensor:
        x_syn, (y_clean,) = self.generate(batch)
        return summaries.insertion_picture(batch.x, batch.insertion, x_syn, batch.y, y_clean)

    def _cycle_y(self, batch: Batch, y_clean, step: Step):
        """Returns G_X's L_cycle at y_clean, L_identity at y, and gradients to y_clean and G_X's weights."""
        y, variables = batch.y, self.G_X.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(y_clean)
            twice, content = (tf.nest.map_structure(_twice, v) for v in (y, batch.y_content))
            images = tf.concat([y_clean, y.images], 0)
            generated = reinsert(self.G_X, images, twice, content, self.objective.composition)
            terms, weighted = self._cycle_losses(generated, y.images)
        return terms, step.gradient(tape, weighted, [y_clean, *variables])

    def _cycle_x(self, batch: Batch, x_syn, step: Step):
        """Returns G_Y's L_cycle at x_syn, L_identity at x, and gradients to x_syn and G_Y's weights."""
        x, (boxes, labels, _, content) = batch.x, tf.nest.map_structure(_twice, batch.insertion)
        variables = self.G_Y.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(x_syn)
            images, composition = tf.concat([x_syn, x], 0), self.objective.composition
            generated = remove(self.G_Y, images, boxes[:, None], labels[:, None], content, composition)
            terms, weighted = self._cycle_losses(generated, x)
        return terms, step.gradient(tape, weighted, [x_syn, *variables])

    def _cycle_losses(self, generated, images):
        """Returns (L_cycle, L_identity) of `generated` [2N, H, W, C] and their weighted sum.

        Both are L1 distances to `images` [N, H, W, C]. The first half of `generated` was computed from the
        other generator's output for `images`, the second half from `images`.
        """
        L_cycle, L_identity = (replicas.share(losses.l1(half, images)) for half in tf.split(generated, 2))
        o = self.objective
        return (L_cycle, L_identity), o.lambda_cycle * L_cycle + o.lambda_identity * L_identity


def _twice(v):
    return tf.concat([v, v], 0)
