"""Eqn 3: the detector's loss on real images after one update, differentiated to the synthetic image.

    g       = d/dW [ L_real(W; y) + L_syn(W; x_syn) ]                                     (Eqn 1 and 2)
    W', s'  = U(W, s, g)                      the step that is then really applied
    L~_real = L_real(W'; y2)                                                               (Eqn 3)

`lookahead` returns dL_syn/dx_syn and dL~_real/dx_syn, from which G_X's gradient follows by one ordinary
backward pass. How dL~_real/dx_syn is found is the mode:

    exact               through U and the gradient g, by a tape around a tape.
    k_steps             the same through K steps, each on a fresh draw of real images; the first is applied.
    finite_difference   DARTS (Liu et al. 2019, eqn 7): the mixed second derivative along u = dL~_real/dg is
                        the difference of dL_syn/dx_syn at W + eps u and W - eps u. An approximation.

Cost of `exact`, in forward passes of one image stream (a backward pass to weights and activations counts 2):
an ordinary step on real and synthetic images costs 6. Here the real gradient costs 3 and the synthetic 3
(dL_syn/dx_syn falls out of the same pass); L~_real costs 3; the product of the mixed second derivative with
the resulting vector costs 4: each layer's dW = delta * a depends on delta and on a (2), and both go on to the
layers before (2). (2 x 3 + 3 + 4) / 6 = 2.17 ordinary steps.
docs/unroll.md shows the engine without this project's detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.training import replicas, update_rules
from tf_detectorgan.training.update_rules import Update

if TYPE_CHECKING:  # the engine runs without this project's detectors, and what they import
    from tf_detectorgan.models.detectors.detector import Detector

MODES = ("exact", "k_steps", "finite_difference")
REACH = 0.01  # of the finite difference, in weights' joint norm: DARTS, section 2.3


class Lookahead(NamedTuple):
    """Losses are this replica's shares (scalars); derivatives have x_syn's shape [N, H, W, C]."""

    L_real: tf.Tensor
    L_syn: tf.Tensor
    L_real_ahead: tf.Tensor | None  # L~_real
    d_L_syn: tf.Tensor
    d_L_real_ahead: tf.Tensor | None
    update: Update


def lookahead(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    y: Labelled,
    synthetic: Labelled,
    y2: Labelled | None,
    *,
    later: Sequence[Labelled] = (),
    mode: str = "exact",
    recompute: bool = False,
    gradient: Callable = tf.GradientTape.gradient,
) -> Lookahead:
    """One virtual detector step on y and synthetic images, and its effect on y2. Nothing is assigned.

    Args:
      DET: the detector at its live weights W.
      optimizer: the live one, built on DET's weights in their order; all of its state and options are used.
      y: real labelled images.
      synthetic: G_X(x) with its boxes.
      y2: real labelled images for L~_real; None leaves Eqn 3 out (both its fields are then None).
      later: with "k_steps" the real labelled images of the steps after the first, one a step.
      mode: of MODES.
      recompute: keep no activations of the synthetic passes between the tapes' passes, but run them again.
      gradient: how tapes are asked; `LossScale.gradient` for a DET that computes in float16.

    Raises:
      ValueError: the arguments do not fit together.
      RuntimeError: a loss does not depend on one of the weights, or L~_real not on the synthetic images.
    """
    plain = gradient is tf.GradientTape.gradient
    _require_fit(mode, later, plain)
    update_rules.require_built_on(optimizer, DET.weights)
    x_syn, names = synthetic.images, [v.path for v in DET.network.trainable_variables]
    W, L_syn_of = [tf.convert_to_tensor(w) for w in DET.weights], _loss_on(DET, synthetic)
    kept = _loss_and_gradients if plain else _kept
    synthetic_pass = _recomputed if recompute else kept
    ahead, looks = Update(W, update_rules.live(optimizer)), list[Lookahead]()
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        if mode != "finite_difference":
            outer.watch(x_syn)
        for labelled in (y, *later) if y2 is not None else (y,):
            # The first real gradient depends on nothing that is watched: it is not differentiated again.
            real_pass = kept if looks else _loss_and_gradients
            L_real, g_real, _ = real_pass(_loss_on(DET, labelled), ahead.W, labelled.images, gradient)
            replicas.require_gradients(g_real, names, "L_real")
            L_syn, g_syn, d_L_syn = synthetic_pass(L_syn_of, ahead.W, x_syn, gradient)
            # Inside the tape: another replica's W' depends on this replica's x_syn too.
            g = replicas.total([a + b for a, b in zip(g_real, g_syn, strict=True)])
            if mode == "finite_difference":
                outer.watch(g)
            ahead = update_rules.advance(optimizer, ahead.W, g, ahead.state)
            looks.append(Lookahead(L_real, L_syn, None, d_L_syn, None, ahead))
        if y2 is None:
            return looks[0]
        L_real_ahead = _loss_on(DET, y2)(ahead.W, y2.images)
    if mode == "finite_difference":
        d_L_real_ahead = _difference(L_syn_of, W, replicas.total(gradient(outer, L_real_ahead, g)), x_syn)
    else:
        d_L_real_ahead = _dense(gradient(outer, L_real_ahead, x_syn))
    replicas.require_gradients([d_L_real_ahead], ["the synthetic images"], "L~_real (Eqn 3)")
    return looks[0]._replace(L_real_ahead=L_real_ahead, d_L_real_ahead=d_L_real_ahead)


def _require_fit(mode: str, later: Sequence, plain: bool) -> None:
    if mode not in MODES or (mode == "k_steps") != bool(later):
        raise ValueError(f"{mode=} is none of {MODES}, or does not fit {len(later)} later steps")
    if mode == "finite_difference" and not plain:
        raise ValueError(
            f"{mode=} is lost in the rounding of a network that needs a loss scale; use mode='exact'"
        )


def _loss_on(DET: Detector, labelled: Labelled) -> Callable:
    """(W, images) -> L_d with the boxes of `labelled`, divided by the positives of all replicas."""
    targets = DET.targets(labelled)
    normalizer = tf.maximum(replicas.total(DET.positives(targets)), 1.0)
    return lambda W, images: DET.loss(W, images, targets, normalizer)


def _loss_and_gradients(loss: Callable, W, images, gradient: Callable):
    """L_d, dL_d/dW and dL_d/d(images), all from one backward pass."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*W, images])
        L_d = loss(W, images)
    *g, d_images = [_dense(d) for d in gradient(tape, L_d, [*W, images])]
    return L_d, g, d_images


