"""How exact Eqn 3's derivative is, measured on a detector and a batch."""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan import progress
from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import unroll, update_rules

# In pixels of [-1, 1]. A large step meets a kink, a small one drowns in rounding: the best of them counts.
STEPS = (1e-6, 1e-7, 1e-8)
# Equal neighbours, as in a flat background, lie on the kink of a max pooling, where no derivative is right.
NOISE = 1e-3
WARM_UP = 2  # steps, so that the optimizer's moments are not 0


class Streams(NamedTuple):
    """Images and boxes as `unroll.unrolled_step` takes them."""

    y: Labelled
    synthetic: Labelled
    y2: Labelled
    later: tuple[Labelled, ...]

    def cast(self, dtype: tf.DType) -> Streams:
        """The same with images in `dtype`."""
        y, synthetic, y2, *later = (
            one._replace(images=tf.cast(one.images, dtype)) for one in (*self[:3], *self.later)
        )
        return Streams(y, synthetic, y2, tuple(later))


class Check(NamedTuple):
    """The derivative of L~_real to the synthetic images, through `steps` virtual steps."""

    steps: int
    error: float  # to central differences: the largest over directions, relative to the difference
    norm: float  # of the derivative


def warm_up(DET: Detector, optimizer: keras.optimizers.Optimizer, streams: Streams) -> None:
    """Takes WARM_UP steps on y and the synthetic images."""
    for _ in range(WARM_UP):
        look = unroll.unrolled_step(DET, optimizer, streams.y, streams.synthetic, None)
        update_rules.commit(optimizer, look.update)


def check_steps(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    streams: Streams,
    *,
    directions: int,
    seed: int,
    recompute: bool = False,
) -> list[Check]:
    """Checks one virtual step, and all that `streams.later` has images for, in float64.

    The synthetic images are moved by noise of deviation NOISE first.

    Raises:
      LookupError: TensorFlow has no second derivative of an op on the path.
    """
    checks: list[Check] = []
    y, synthetic, y2, later = streams
    random = np.random.default_rng(seed)
    x = synthetic.images + NOISE * random.normal(size=synthetic.images.shape)
    draws = random.normal(size=(directions, *x.shape))
    for extra in progress.bar([(), later] if later else [()], desc="checking", unit="number of steps"):

        @tf.function(autograph=False)
        def look(images, extra=extra):
            there = synthetic._replace(images=images)
            found = unroll.unrolled_step(DET, optimizer, y, there, y2, extra, recompute)
            return found.L_real_unrolled, found.d_L_real_unrolled

        # Without what only the derivative needs (decision 0075).
        value = tf.function(lambda images, look=look: look(images)[0], autograph=False)
        derivative = look(x)[1]
        worst = max(_error(value, x, derivative, _uphill(derivative, draw)) for draw in draws)
        checks.append(Check(1 + len(extra), worst, float(tf.norm(derivative))))
    return checks


def check_precision(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    rounded: Detector,
    rounded_optimizer: keras.optimizers.Optimizer,
    streams: Streams,
) -> tuple[float, float]:
    """Compares dL~_real/dx_syn of `rounded`, which computes in bfloat16, with DET's in float32.

    Returns the relative error and the cosine. `rounded` and its optimizer take the weights and the state of
    DET and `optimizer`. `streams`: float32.
    """
    for w, value in zip(rounded.weights, DET.weights, strict=True):
        w.assign(value)
    for variable, value in zip(rounded_optimizer.variables, optimizer.variables, strict=True):
        variable.assign(value)

    @tf.function(autograph=False)
    def look(which, its):
        return unroll.unrolled_step(which, its, *streams[:3]).d_L_real_unrolled

    expected, found = look(DET, optimizer), look(rounded, rounded_optimizer)
    product = tf.norm(found) * tf.norm(expected)
    cosine = tf.math.divide_no_nan(tf.reduce_sum(found * expected), product)
    return float(tf.norm(found - expected) / tf.norm(expected)), float(cosine)


def _uphill(derivative, draw):
    """A direction of the sizes of `draw` in which nothing cancels, so that rounding stays small.

    Where the derivative is 0 it goes as drawn: a 0 may be what is wrong.
    """
    return tf.where(derivative == 0, draw, tf.sign(derivative) * np.abs(draw))


def _error(value, x, derivative, v) -> float:
    """Of <derivative, v> to (value(x + h v) - value(x - h v)) / 2h, with the h of STEPS that fits best."""
    central = [float(value(x + h * v) - value(x - h * v)) / (2 * h) for h in STEPS]
    found = float(tf.reduce_sum(derivative * v))
    return min(abs(found - c) / max(abs(c), 1e-30) for c in central)
