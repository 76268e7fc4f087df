"""What a detector is made of, as far as second derivatives go: read off its graph, op by op."""

from __future__ import annotations

import tensorflow as tf

from tf_detectorgan.models.detectors.detector import Detector

# Their derivative jumps, so a gradient is not continuous in the weights. `exact` does not mind.
KINKED = ("LeakyRelu", "MaxPool", "Relu", "Relu6")


def kinks(DET: Detector, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the network's ops (layer/op) whose derivative jumps; images are (H, W, C)."""
    spec = tf.TensorSpec((1, *image_shape), tf.float32)
    graph = tf.function(lambda images: DET.call(DET.weights, images)).get_concrete_function(spec).graph
    return [op.name for op in graph.get_operations() if op.type in KINKED]