def _dense(gradient):
    """A gradient as a tensor: that of a gathered one comes in slices."""
    return None if gradient is None else tf.convert_to_tensor(gradient)


def _kept(loss: Callable, W, images, gradient: Callable):
    """`_loss_and_gradients`, whose dL_d/dW an outer tape differentiates by `_along`."""

    @tf.custom_gradient
    def once(images, *W):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([images, *W])
            L_d, g, d_images = _loss_and_gradients(loss, W, images, gradient)

        def derivative(_, __, *upstream, variables=()):
            found = _along(upstream, tape, g, [images, *W], gradient)
            return (found, [None] * len(variables)) if variables else found

        return (L_d, d_images, *g), derivative

    L_d, d_images, *g = once(images, *W)
    return L_d, g, d_images


def _along(upstream, tape: tf.GradientTape, g, sources, gradient: Callable):
    """d/d(sources) <g, upstream>, of which a float16 pass is told a direction of norm 1.

    It is linear in `upstream`, which holds a learning rate and would vanish there: scaling the losses cancels
    before W' and does not help.
    """
    if gradient is tf.GradientTape.gradient:
        return tape.gradient(g, sources, upstream)
    norm = tf.linalg.global_norm(upstream)
    found = gradient(tape, g, sources, [tf.math.divide_no_nan(u, norm) for u in upstream])
    return [None if d is None else norm * d for d in found]


def _recomputed(loss: Callable, W, images, gradient: Callable):
    """`_loss_and_gradients`, of which an outer tape remembers the inputs only: it runs again when needed.

    dL_d/dW alone may be differentiated. `tf.recompute_grad` stops the inner tape as well (decision 0074).
    """

    @tf.custom_gradient
    def once(images, *W):
        def derivative(_, __, *upstream, variables=()):
            with tf.control_dependencies(upstream):  # else the graph's optimiser makes one run of the two
                again = [tf.identity(v) for v in (images, *W)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(again)
                _, g, _ = _loss_and_gradients(loss, again[1:], again[0], gradient)
            found = _along(upstream, tape, g, again, gradient)
            # TensorFlow asks for the derivative to what it saw read as well: weights of frozen layers.
            return (found, [None] * len(variables)) if variables else found

        L_d, g, d_images = _loss_and_gradients(
            loss, [tf.stop_gradient(w) for w in W], tf.stop_gradient(images), gradient
        )
        return (L_d, d_images, *g), derivative

    L_d, d_images, *g = once(images, *W)
    return L_d, g, d_images


def _difference(loss: Callable, W, u, images):
    """d/d(images) <u, dL_d/dW> by a central difference along u, of `REACH` in the weights' joint norm."""
    eps = REACH / tf.maximum(tf.linalg.global_norm(u), 1e-12)

    def slope(sign: float):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(images)
            L_d = loss([w + sign * eps * d for w, d in zip(W, u, strict=True)], images)
        return _dense(tape.gradient(L_d, images))

    return (slope(1.0) - slope(-1.0)) / (2 * eps)
