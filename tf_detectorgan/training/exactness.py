"""Measures the error of Eqn 3's derivative for a detector and a batch."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan import progress
from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import unroll, update_rules

# Steps h of the central differences, in the images' units [-1, 1]. Large steps cross kinks, for small ones
# rounding errors dominate: the step with the smallest error counts.
STEPS = (1e-6, 1e-7, 1e-8)
# Equal neighbours, as in a flat background, are at the kink of a max pooling, where there is no derivative.
NOISE = 1e-3
WARM_UP = 2  # steps before the check, so that the optimizer's moments are not 0


class Streams(NamedTuple):
    """The images and boxes that are arguments of `unroll.unrolled_step`."""

    y: Labelled
    synthetic: Labelled
    y2: Labelled
    later: tuple[Labelled, ...]

    def cast(self, dtype: tf.DType) -> Streams:
        """Returns the streams with images in `dtype`."""
        y, synthetic, y2, *later = (
            one._replace(images=tf.cast(one.images, dtype)) for one in (*self[:3], *self.later)
        )
        return Streams(y, synthetic, y2, tuple(later))


class Check(NamedTuple):
    """The check of the derivative of L~_real with respect to x_syn, through `steps` unrolled steps."""

    steps: int
    error: float  # from central differences, relative to them: the largest over directions
    norm: float  # norm of the derivative


def warm_up(DET: Detector, optimizer: keras.optimizers.Optimizer, streams: Streams) -> None:
    """Trains DET for WARM_UP steps on y and the synthetic images."""
    for _ in range(WARM_UP):
        unrolled = unroll.unrolled_step(DET, optimizer, streams.y, streams.synthetic, None)
        update_rules.commit(optimizer, unrolled.update)


def check_steps(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    streams: Streams,
    *,
    directions: int,
    seed: int,
    recompute: bool = False,
) -> list[Check]:
    """Returns the checks of one unrolled step and, if `streams.later` has images, of all steps; in float64.

    Noise with standard deviation NOISE is added to the synthetic images first.

    Raises:
      LookupError: TensorFlow has no second derivative of an op that the loss depends on.
    """
    checks: list[Check] = []
    y, synthetic, y2, later = streams
    rng = np.random.default_rng(seed)
    x = synthetic.images + NOISE * rng.normal(size=synthetic.images.shape)
    draws = rng.normal(size=(directions, *x.shape))
    for extra in progress.bar([(), later] if later else [()], desc="checking", unit="number of steps"):

        @tf.function(autograph=False)
        def loss_and_derivative(images, extra=extra):
            moved = synthetic._replace(images=images)
            unrolled = unroll.unrolled_step(DET, optimizer, y, moved, y2, extra, recompute)
            return unrolled.L_real_unrolled, unrolled.d_L_real_unrolled

        # A graph of its own, without the ops that only the derivative needs (decision 0075).
        value = tf.function(lambda images, both=loss_and_derivative: both(images)[0], autograph=False)
        derivative = loss_and_derivative(x)[1]
        worst = max(_error(value, x, derivative, _direction(derivative, draw)) for draw in draws)
        checks.append(Check(1 + len(extra), worst, float(tf.norm(derivative))))
    return checks


def check_precision(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    rounded: Detector,
    rounded_optimizer: keras.optimizers.Optimizer,
    streams: Streams,
) -> tuple[float, float]:
    """Compares dL~_real/dx_syn of `rounded`, which computes in bfloat16, with that of DET in float32.

    Returns the relative error and the cosine. The weights of DET and the state of `optimizer` are copied to
    `rounded` and its optimizer. `streams`: float32.
    """
    for w, value in zip(rounded.weights, DET.weights, strict=True):
        w.assign(value)
    for variable, value in zip(rounded_optimizer.variables, optimizer.variables, strict=True):
        variable.assign(value)

    @tf.function(autograph=False)
    def derivative(detector, optimizer):
        return unroll.unrolled_step(detector, optimizer, *streams[:3]).d_L_real_unrolled

    expected, found = derivative(DET, optimizer), derivative(rounded, rounded_optimizer)
    product = tf.norm(found) * tf.norm(expected)
    cosine = tf.math.divide_no_nan(tf.reduce_sum(found * expected), product)
    return float(tf.norm(found - expected) / tf.norm(expected)), float(cosine)


def _direction(derivative, draw):
    """Returns |draw| with the signs of `derivative`: no terms of the product cancel, so rounding stays small.

    Where the derivative is 0, `draw` is used as it is, because the 0 may be an error.
    """
    return tf.where(derivative == 0, draw, tf.sign(derivative) * np.abs(draw))


def _error(value, x, derivative, v) -> float:
    """Returns the relative error of <derivative, v> from central differences, with the best h of STEPS."""
    central = [float(value(x + h * v) - value(x - h * v)) / (2 * h) for h in STEPS]
    exact = float(tf.reduce_sum(derivative * v))
    return min(abs(exact - c) / max(abs(c), 1e-30) for c in central)
