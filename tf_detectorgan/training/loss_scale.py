"""Loss scaling for networks in float16, whose gradients must neither vanish nor overflow.

The positive numbers of float16 are 6e-8 to 65504. So the gradients that a tape backpropagates are multiplied
by a scale S, and the results, in float32, are divided by S (Micikevicius et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan.training import replicas, update_rules
from tf_detectorgan.training.update_rules import Update

INITIAL, GOOD_STEPS = 2.0**15, 2000  # as in keras.optimizers.LossScaleOptimizer, whose rule is used


class LossScale(tf.Module):
    """The scale S: halved at a step with gradients that are not finite, doubled after GOOD_STEPS finite ones.

    All networks of a step have the same scale (decision 0120).

    Attributes:
      scale: S, float32 scalar, mirrored.
      good_steps: steps since S changed.
      skipped: total number of steps whose updates were not applied.
    """

    def __init__(self):
        super().__init__(name="loss_scale")
        self.scale = tf.Variable(INITIAL, trainable=False, name="scale")
        self.good_steps = tf.Variable(0, trainable=False, dtype=tf.int64, name="good_steps")
        self.skipped = tf.Variable(0, trainable=False, dtype=tf.int64, name="skipped")

    def scalars(self) -> dict[str, tf.Tensor]:
        """Returns S and the number of skipped steps for the summaries."""
        return {"loss_scale": tf.identity(self.scale), "skipped_steps": tf.identity(self.skipped)}

    def gradient(self, tape: tf.GradientTape, target, sources, output_gradients=None):
        """Returns `tape.gradient`, computed as S times the gradient and divided by S."""
        if output_gradients is None:
            output_gradients = tf.nest.map_structure(tf.ones_like, target)
        S = tf.convert_to_tensor(self.scale)
        scaled = tf.nest.map_structure(lambda g: S * g, output_gradients)
        found = tape.gradient(target, sources, scaled)
        return tf.nest.map_structure(lambda g: None if g is None else tf.convert_to_tensor(g) / S, found)

    def accept(self, values: list[tf.Tensor]) -> tf.Tensor:
        """Returns whether to apply the step whose new values are `values` (equal on all replicas); updates S.

        At S = 1 the step is always applied: a value that is not finite is then not caused by the scale, and
        must stop the run.
        """
        applied = tf.math.is_finite(tf.linalg.global_norm(values)) | (self.scale <= 1)
        one = tf.cast(applied, tf.int64)
        good = one * (self.good_steps + 1)
        grows = good == GOOD_STEPS
        S = self.scale * tf.where(applied, tf.where(grows, 2.0, 1.0), 0.5)
        replicas.assign(
            [self.scale, self.good_steps, self.skipped],
            [S, tf.where(grows, tf.zeros_like(good), good), self.skipped + 1 - one],
        )
        return applied


class Step:
    """One training step: computes gradients and applies updates, with or without a loss scale.

    Without a loss scale, gradients are those of the tape, and updates are applied at once. With a loss scale,
    either all updates are applied at the end, or none.

    Attributes:
      gradient: (tape, target, sources, output_gradients=None) -> gradients, as `tf.GradientTape.gradient`.
    """

    def __init__(self, loss_scale: LossScale | None = None):
        self._loss_scale = loss_scale
        self._updates: list[tuple[keras.optimizers.Optimizer, Update]] = []
        self.gradient: Callable[..., Any] = loss_scale.gradient if loss_scale else tf.GradientTape.gradient

    def apply(self, optimizer: keras.optimizers.Optimizer, gradients) -> None:
        """Applies `update_rules.apply` to gradients that are summed over replicas."""
        if self._loss_scale is None:
            update_rules.apply(optimizer, gradients)
        else:
            W, state = update_rules.current(optimizer)
            self.commit(optimizer, update_rules.advance(optimizer, W, gradients, state))

    def commit(self, optimizer: keras.optimizers.Optimizer, update: Update) -> None:
        """Applies `update_rules.commit`, with a loss scale at the end of the step."""
        if self._loss_scale is None:
            update_rules.commit(optimizer, update)
        else:
            self._updates.append((optimizer, update))

    def end(self, scalars: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Applies all updates, or none if one is not finite; returns `scalars` of gradients, or 0 if none."""
        if self._loss_scale is None:
            return scalars
        values = [v for v in tf.nest.flatten([u for _, u in self._updates]) if v.dtype.is_floating]
        applied = self._loss_scale.accept(values)
        for optimizer, update in self._updates:
            before = update_rules.current(optimizer)
            selected = tf.nest.map_structure(lambda new, old: tf.where(applied, new, old), update, before)
            update_rules.commit(optimizer, selected)
        return {name: tf.where(applied, value, 0.0) for name, value in scalars.items()}
