"""CycleGAN with BboxLoss as base GAN: the paper's Fig. 2 without DET, and Eqn 4.

Letters: N images a replica, H, W, C channels.
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
    """Weights of what G_X and G_Y are trained for, and what their held_out see."""

    gan_loss: str
    lambda_gan: float
    lambda_bbox: float
    lambda_cycle: float
    lambda_identity: float
    crop_size: int
    composition: Composition


@dataclasses.dataclass
class CycleGAN:
    """G_X inserts, G_Y removes, three discriminators judge; one pair of image pools a replica."""

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
        """G_X(x, m) and, beside it, G_Y(y, m)."""
        x_syn = self.insert(batch.x, batch.insertion)
        return Generated(x_syn, (remove(self.G_Y, *batch.y, batch.y_content, self.objective.composition),))

    def generator_losses(self, batch: Batch, generated: Generated, step: Step) -> GeneratorLosses:
        """Who held_out x_syn, and how it should change to please them: d(term)/dx_syn, term by term."""
        o, x_syn, (y_clean,), boxes = self.objective, generated.x_syn, generated.others, batch.insertion.boxes
        with tf.GradientTape(persistent=True) as tape:
            tape.watch([x_syn, y_clean])
            # Eqn 4, the generators' side.
            L_globalX = replicas.share(losses.adversarial_generator(self.DIS_globalX(x_syn), o.gan_loss))
            crops = crop(x_syn, boxes, o.crop_size)
            L_localX = replicas.share(losses.adversarial_generator(self.DIS_localX(crops), o.gan_loss))
            L_globalY = replicas.share(losses.adversarial_generator(self.DIS_globalY(y_clean), o.gan_loss))
            # BboxLoss: the object should look like the matched one.
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
        # In turns: the activations of one half of the cycle are free before those of the other are kept.
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
        """Eqn 4, the discriminators' side, on real images and on the pool. u trains DIS_globalX only."""
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
        """G_X at `y_clean` and at y: (L_cycle, L_identity) of y, and the gradients to y_clean and to G_X."""
        y, variables = batch.y, self.G_X.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(y_clean)
            twice, content = (tf.nest.map_structure(_twice, v) for v in (y, batch.y_content))
            images = tf.concat([y_clean, y.images], 0)
            generated = reinsert(self.G_X, images, twice, content, self.objective.composition)
            terms, weighted = self._cyclic(generated, y.images)
        return terms, step.gradient(tape, weighted, [y_clean, *variables])

    def _cycle_x(self, batch: Batch, x_syn, step: Step):
        """G_Y at `x_syn` and at x: (L_cycle, L_identity) of x, and the gradients to x_syn and to G_Y."""
        x, (boxes, labels, _, content) = batch.x, tf.nest.map_structure(_twice, batch.insertion)
        variables = self.G_Y.trainable_variables
        with tf.GradientTape() as tape:
            tape.watch(x_syn)
            images, composed = tf.concat([x_syn, x], 0), self.objective.composition
            generated = remove(self.G_Y, images, boxes[:, None], labels[:, None], content, composed)
            terms, weighted = self._cyclic(generated, x)
        return terms, step.gradient(tape, weighted, [x_syn, *variables])

    def _cyclic(self, generated, images):
        """Returns (L_cycle, L_identity) of `generated` [2N, H, W, C] and their weighted sum.

        Both are L1 distances to `images` [N, H, W, C]. The first half of `generated` comes from the other
        generator's output for `images`, the second half from `images`.
        """
        back, same = tf.split(generated, 2)
        L_cycle, L_identity = (replicas.share(losses.l1(half, images)) for half in (back, same))
        o = self.objective
        return (L_cycle, L_identity), o.lambda_cycle * L_cycle + o.lambda_identity * L_identity


def _twice(v):
    return tf.concat([v, v], 0)
