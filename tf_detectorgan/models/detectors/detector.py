"""The interface of detectors (DET).

Letters: N images, H, W, C channels, K boxes, P places with a prediction (anchors or points), M boxes.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Detections, Labelled
from tf_detectorgan.losses import positive

NMS_IOU = 0.5
MAX_DETECTIONS = 100
MIN_SCORE = 0.001


class Coverage(NamedTuple):
    """The boxes for which a detector has suitable anchors or points."""

    covered: np.ndarray  # [M] bool
    rule: str  # condition for a covered box, as the end of "95% of the boxes ..."


class Detector(abc.ABC):
    """A detector through whose loss and update Eqn 3 can be differentiated.

    A subclass sets `network` and implements the four abstract methods. `loss` must be a function of its
    argument W: it uses `call`, never the network itself. `targets` may be any nest of tensors.

    Attributes:
      network: maps {"images": [N, H, W, C] in [-1, 1]} to raw outputs. It has no state that changes in a call
        (`call` uses training=False), and no Keras layer that normalises by the statistics of its input
        (reason: `layers.py`).
      backbone: the part of it whose layers --backbone_weights loads by name, for detectors with the option
        `pretrained`.
      unrollable: False if `loss` has no exact second derivative; arms that use Eqn 3 then raise an error.
    """

    network: keras.Model
    backbone: keras.Model
    unrollable = True

    @property
    def weights(self) -> list[tf.Variable]:
        """Returns W, the trainable variables."""
        return [v.value for v in self.network.trainable_variables]

    def call(self, W, images) -> Any:
        """Returns the network's outputs with weights W (tensors or variables), without assigning them.

        The outputs have the weights' dtype, under every dtype policy.
        """
        fixed = [v.value for v in self.network.non_trainable_variables]
        outputs = self.network.stateless_call(list(W), fixed, {"images": images}, training=False)[0]
        return tf.nest.map_structure(lambda output: tf.cast(output, self.network.variable_dtype), outputs)

    @abc.abstractmethod
    def targets(self, labelled: Labelled) -> Any:
        """Returns the training targets of these boxes, a nest of tensors without gradient."""

    def positives(self, targets) -> tf.Tensor:
        """Returns the number of positives of a replica's batch; L_d is divided by the sum over replicas.

        It is a float32 scalar: by default, the number of `targets.classes` [N, P] that are a class.
        """
        return tf.reduce_sum(positive(targets.classes))

    @abc.abstractmethod
    def loss(self, W, images, targets, normalizer) -> tf.Tensor:
        """Returns L_d, summed over the images and divided by the scalar `normalizer`: a scalar."""

    @abc.abstractmethod
    def detect(self, images, W=None) -> Detections:
        """Returns detections with weights W (None: the network's), best first, MAX_DETECTIONS per image."""

    @abc.abstractmethod
    def coverage(self, boxes) -> Coverage:
        """Returns which of boxes [M, 4], float32 pixels, have an anchor or point that is trained on them."""


def suppress(found, scores, height: int, width: int) -> Detections:
    """Clips boxes [N, P, 4] with scores [N, P, classes] and applies per-class NMS at IoU 0.5."""
    scale = tf.constant([width, height, width, height], tf.float32)
    kept = tf.image.combined_non_max_suppression(
        (boxes_lib.clip(found, height, width) / scale)[:, :, None, :],
        scores,
        max_output_size_per_class=MAX_DETECTIONS,
        max_total_size=MAX_DETECTIONS,
        iou_threshold=NMS_IOU,
        score_threshold=MIN_SCORE,
    )
    count = tf.range(MAX_DETECTIONS)[None, :] < kept.valid_detections[:, None]
    labels = tf.where(count, tf.cast(kept.nmsed_classes, tf.int32), -1)
    return Detections(kept.nmsed_boxes * scale, kept.nmsed_scores, labels)
