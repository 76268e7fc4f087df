"""What DET must be able to do, whatever its architecture: the interface of every registered detector.

Letters: N images, H, W, C channels, K boxes, P places that answer (anchors, or points), M boxes.
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
    """Which boxes a detector can learn well."""

    covered: np.ndarray  # [M] bool
    rule: str  # what a covered box does, as the end of "95% of the boxes ..."


class Detector(abc.ABC):
    """A detector that Eqn 3 can be differentiated through.

    A subclass sets `network` and writes the four abstract methods below. `loss` must be a function of the W
    that it is given: use `call`, never the network itself. `targets` may be any nest of tensors.

    Attributes:
      network: maps {"images": [N, H, W, C] in [-1, 1]} to its raw answers. It has no state that changes in a
        call (`call` runs it with training=False), and no layer of Keras that normalises by the batch at hand
        (`layers.py` says why).
      backbone: the part of it whose layers --backbone_weights fills by name, for detectors that take
        `pretrained`.
      unrollable: False says that `loss` has no exact second derivative; arms that use Eqn 3 then refuse it.
    """

    network: keras.Model
    backbone: keras.Model
    unrollable = True

    @property
    def weights(self) -> list[tf.Variable]:
        """W, the trainable variables."""
        return [v.value for v in self.network.trainable_variables]

    def call(self, W, images) -> Any:
        """What the network answers with weights W (tensors or variables), which nothing is assigned to.

        Answers have the weights' dtype, whatever the network computes in.
        """
        fixed = [v.value for v in self.network.non_trainable_variables]
        answers = self.network.stateless_call(list(W), fixed, {"images": images}, training=False)[0]
        return tf.nest.map_structure(lambda answer: tf.cast(answer, self.network.variable_dtype), answers)

    @abc.abstractmethod
    def targets(self, labelled: Labelled) -> Any:
        """What the network should answer to these boxes, a nest of tensors; no gradient."""

    def positives(self, targets) -> tf.Tensor:
        """What L_d of a batch is divided by, before it is summed over replicas: float32 scalar.

        Unless overridden the number of places whose `targets.classes` [N, P] is a class.
        """
        return tf.reduce_sum(positive(targets.classes))

    @abc.abstractmethod
    def loss(self, W, images, targets, normalizer) -> tf.Tensor:
        """L_d summed over the images and divided by `normalizer` (scalar): a scalar."""

    @abc.abstractmethod
    def detect(self, images, W=None) -> Detections:
        """Detections with weights W (None: the live ones), best first, at most MAX_DETECTIONS an image."""

    @abc.abstractmethod
    def coverage(self, boxes) -> Coverage:
        """Which of boxes [M, 4], float32 pixels, have a place that is taught to find them."""


def suppress(found, scores, height: int, width: int) -> Detections:
    """Boxes [N, P, 4] with scores [N, P, classes], cut to the image and suppressed per class at IoU 0.5."""
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
