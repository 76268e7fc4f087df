"""Loss scaling: steps of networks in float16, whose gradients must neither vanish nor overflow.

float16 has nothing between 0 and 6e-8, nor beyond 65504. So what a tape passes down is multiplied by a scale
S, and what arrives, in float32, is divided by it (Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan.training import replicas, update_rules
from tf_detectorgan.training.update_rules import Update

FIRST, GOOD_STEPS = 2.0**15, 2000  # of keras.optimizers.LossScaleOptimizer, whose rule this is


class LossScale(tf.Module):
    """S: halved at a step whose gradients are not finite, doubled after GOOD_STEPS others in a row.

    One for all joint_models of a step (decision 0120).

    Attributes:
      scale: S, float32 scalar, mirrored.
      good_steps: steps since S changed.
      skipped: steps that trained nobody, in all.
    """

    def __init__(self):
        super().__init__(name="loss_scale")
        self.scale = tf.Variable(FIRST, trainable=False, name="scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped")

    def scalars(self) -> dict[str, tf.Tensor]:
        """For the summaries."""
        return {"loss_scale": tf.identity(self.scale), "skipped_steps": tf.identity(self.skipped)}

    def gradient(self, tape: tf.GradientTape, target, sources, output_gradients=None):
        """As `tape.gradient`, by way of S times the gradient."""
        if output_gradients is None:
            output_gradients = tf.nest.map_structure(tf.ones_like, target)
        S = tf.convert_to_tensor(self.scale)
        scaled = tf.nest.map_structure(lambda g: S * g, output_gradients)
        found = tape.gradient(target, sources, scaled)
        return tf.nest.map_structure(lambda g: None if g is None else tf.convert_to_tensor(g) / S, found)

    def accept(self, values: list[tf.Tensor]) -> tf.Tensor:
        """Whether the step that makes `values`, equal on all replicas, is to be taken: bool. Moves S.

        At S = 1 it is taken whatever it makes: what is not finite then is not the scale's doing, and must
        stop the run.
        """
        taken = tf.math.is_finite(tf.linalg.global_norm(values)) | (self.scale <= 1)
        one = tf.cast(taken, tf.int64)
        good = one * (self.good_steps + 1)
        grows = good == GOOD_STEPS
        S = self.scale * tf.where(taken, tf.where(grows, 2.0, 1.0), 0.5)
        replicas.assign(
            [self.scale, self.good_steps, self.skipped],
            [S, tf.where(grows, tf.zeros_like(good), good), self.skipped + 1 - one],
        )
        return taken


class Step:
    """One step of some networks: their gradients, and their updates.

    Without a loss scale a tape's own gradient, and updates take place at once. With one all of them take
    place at the end, or none.

    Attributes:
      gradient: (tape, target, sources, output_gradients=None) -> gradients, as `tf.GradientTape.gradient`.
    """

    def __init__(self, loss_scale: LossScale | None = None):
        self._loss_scale = loss_scale
        self._updates: list[tuple[keras.optimizers.Optimizer, Update]] = []
        self.gradient: Callable[..., Any] = loss_scale.gradient if loss_scale else tf.GradientTape.gradient

    def apply(self, optimizer: keras.optimizers.Optimizer, gradients) -> None:
        """`update_rules.apply`, of gradients summed over replicas."""
        if self._loss_scale is None:
            update_rules.apply(optimizer, gradients)
        else:
            W, state = update_rules.current(optimizer)
            self.commit(optimizer, update_rules.advance(optimizer, W, gradients, state))

    def commit(self, optimizer: keras.optimizers.Optimizer, update: Update) -> None:
        """`update_rules.commit`."""
        if self._loss_scale is None:
            update_rules.commit(optimizer, update)
        else:
            self._updates.append((optimizer, update))

    def end(self, scalars: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Makes the updates real, or none if one is not finite: `scalars`, of gradients, are then 0."""
        if self._loss_scale is None:
            return scalars
        made = [v for v in tf.nest.flatten([u for _, u in self._updates]) if v.dtype.is_floating]
        taken = self._loss_scale.accept(made)
        for optimizer, update in self._updates:
            before = update_rules.current(optimizer)
            kept = tf.nest.map_structure(lambda new, old: tf.where(taken, new, old), update, before)
            update_rules.commit(optimizer, kept)
        return {name: tf.where(taken, value, 0.0) for name, value in scalars.items()}
