"""How good the modes of Eqn 3 are, measured on a detector and a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan import progress
from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import unroll
from tf_detectorgan.training.loss_scale import LossScale, Step

# In pixels of [-1, 1]. A large step meets a kink, a small one drowns in rounding: the best of them counts.
STEPS = (1e-6, 1e-7, 1e-8)
# Equal neighbours, as in a flat background, lie on the kink of a max pooling, where no derivative is right.
NOISE = 1e-3


class Check(NamedTuple):
    """A mode's derivative of L~_real to the synthetic images against central differences."""

    mode: str
    error: float  # the largest over directions, relative to the difference
    cosine: float  # to the derivative of "exact"; 0 where one of the two is 0 everywhere


def cosine(
    DET: Detector, optimizer: keras.optimizers.Optimizer, y: Labelled, synthetic: Labelled, y2: Labelled
) -> float:
    """Of dL~_real/dx_syn by finite difference to the exact one. Arguments as of `lookahead`."""
    a, b = (
        tf.convert_to_tensor(unroll.lookahead(DET, optimizer, y, synthetic, y2, mode=mode).d_L_real_ahead)
        for mode in ("exact", "finite_difference")
    )
    return _cosine(a, b)


def check_modes(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    y: Labelled,
    synthetic: Labelled,
    y2: Labelled,
    later: Sequence[Labelled],
    *,
    directions: int,
    seed: int,
    recompute: bool = False,
) -> list[Check]:
    """Every mode in float64; k_steps with one step more than `later` has. The others as of `lookahead`.

    The synthetic images are moved by noise of deviation NOISE first.

    Raises:
      LookupError: TensorFlow has no second derivative of an op on the path.
    """
    checks: list[Check] = []
    values: dict[int, Callable] = {}
    exact = None
    random = np.random.default_rng(seed)
    x = synthetic.images + NOISE * random.normal(size=synthetic.images.shape)
    draws = random.normal(size=(directions, *x.shape))
    for mode in progress.bar(unroll.MODES, desc="checking", unit="mode"):
        options = {"mode": mode, "later": later if mode == "k_steps" else (), "recompute": recompute}

        @tf.function(autograph=False)
        def look(images, options=options):
            found = unroll.lookahead(DET, optimizer, y, synthetic._replace(images=images), y2, **options)
            return found.L_real_ahead, found.d_L_real_ahead

        # Without what only the derivative needs (decision 0114); modes of as many steps have one L~_real.
        value = values.setdefault(
            len(options["later"]), tf.function(lambda images, look=look: look(images)[0], autograph=False)
        )
        derivative = look(x)[1]
        exact = derivative if exact is None else exact
        worst = max(_error(value, x, derivative, _uphill(derivative, draw)) for draw in draws)
        checks.append(Check(mode, worst, _cosine(derivative, exact)))
    return checks


def check_precision(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    rounded: Detector,
    rounded_optimizer: keras.optimizers.Optimizer,
    y: Labelled,
    synthetic: Labelled,
    y2: Labelled,
    loss_scale: LossScale | None,
) -> Check:
    """`exact` of `rounded`, which computes in fewer bits, against DET's in float32: dL~_real/dx_syn.

    Args:
      DET, optimizer: whose weights and state `rounded` and its optimizer are given.
      y, synthetic, y2: as of `lookahead`, float32.
      loss_scale: of `rounded`; halved until the derivative is finite.
    """
    for w, value in zip(rounded.weights, DET.weights, strict=True):
        w.assign(value)
    for variable, value in zip(rounded_optimizer.variables, optimizer.variables, strict=True):
        variable.assign(value)

    @tf.function(autograph=False)
    def look(which, its, loss_scale):
        gradient = Step(loss_scale).gradient
        return unroll.lookahead(which, its, y, synthetic, y2, gradient=gradient).d_L_real_ahead

    expected, found = look(DET, optimizer, None), look(rounded, rounded_optimizer, loss_scale)
    while loss_scale and not loss_scale.accept([found]):
        found = look(rounded, rounded_optimizer, loss_scale)
    return Check("exact", float(tf.norm(found - expected) / tf.norm(expected)), _cosine(found, expected))


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


def _cosine(a, b) -> float:
    return float(tf.math.divide_no_nan(tf.reduce_sum(a * b), tf.norm(a) * tf.norm(b)))
