"""How objects look to a network that was trained on photographs: what the audit may ask beside their pixels.

Letters: N objects, C channels, D = sum over STAGES of height * width * channels, E channels of POOLED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan.resampling import crop

SIDE = 64  # of the crops that the network sees
STAGES = ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out")  # of ResNet-50; strides 4, 8, 16
POOLED = "conv5_block3_out"


class Looks(NamedTuple):
    """What is kept of N objects. Their pairs need no more than a sum (see `variety`)."""

    total: np.ndarray  # [D] float64, the sum over objects of unit features
    pooled: np.ndarray  # [N, E], means over places of POOLED


def describer(backbone: keras.Model, context: float) -> Callable[[np.ndarray, np.ndarray], Looks]:
    """(images [N, H, W, C] in [-1, 1], boxes [N, 4]) -> Looks, with `context` longer sides around a box.

    `backbone`: as `models.detectors.backbone.resnet50([SIDE, SIDE, C], pretrained=True)`.

    Unit features: at each place of a stage the channels are divided by their length (Zhang et al. 2018,
    LPIPS), all of a stage by the root of 3 times its places. The squared distance of two objects is then
    LPIPS without learned weights: the mean over stages and places of the squared distance of unit vectors.
    """
    outputs = [backbone.get_layer(name).output for name in (*STAGES, POOLED)]
    network = keras.Model(backbone.inputs, outputs)

    @tf.function(autograph=False, reduce_retracing=True)
    def features(images, boxes):
        *stages, last = network(crop(images, boxes, SIDE, context), training=False)
        units = [
            tf.reshape(
                tf.math.l2_normalize(tf.cast(stage, tf.float32), -1)
                / (len(STAGES) * stage.shape[1] * stage.shape[2]) ** 0.5,
                [-1, stage.shape[1] * stage.shape[2] * stage.shape[3]],
            )
            for stage in stages
        ]
        return tf.concat(units, -1), tf.reduce_mean(tf.cast(last, tf.float32), [1, 2])

    def describe(images: np.ndarray, boxes: np.ndarray) -> Looks:
        unit, pooled = features(tf.constant(images), tf.constant(boxes))
        return Looks(unit.numpy().sum(0, dtype=np.float64), pooled.numpy())

    return describe


def joined(parts: Sequence[Looks]) -> Looks:
    """The looks of all parts, in order."""
    return Looks(np.sum([part.total for part in parts], 0), np.concatenate([part.pooled for part in parts]))


def variety(looks: Looks) -> float:
    """Mean squared distance over pairs of objects, 0 (all alike) to 2: the lengths of unit features are 1.

    The mean over i != j of |u_i - u_j|^2 = 2 - 2 u_i.u_j, where the sum of all products is |total|^2.
    """
    count = len(looks.pooled)
    if count < 2:
        return 0.0
    products = float(looks.total @ looks.total) - count
    return 2.0 - 2.0 * products / (count * (count - 1))
