"""DET without anchors: FCOS (Tian et al. 2019), with the backbone and pyramid of the small RetinaNet.

Letters: N images, H, W, C channels, P points.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Detections, Labelled
from tf_detectorgan.models.detectors import backbone as parts
from tf_detectorgan.models.detectors import points as points_lib
from tf_detectorgan.models.detectors.detector import Coverage, Detector, suppress
from tf_detectorgan.models.layers import dtype_policy, weights_dtype

RADIUS = 1.5  # strides; Tian et al. 2020
REACH = 4.0  # strides; 8 in Tian et al. 2019, for images of 800 pixels
# An untrained network may predict e^40 strides; the bound is that of `anchors.decode`.
MAX_LOG_DISTANCE = math.log(1000 / 16)


class FCOS(Detector):
    """An FCOS: network, points, loss and decoder.

    `network` maps {"images": [N, H, W, C] in [-1, 1]} to {"classification": logits [N, P, classes],
    "distance": logarithms of the distances in strides [N, P, 4], "centerness": logits [N, P]}. Units of
    strides replace the paper's learned factor per level.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        backbone: keras.Model,
        pyramid: keras.Model,
        head_filters: int,
        head_layers: int,
        strides: tuple[int, ...],
    ):
        self._height, self._width, _ = image_shape
        self.points = points_lib.make_points(
            self._height, self._width, strides, tuple(REACH * s for s in strides[:-1])
        )
        self.network = _network(image_shape, classes, backbone, pyramid, head_filters, head_layers)

    def targets(self, labelled: Labelled) -> points_lib.PointTargets:
        return points_lib.match(self.points, labelled.boxes, labelled.labels, RADIUS)

    def loss(self, W, images, targets: points_lib.PointTargets, normalizer) -> tf.Tensor:
        """Returns L_d: focal + GIoU + centre-ness losses, summed, divided by `normalizer` positive points."""
        out = self.call(W, images)
        logits = out["classification"]
        distances, centerness = (tf.cast(t, logits.dtype) for t in (targets.distances, targets.centerness))
        per_image = (
            losses.focal(logits, targets.classes)
            + losses.giou(_distances(out), distances, targets.classes)
            + losses.centerness(out["centerness"], centerness, targets.classes)
        )
        return tf.reduce_sum(per_image) / tf.cast(normalizer, per_image.dtype)

    def detect(self, images, W=None) -> Detections:
        """Returns detections; scores are class probability times centre-ness (Tian et al. 2019, 3.4)."""
        out = self.call(self.weights if W is None else W, images)
        scores = tf.sigmoid(out["classification"]) * tf.sigmoid(out["centerness"])[..., None]
        return suppress(points_lib.decode(self.points, _distances(out)), scores, self._height, self._width)

    def coverage(self, boxes) -> Coverage:
        claimed, _ = points_lib.claims(self.points, tf.cast(boxes, tf.float32), RADIUS)
        rule = f"have one of {len(self.points.strides)} points near their middle, on the level of their size"
        return Coverage(tf.reduce_any(claimed, 0).numpy(), rule)


def _distances(out):
    return tf.exp(tf.minimum(out["distance"], MAX_LOG_DISTANCE))


def _network(image_shape, classes, backbone, pyramid, filters, layers) -> keras.Model:
    inputs = keras.Input(image_shape, name="images")
    maps = {level: backbone.get_layer(name).output for level, name in backbone.pyramid_level_inputs.items()}
    levels = pyramid(keras.Model(backbone.inputs, maps)(inputs))
    class_head = parts.head(classes, filters, layers, parts.PRIOR_BIAS)
    # Distances and centre-ness share a head (Tian et al. 2020): its last channel is the centre-ness.
    box_head = parts.head(5, filters, layers, 0.0)
    with dtype_policy(weights_dtype()):  # concatenation must not round the levels' outputs
        logits = [keras.layers.Reshape((-1, classes))(class_head(level)) for level in levels]
        regressed = [keras.layers.Reshape((-1, 5))(box_head(level)) for level in levels]
        regressed = keras.layers.Concatenate(axis=1)(regressed)
        outputs = {
            "classification": keras.layers.Concatenate(axis=1)(logits),
            "distance": regressed[..., :4],
            "centerness": regressed[..., 4],
        }
    return keras.Model({"images": inputs}, outputs, name="fcos")


def small(image_shape: tuple[int, int, int], classes: int, *, width: int = 32) -> FCOS:
    """Returns an FCOS with strides 4, 8, 16 for 64 to 256 pixels on a CPU; `width` 32: a million weights."""
    backbone = parts.small(image_shape, width)
    return FCOS(
        image_shape,
        classes,
        backbone=backbone,
        pyramid=parts.small_pyramid(backbone, 2 * width),
        head_filters=2 * width,
        head_layers=2,
        strides=parts.SMALL_STRIDES,
    )
