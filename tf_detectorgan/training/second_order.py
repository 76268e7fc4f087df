"""Finds the ops in a detector's graph that have no exact second derivative."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework.ops import get_gradient_function  # there is no public function for this

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training.graphs import inner_graphs

# Alternatives, by the beginning of the op's type.
INSTEAD = {
    # Keras's normalisation layers stop the gradient at the mean.
    "StopGradient": "models.layers.ExactGroupNormalization, BatchNormalization(trainable=False), or no norm",
    "MaxPool": "strides of 2, or padding='valid'",
    "Resize": "UpSampling2D (interpolation='nearest')",
    "CropAndResize": "resampling.crop, or a crop by slicing",
}


class Obstacle(NamedTuple):
    """An op between images or weights and the gradient, whose derivative is wrong or missing."""

    op: str  # layer/.../op, with the names of the ops that run its graph
    kind: str
    instead: str


def obstacles(DET: Detector, y: Labelled) -> list[Obstacle]:
    """Returns the ops of the network, the loss L_d on y and its gradient that stop a derivative or have none.

    `tf.custom_gradient`s are not checked; only central differences can show whether they are right.

    Raises:
      LookupError: an op has no first derivative.
    """
    W, targets = [tf.TensorSpec(w.shape, w.dtype) for w in DET.weights], DET.targets(y)

    @tf.function(autograph=False)
    def gradient(images, W):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([images, *W])
            L_d = DET.loss(W, images, targets, tf.constant(1.0))
        return tape.gradient(L_d, W)

    graph = gradient.get_concrete_function(tf.TensorSpec(y.images.shape, W[0].dtype), W).graph
    return [
        Obstacle(name, op.type, next((v for k, v in INSTEAD.items() if op.type.startswith(k)), "another op"))
        for name, op in _between(graph, graph.inputs[: 1 + len(W)])  # the other inputs are targets
        if _is_obstacle(op)
    ]


def _between(graph, inputs, outer: str = "") -> Iterator:
    """Yields (name, op) of the ops between `inputs`, which are tensors of the graph, and its outputs."""
    after_inputs = _reached([tensor.op for tensor in inputs if tensor.dtype.is_floating], _next)
    before_outputs = _reached([tensor.op for tensor in graph.outputs if tensor.dtype.is_floating], _previous)
    for op in graph.get_operations():
        if op not in after_inputs or op not in before_outputs:
            continue
        yield outer + op.name, op
        for inner in inner_graphs(op):
            # From the end: the first input of a branching op selects the branch and is not an input of it.
            pairs = zip(reversed(list(op.inputs)), reversed(inner.inputs), strict=False)
            inner_inputs = [inside for outside, inside in pairs if outside.op in after_inputs]
            yield from _between(inner, inner_inputs, f"{outer}{op.name}/")


def _is_obstacle(op) -> bool:
    if inner_graphs(op):
        return False
    if op.type in ("StopGradient", "PreventGradient"):
        return True
    if op.type == "MaxPool":  # if the shape does not change, its second derivative in graphs is wrongly 0
        return op.get_attr("padding") == b"SAME" and set(op.get_attr("strides")) == {1}
    try:
        return get_gradient_function(op) is None and bool(op.inputs)
    except LookupError:
        return True


def _next(op):
    return [consumer for tensor in op.outputs if tensor.dtype.is_floating for consumer in tensor.consumers()]


def _previous(op):
    return [tensor.op for tensor in op.inputs if tensor.dtype.is_floating]


def _reached(ops, neighbours) -> set:
    found, pending = set(ops), list(ops)
    while pending:
        for op in neighbours(pending.pop()):
            if op not in found:
                found.add(op)
                pending.append(op)
    return found
