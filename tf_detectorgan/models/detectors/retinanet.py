"""DET: KerasCV's RetinaNet, with twice differentiable normalisation layers for Eqn 3.

It is not built from KerasCV's presets, because they download weights.
Letters: N images, H, W, C channels, A anchors, K boxes.
"""

from __future__ import annotations

import keras
import keras_cv
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Detections, Labelled
from tf_detectorgan.models.detectors import anchors as anchors_lib
from tf_detectorgan.models.detectors import backbone as parts
from tf_detectorgan.models.detectors.anchors import Layout
from tf_detectorgan.models.detectors.detector import Coverage, Detector, suppress
from tf_detectorgan.models.layers import dtype_policy, weights_dtype

# For smooth L1 in units of anchors.VARIANCE; without these units (Detectron2) it is 5 to 10 times smaller.
BOX_WEIGHT = 0.2  # decision 0059
COVERED = 0.5  # IoU with an anchor at which a box is covered
# With stride 4, objects of 4 to 10 pixels rarely have IoU 0.5 with an anchor (decision 0053).
SMALL_MATCH_IOU = (0.3, 0.2)
RESNET50_STRIDES = (8, 16, 32, 64, 128)
# Half of KerasCV's sizes: these cover 79 of 79 NIH nodules at 512 pixels, KerasCV's 72.
RESNET50_SIZES = (16.0, 32.0, 64.0, 128.0, 256.0)


class RetinaNet(Detector):
    """A RetinaNet: network, anchors, loss and decoder.

    `network` maps {"images": [N, H, W, C] in [-1, 1]} to {"classification": logits [N, A, classes], "box":
    offsets [N, A, 4]}.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        network: keras.Model,
        backbone: keras.Model,
        layout: Layout,
        match_iou: tuple[float, float] = anchors_lib.MATCH_IOU,
    ):
        self._height, self._width, _ = image_shape
        self.network, self.backbone = network, backbone
        self.anchors = anchors_lib.make_anchors(self._height, self._width, layout)
        self._match_iou = match_iou

    def outputs(self, W, images) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns logits [N, A, classes] and offsets [N, A, 4] with weights W (tensors or variables)."""
        out = self.call(W, images)
        return out["classification"], out["box"]

    def targets(self, labelled: Labelled) -> anchors_lib.AnchorTargets:
        return anchors_lib.match(self.anchors, labelled.boxes, labelled.labels, self._match_iou)

    def loss(self, W, images, targets: anchors_lib.AnchorTargets, normalizer) -> tf.Tensor:
        """Returns L_d: focal + BOX_WEIGHT * smooth L1, summed, divided by `normalizer` positive anchors."""
        logits, offsets = self.outputs(W, images)
        per_image = losses.focal(logits, targets.classes) + BOX_WEIGHT * losses.smooth_l1(
            offsets, tf.cast(targets.offsets, offsets.dtype), targets.classes
        )
        return tf.reduce_sum(per_image) / tf.cast(normalizer, per_image.dtype)

    def detect(self, images, W=None) -> Detections:
        logits, offsets = self.outputs(self.weights if W is None else W, images)
        found = anchors_lib.decode(self.anchors, offsets)
        return suppress(found, tf.sigmoid(logits), self._height, self._width)

    def coverage(self, boxes) -> Coverage:
        best = anchors_lib.coverage(self.anchors, boxes)
        return Coverage(best >= COVERED, f"overlap one of {len(self.anchors)} anchors by IoU >= {COVERED}")


def from_keras_cv(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    backbone: keras.Model,
    pyramid: keras.Model | keras.layers.Layer | None,
    head: tuple[int, int],
    layout: Layout,
    match_iou: tuple[float, float] = anchors_lib.MATCH_IOU,
) -> RetinaNet:
    """Returns KerasCV's RetinaNet with this backbone and our heads; `pyramid` None: KerasCV's, P3 to P7.

    `head`: number of filters and of hidden layers of both heads.
    """
    class_head = parts.head(layout.per_cell * classes, *head, parts.PRIOR_BIAS)
    box_head = parts.head(layout.per_cell * 4, *head, 0.0)
    pyramid = pyramid or keras_cv.models.retinanet.FeaturePyramid()
    with dtype_policy(weights_dtype()):  # concatenation must not round the levels' outputs
        network = keras_cv.models.RetinaNet(
            backbone=backbone,
            num_classes=classes,
            bounding_box_format="xyxy",
            anchor_generator=layout.generator(),
            feature_pyramid=pyramid,
            classification_head=class_head,
            box_head=box_head,
        )
    return RetinaNet(image_shape, network=network, backbone=backbone, layout=layout, match_iou=match_iou)


def small(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = (8.0, 16.0, 32.0),
    ratios: tuple[float, ...] = Layout.ratios,
    width: int = 32,
) -> RetinaNet:
    """Returns a RetinaNet with strides 4, 8, 16 for 64 to 256 pixels; `width` 32: about a million weights."""
    layout = Layout(parts.SMALL_STRIDES, sizes, ratios)
    backbone = parts.small(image_shape, width)
    return from_keras_cv(
        image_shape,
        classes,
        backbone=backbone,
        pyramid=parts.small_pyramid(backbone, 2 * width),
        head=(2 * width, 2),
        layout=layout,
        match_iou=SMALL_MATCH_IOU,
    )


def resnet50(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = RESNET50_SIZES,
    ratios: tuple[float, ...] = Layout.ratios,
    pretrained: bool = False,
) -> RetinaNet:
    """Returns a RetinaNet of the paper's size: ResNet-50, KerasCV's pyramid P3 to P7, heads of 256 channels.

    `pretrained`: weights are to be loaded into the backbone (`parts.resnet50`).
    """
    return from_keras_cv(
        image_shape,
        classes,
        backbone=parts.resnet50(image_shape, pretrained),
        pyramid=None,
        head=(256, 3),
        layout=Layout(RESNET50_STRIDES, sizes, ratios),
    )
