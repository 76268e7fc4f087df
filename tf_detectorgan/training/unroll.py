"""Eqn 3: the detector's loss on real images after one update, differentiated to the synthetic image.

    g       = d/dW [ L_real(W; y) + L_syn(W; x_syn) ]                                     (Eqn 1 and 2)
    W', s'  = U(W, s, g)                      the step that is then really applied
    L~_real = L_real(W'; y2)                                                               (Eqn 3)

`lookahead` returns dL_syn/dx_syn and dL~_real/dx_syn, from which G_X's gradient follows by one ordinary
backward pass. dL~_real/dx_syn is exact: a tape around a tape, through U and the gradient g. With K steps the
same goes through all of them, each on a fresh draw of real images; the first step is the one applied.

Cost of one step, in forward passes of one image stream (a backward pass to weights and activations counts 2):
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
    later: Sequence[Labelled] = (),
    recompute: bool = False,
) -> Lookahead:
    """One virtual detector step on y and synthetic images, and its effect on y2. Nothing is assigned.

    Args:
      DET: the detector at its live weights W.
      optimizer: the live one, built on DET's weights in their order; all of its state and options are used.
      y: real labelled images.
      synthetic: G_X(x) with its boxes.
      y2: real labelled images for L~_real; None leaves Eqn 3 out (both its fields are then None).
      later: real labelled images of the virtual steps after the first, one a step: K - 1 of them.
      recompute: keep no activations of the synthetic passes between the tapes' passes, but run them again.

    Raises:
      ValueError: the optimizer is not built on DET's weights, or has no update rule.
      RuntimeError: a loss does not depend on one of the weights, or L~_real not on the synthetic images.
    """
    update_rules.require_built_on(optimizer, DET.weights)
    x_syn, names = synthetic.images, [v.path for v in DET.network.trainable_variables]
    W, L_syn_of = [tf.convert_to_tensor(w) for w in DET.weights], _loss_on(DET, synthetic)
    synthetic_pass = _recomputed if recompute else _loss_and_gradients
    ahead, looks = Update(W, update_rules.live(optimizer)), list[Lookahead]()
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(x_syn)
        for labelled in (y, *later) if y2 is not None else (y,):
            L_real, g_real, _ = _loss_and_gradients(_loss_on(DET, labelled), ahead.W, labelled.images)
            replicas.require_gradients(g_real, names, "L_real")
            L_syn, g_syn, d_L_syn = synthetic_pass(L_syn_of, ahead.W, x_syn)
            # Inside the tape: another replica's W' depends on this replica's x_syn too.
            g = replicas.total([a + b for a, b in zip(g_real, g_syn, strict=True)])
            ahead = update_rules.advance(optimizer, ahead.W, g, ahead.state)
            looks.append(Lookahead(L_real, L_syn, None, d_L_syn, None, ahead))
        if y2 is None:
            return looks[0]
        L_real_ahead = _loss_on(DET, y2)(ahead.W, y2.images)
    d_L_real_ahead = _dense(outer.gradient(L_real_ahead, x_syn))
    replicas.require_gradients([d_L_real_ahead], ["the synthetic images"], "L~_real (Eqn 3)")
    return looks[0]._replace(L_real_ahead=L_real_ahead, d_L_real_ahead=d_L_real_ahead)


def _loss_on(DET: Detector, labelled: Labelled) -> Callable:
    """(W, images) -> L_d with the boxes of `labelled`, divided by the positives of all replicas."""
    targets = DET.targets(labelled)
    normalizer = tf.maximum(replicas.total(DET.positives(targets)), 1.0)
    return lambda W, images: DET.loss(W, images, targets, normalizer)


def _loss_and_gradients(loss: Callable, W, images):
    """L_d, dL_d/dW and dL_d/d(images), all from one backward pass."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*W, images])
        L_d = loss(W, images)
    *g, d_images = [_dense(d) for d in tape.gradient(L_d, [*W, images])]
    return L_d, g, d_images


def _dense(gradient):
    """A gradient as a tensor: that of a gathered one comes in slices."""
    return None if gradient is None else tf.convert_to_tensor(gradient)


def _recomputed(loss: Callable, W, images):
    """`_loss_and_gradients`, of which an outer tape remembers the inputs only: it runs again when needed.

    dL_d/dW alone may be differentiated. `tf.recompute_grad` stops the inner tape as well (decision 0073).
    """

    @tf.custom_gradient
    def once(images, *W):
        def derivative(_, __, *upstream, variables=()):
            with tf.control_dependencies(upstream):  # else the graph's optimiser makes one run of the two
                again = [tf.identity(v) for v in (images, *W)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(again)
                _, g, _ = _loss_and_gradients(loss, again[1:], again[0])
            found = tape.gradient(g, again, upstream)
            # TensorFlow asks for the derivative to what it saw read as well: weights of frozen layers.
            return (found, [None] * len(variables)) if variables else found

        L_d, g, d_images = _loss_and_gradients(
            loss, [tf.stop_gradient(w) for w in W], tf.stop_gradient(images)
        )
        return (L_d, d_images, *g), derivative

    L_d, d_images, *g = once(images, *W)
    return L_d, g, d_images
