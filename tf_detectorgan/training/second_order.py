"""What a detector is made of, as far as second derivatives go: read off its graph, op by op."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework.ops import get_gradient_function  # nothing public tells

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training.graphs import inner_graphs

# What to use instead; an op is looked up by the beginning of its type.
INSTEAD = {
    # Keras's norms stop the derivative at the mean.
    "StopGradient": "models.layers.ExactGroupNormalization, BatchNormalization(trainable=False), or no norm",
    "MaxPool": "strides of 2, or padding='valid'",
    "Resize": "UpSampling2D (interpolation='nearest')",
    "CropAndResize": "resampling.crop, or a crop by slicing",
}


class Obstacle(NamedTuple):
    """An op on the way from images and weights to the gradient, whose derivative is not the true one."""

    op: str  # layer/.../op, by way of the ops that run it
    kind: str
    instead: str


def obstacles(DET: Detector, y: Labelled) -> list[Obstacle]:
    """Ops of the network, of the loss L_d on y and of its gradient that stop a derivative or have none.

    Whether a `tf.custom_gradient` tells the truth is not looked at: central differences are for that.

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
        for name, op in _between(graph, graph.inputs[: 1 + len(W)])  # behind them: targets
        if _is_obstacle(op)
    ]


def _between(graph, inputs, outer: str = "") -> Iterator:
    """Those that lie between `inputs`, tensors of the graph, and its outputs."""
    below = _reached([tensor.op for tensor in inputs if tensor.dtype.is_floating], _next)
    above = _reached([tensor.op for tensor in graph.outputs if tensor.dtype.is_floating], _previous)
    for op in graph.get_operations():
        if op not in below or op not in above:
            continue
        yield outer + op.name, op
        for inner in inner_graphs(op):
            # From the end: the first input of a branching op chooses the branch, and is not handed to it.
            pairs = zip(reversed(list(op.inputs)), reversed(inner.inputs), strict=False)
            yield from _between(
                inner, [own for given, own in pairs if given.op in below], f"{outer}{op.name}/"
            )


def _is_obstacle(op) -> bool:
    if inner_graphs(op):
        return False
    if op.type in ("StopGradient", "PreventGradient"):
        return True
    if op.type == "MaxPool":  # where its shape does not change: in graphs the second derivative is 0
        return op.get_attr("padding") == b"SAME" and set(op.get_attr("strides")) == {1}
    try:
        return get_gradient_function(op) is None and bool(op.inputs)
    except LookupError:
        return True


def _next(op):
    return [after for tensor in op.outputs if tensor.dtype.is_floating for after in tensor.consumers()]


def _previous(op):
    return [tensor.op for tensor in op.inputs if tensor.dtype.is_floating]


def _reached(ops, neighbours) -> set:
    seen, waiting = set(ops), list(ops)
    while waiting:
        for op in neighbours(waiting.pop()):
            if op not in seen:
                seen.add(op)
                waiting.append(op)
    return seen
