"""Eqn 3: the detector's loss on real images after one update, differentiated to the synthetic image.

    g       = d/dW [ L_real(W; y) + L_syn(W; x_syn) ]                                     (Eqn 1 and 2)
    W', m'  = U(W, m, g)                      the step that is then really applied
    L~_real = L_real(W'; y2)                                                               (Eqn 3)

`lookahead` returns dL_syn/dx_syn and dL~_real/dx_syn, from which G_X's gradient follows by one ordinary
backward pass.

Cost, in forward passes of one image stream (a backward pass to weights and activations counts 2): an ordinary
step on real and synthetic images costs 6. Here the real gradient costs 3 and the synthetic 3 (dL_syn/dx_syn
falls out of the same pass); L~_real costs 3; the product of the mixed second derivative with the resulting
vector re-runs the synthetic forward and backward pass in reverse, 6 less what is shared. 6 + 3 + about 4.5
over 6 is 2.2 ordinary steps.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.retinanet import RetinaNet, positives
from tf_detectorgan.training import replicas


class Update(NamedTuple):
    """The detector after a step: weights W' and momenta m', in the order of `DET.weights`."""

    W: list[tf.Tensor]
    momenta: list[tf.Tensor]


class Lookahead(NamedTuple):
    """Losses are this replica's shares (scalars); derivatives have x_syn's shape [N, H, W, C]."""

    L_real: tf.Tensor
    L_syn: tf.Tensor
    L_real_ahead: tf.Tensor | None  # L~_real
    d_L_syn: tf.Tensor
    d_L_real_ahead: tf.Tensor | None
    update: Update


def sgd(W, momenta, gradients, *, learning_rate, momentum: float, global_clipnorm: float | None) -> Update:
    """Keras's SGD as a differentiable function: m' = momentum m - lr g, W' = W + m'.

    Args:
      W, momenta, gradients: lists of tensors of equal shapes; `momenta` is empty when momentum is 0.
      learning_rate: scalar.
      global_clipnorm: the gradients' joint norm is scaled down to this first; None for no clipping.
    """
    if global_clipnorm:
        gradients, _ = tf.clip_by_global_norm(gradients, global_clipnorm)
    steps = [-tf.cast(learning_rate, g.dtype) * g for g in gradients]
    if momentum:
        steps = [momentum * m + step for m, step in zip(momenta, steps, strict=True)]
        return Update([w + step for w, step in zip(W, steps, strict=True)], steps)
    return Update([w + step for w, step in zip(W, steps, strict=True)], [])


def lookahead(
    DET: RetinaNet,
    optimizer: keras.optimizers.SGD,
    y: Labelled,
    synthetic: Labelled,
    y2: Labelled | None,
) -> Lookahead:
    """One virtual detector step on y and synthetic images, and its effect on y2. Nothing is assigned.

    Args:
      DET: the detector at its live weights W.
      optimizer: the live optimizer, whose momenta, learning rate and clipping the virtual step uses.
      y: real labelled images.
      synthetic: G_X(x) with its boxes.
      y2: real labelled images for L~_real; None leaves Eqn 3 out (both its fields are then None).
    """
    W = [tf.convert_to_tensor(w) for w in DET.weights]
    names = [v.path for v in DET.network.trainable_variables]
    x_syn = synthetic.images

    # The real gradient does not depend on x_syn: outside the outer tape it is not differentiated again.
    L_real, g_real, _ = _loss_and_gradients(DET, W, y, of_images=False)
    replicas.require_gradients(g_real, names, "L_real")
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(x_syn)
        L_syn, g_syn, d_L_syn = _loss_and_gradients(DET, W, synthetic, of_images=True)
        # Inside the tape: another replica's W' depends on this replica's x_syn too.
        g = replicas.total([a + b for a, b in zip(g_real, g_syn, strict=True)])
        update = sgd(
            W,
            [m.value for m in optimizer.momentums],
            g,
            learning_rate=optimizer.learning_rate,
            momentum=optimizer.momentum,
            global_clipnorm=optimizer.global_clipnorm,
        )
        if y2 is not None:
            L_real_ahead = _loss(DET, update.W, y2.images, y2)
    if y2 is None:
        return Lookahead(L_real, L_syn, None, d_L_syn, None, update)
    d_L_real_ahead = outer.gradient(L_real_ahead, x_syn)
    replicas.require_gradients([d_L_real_ahead], ["the synthetic images"], "L~_real (Eqn 3)")
    return Lookahead(L_real, L_syn, L_real_ahead, d_L_syn, d_L_real_ahead, update)


def commit(DET: RetinaNet, optimizer: keras.optimizers.SGD, update: Update) -> None:
    """Makes the virtual step real: W <- W', m <- m', one more iteration."""
    replicas.assign(DET.weights, update.W)
    if update.momenta:
        replicas.assign([m.value for m in optimizer.momentums], update.momenta)
    replicas.assign([optimizer.iterations.value], [optimizer.iterations.value + 1])


def _loss(DET: RetinaNet, W, images, labelled: Labelled) -> tf.Tensor:
    """L_d of `images` with the boxes of `labelled`, divided by the positive anchors of all replicas."""
    targets = DET.targets(labelled)
    return DET.loss(W, images, targets, tf.maximum(replicas.total(positives(targets)), 1.0))


def _loss_and_gradients(DET: RetinaNet, W, labelled: Labelled, of_images: bool):
    """L_d, dL_d/dW and, if asked, dL_d/d(images): all from one backward pass."""
    sources = [*W, labelled.images] if of_images else W
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(sources)
        loss = _loss(DET, W, labelled.images, labelled)
    gradients = tape.gradient(loss, sources)
    return loss, gradients[: len(W)], gradients[-1] if of_images else None
