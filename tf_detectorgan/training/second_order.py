"""What a detector is made of, as far as second derivatives go: read off its graph, op by op."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.framework.ops import get_gradient_function  # nothing public tells

from tf_detectorgan.models.detectors.detector import Detector

# Their derivative jumps, so a gradient is not continuous in the weights. `exact` does not mind.
KINKED = ("LeakyRelu", "MaxPool", "Relu", "Relu6")

# What to use instead; an op is looked up by the beginning of its type.
INSTEAD = {
    # Keras's norms stop the derivative at the mean.
    "StopGradient": "models.layers.ExactGroupNormalization, or a BatchNormalization with trainable=False",
    "ResizeNearest": "UpSampling2D, or a bilinear resize",
    "CropAndResize": "a crop by slicing, or gathered corners weighted by hand",
}


class Obstacle(NamedTuple):
    """An op on the way from images and weights to the gradient, whose derivative is not the true one."""

    op: str  # layer/.../op
    kind: str
    instead: str


def kinks(DET: Detector, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the network's ops (layer/op) whose derivative jumps; images are (H, W, C)."""
    spec = tf.TensorSpec((1, *image_shape), DET.weights[0].dtype)
    graph = tf.function(lambda images: DET.call(DET.weights, images)).get_concrete_function(spec).graph
    return [op.name for op in graph.get_operations() if op.type in KINKED]


def obstacles(DET: Detector, image_shape: tuple[int, int, int]) -> list[Obstacle]:
    """Ops of the network and of its gradient that stop a derivative or have none.

    Ops inside of a `tf.custom_gradient` or a nested `tf.function` are not seen: central differences are.
    """
    W = [tf.TensorSpec(w.shape, w.dtype) for w in DET.weights]

    @tf.function(autograph=False)
    def gradient(images, W):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([images, *W])
            square = tf.add_n([tf.reduce_sum(out * out) for out in tf.nest.flatten(DET.call(W, images))])
        return tape.gradient(square, W)

    graph = gradient.get_concrete_function(tf.TensorSpec((1, *image_shape), W[0].dtype), W).graph
    below = _reached([tensor.op for tensor in graph.inputs], _next)
    above = _reached([tensor.op for tensor in graph.outputs], _previous)
    found = [op for op in graph.get_operations() if op in below and op in above and _is_obstacle(op)]
    return [
        Obstacle(
            op.name, op.type, next((v for k, v in INSTEAD.items() if op.type.startswith(k)), "another op")
        )
        for op in found
    ]


def _is_obstacle(op) -> bool:
    if op.type in ("StopGradient", "PreventGradient"):
        return True
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
