"""Eqn 3: the detector's loss on real images after one update, differentiated with respect to x_syn.

    g       = d/dW [ L_real(W; y) + L_syn(W; x_syn) ]                                     (Eqn 1 and 2)
    W', s'  = U(W, s, g)          the update rule U of DET's optimizer, whose state is s
    L~_real = L_real(W'; y2)                                                               (Eqn 3)

`unrolled_step` returns dL_syn/dx_syn and dL~_real/dx_syn; one ordinary backward pass from there gives the
gradient with respect to G_X's weights. dL~_real/dx_syn is exact: an outer tape differentiates through U and
through the gradient g, which an inner tape computes. With K updates, each on its own real images, L~_real is
the loss after update K, differentiated through all K. Only update 1 is applied to DET.

Cost for K = 1 without `recompute`, counted in forward passes of one batch (a backward pass counts 2): an
ordinary update on real and synthetic images costs 6. Here L_real and L_syn with their gradients cost 6 as
well and L~_real costs 3. The product of the mixed second derivative and the vector dL~_real/dW' costs 4: 2
for products with the derivatives of the layers' weight gradients, 2 to pass them on. (6 + 3 + 4) / 6 = 2.17.
docs/unroll.md shows how to use this module without this project's detectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import keras
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.training import replicas, update_rules
from tf_detectorgan.training.update_rules import Update

if TYPE_CHECKING:  # this module must not import the detectors at run time
    from tf_detectorgan.models.detectors.detector import Detector


class UnrolledStep(NamedTuple):
    """Losses (this replica's shares, scalars) and their gradients with respect to x_syn [N, H, W, C]."""

    L_real: tf.Tensor
    L_syn: tf.Tensor
    L_real_unrolled: tf.Tensor | None  # L~_real
    d_L_syn: tf.Tensor
    d_L_real_unrolled: tf.Tensor | None
    update: Update  # W' and s' after the first update


def unrolled_step(
    DET: Detector,
    optimizer: keras.optimizers.Optimizer,
    y: Labelled,
    synthetic: Labelled,
    y2: Labelled | None,
    later: Sequence[Labelled] = (),
    recompute: bool = False,
) -> UnrolledStep:
    """Returns the losses, their gradients with respect to x_syn, and DET's first update; assigns nothing.

    Args:
      DET: the detector with its current weights W.
      optimizer: DET's optimizer, built on DET's weights in their order. The update rule uses its
        complete state and all of its options.
      y: real labelled images.
      synthetic: x_syn with its boxes.
      y2: real labelled images for L~_real. If None, Eqn 3 is left out, and both fields of L~_real are None.
      later: real labelled images of updates 2 to K, one `Labelled` each; ignored if y2 is None.
      recompute: the activations of the synthetic forward passes are not stored for the outer tape, but
        recomputed. This takes less memory and more time.

    Raises:
      ValueError: the optimizer is not built on DET's weights, or has no update rule.
      RuntimeError: L_real does not depend on one of the weights, or L~_real does not depend on x_syn.
    """
    update_rules.require_built_on(optimizer, DET.weights)
    x_syn, names = synthetic.images, [v.path for v in DET.network.trainable_variables]
    W, synthetic_loss = [tf.convert_to_tensor(w) for w in DET.weights], _loss_on(DET, synthetic)
    synthetic_pass = _recomputed if recompute else _loss_and_gradients
    update, steps = Update(W, update_rules.current_state(optimizer)), list[UnrolledStep]()
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(x_syn)
        for labelled in (y, *later) if y2 is not None else (y,):
            L_real, g_real, _ = _loss_and_gradients(_loss_on(DET, labelled), update.W, labelled.images)
            replicas.require_gradients(g_real, names, "L_real")
            L_syn, g_syn, d_L_syn = synthetic_pass(synthetic_loss, update.W, x_syn)
            # Inside the outer tape: the losses of other replicas depend on this x_syn through the sum.
            g = replicas.total([a + b for a, b in zip(g_real, g_syn, strict=True)])
            update = update_rules.advance(optimizer, update.W, g, update.state)
            steps.append(UnrolledStep(L_real, L_syn, None, d_L_syn, None, update))
        if y2 is None:
            return steps[0]
        L_real_unrolled = _loss_on(DET, y2)(update.W, y2.images)
    d_L_real_unrolled = _dense(outer.gradient(L_real_unrolled, x_syn))
    replicas.require_gradients([d_L_real_unrolled], ["the synthetic images"], "L~_real (Eqn 3)")
    return steps[0]._replace(L_real_unrolled=L_real_unrolled, d_L_real_unrolled=d_L_real_unrolled)


def _loss_on(DET: Detector, labelled: Labelled) -> Callable:
    """Returns (W, images) -> L_d with the boxes of `labelled`, over the positive anchors of all replicas."""
    targets = DET.targets(labelled)
    normalizer = tf.maximum(replicas.total(DET.positives(targets)), 1.0)
    return lambda W, images: DET.loss(W, images, targets, normalizer)


def _loss_and_gradients(loss: Callable, W, images):
    """Returns L_d, dL_d/dW and dL_d/d(images), computed in one backward pass."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([*W, images])
        L_d = loss(W, images)
    *g, d_images = [_dense(d) for d in tape.gradient(L_d, [*W, images])]
    return L_d, g, d_images


def _dense(gradient):
    """Returns `gradient` as a tensor: the gradient of a gather is a tf.IndexedSlices."""
    return None if gradient is None else tf.convert_to_tensor(gradient)


def _recomputed(loss: Callable, W, images):
    """As `_loss_and_gradients`, but an outer tape stores only the inputs and recomputes the activations.

    Only dL_d/dW can be differentiated: gradients that arrive at L_d and dL_d/d(images) are ignored.
    `tf.recompute_grad` stops the recording of the inner tape, so it cannot be used (decision 0073).
    """

    @tf.custom_gradient
    def forward(images, *W):
        def backward(_, __, *upstream, variables=()):
            with tf.control_dependencies(upstream):  # else the graph optimizer reuses the first computation
                inputs = [tf.identity(v) for v in (images, *W)]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(inputs)
                _, g, _ = _loss_and_gradients(loss, inputs[1:], inputs[0])
            gradients = tape.gradient(g, inputs, upstream)
            # `variables` are the weights of frozen layers, which the loss reads. Their gradient is None.
            return (gradients, [None] * len(variables)) if variables else gradients

        L_d, g, d_images = _loss_and_gradients(
            loss, [tf.stop_gradient(w) for w in W], tf.stop_gradient(images)
        )
        return (L_d, d_images, *g), backward

    L_d, d_images, *g = forward(images, *W)
    return L_d, g, d_images
