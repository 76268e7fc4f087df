"""DET: RetinaNet, the network of KerasCV, with norms that Eqn 3 may differentiate.

Built from explicit arguments, as its presets download. Letters: N images, H, W, C channels, A anchors, K
boxes.
"""

from __future__ import annotations

import keras
import keras_cv
import tensorflow as tf

from tf_detectorgan import losses
from tf_detectorgan.batch import Detections, Labelled
from tf_detectorgan.errors import InputError
from tf_detectorgan.models.detectors import anchors as anchors_lib
from tf_detectorgan.models.detectors import backbone as parts
from tf_detectorgan.models.detectors.detector import Coverage, Detector, suppress
from tf_detectorgan.models.layers import dtype_policy, weights_dtype

# Of smooth L1 in units of anchors.VARIANCE; Detectron2 counts without it, which is 5 to 10 times less.
BOX_WEIGHT = 0.2  # decision 0063
COVERED = 0.5  # IoU with an anchor
# Objects of 4 to 10 pixels on a grid of 4 rarely meet an anchor by IoU 0.5 (decision 0058).
SMALL_MATCH_IOU = (0.3, 0.2)
RESNET50_STRIDES = (8, 16, 32, 64, 128)
# Half of KerasCV's: they cover 79 of 79 NIH nodules at 512 pixels, KerasCV's own 72.
RESNET50_SIZES = (16.0, 32.0, 64.0, 128.0, 256.0)


class RetinaNet(Detector):
    """A RetinaNet, its anchors, its loss and its decoder.

    `network` maps {"images": [N, H, W, C] in [-1, 1]} to {"classification": logits [N, A, classes], "box":
    offsets [N, A, 4]}.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        network: keras.Model,
        backbone: keras.Model,
        strides: tuple[int, ...],
        sizes: tuple[float, ...],
        scales: tuple[float, ...],
        ratios: tuple[float, ...],
        match_iou: tuple[float, float] = (anchors_lib.POSITIVE_IOU, anchors_lib.NEGATIVE_IOU),
    ):
        self._height, self._width, _ = image_shape
        self.network, self.backbone = network, backbone
        self.anchors = anchors_lib.make_anchors(
            self._height, self._width, list(strides), list(sizes), list(scales), list(ratios)
        )
        self._match_iou = match_iou

    def outputs(self, W, images) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits [N, A, classes] and offsets [N, A, 4] with weights W (a list of tensors or variables)."""
        out = self.call(W, images)
        return out["classification"], out["box"]

    def targets(self, labelled: Labelled) -> anchors_lib.Targets:
        return anchors_lib.match(self.anchors, labelled.boxes, labelled.labels, *self._match_iou)

    def positives(self, targets: anchors_lib.Targets) -> tf.Tensor:
        """Number of positive anchors."""
        return tf.reduce_sum(losses.positive(targets.classes))

    def loss(self, W, images, targets: anchors_lib.Targets, normalizer) -> tf.Tensor:
        """L_d: focal + BOX_WEIGHT smooth L1, summed, divided by `normalizer` positive anchors (scalar)."""
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


def check_sizes(sizes: tuple[float, ...], strides: tuple[int, ...]) -> None:
    """Raises InputError unless there is one anchor size a stride."""
    if len(strides) != len(sizes):
        raise InputError(f"anchor sizes {sizes} must be {len(strides)} numbers, one a stride of {strides}")


def from_keras_cv(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    backbone: keras.Model,
    pyramid: keras.Model | keras.layers.Layer | None,
    head_filters: int,
    head_layers: int,
    strides: tuple[int, ...],
    sizes: tuple[float, ...],
    scales: tuple[float, ...],
    ratios: tuple[float, ...],
    match_iou: tuple[float, float] = (anchors_lib.POSITIVE_IOU, anchors_lib.NEGATIVE_IOU),
) -> RetinaNet:
    """KerasCV's RetinaNet on a backbone, with our heads; `pyramid` None: KerasCV's of levels P3 to P7."""
    check_sizes(sizes, strides)
    per_cell = len(scales) * len(ratios)
    class_head = parts.head(per_cell * classes, head_filters, head_layers, parts.PRIOR_BIAS)
    box_head = parts.head(per_cell * 4, head_filters, head_layers, 0.0)
    pyramid = pyramid or keras_cv.models.retinanet.FeaturePyramid()
    with dtype_policy(weights_dtype()):  # what joins the levels' answers must not round them
        network = keras_cv.models.RetinaNet(
            backbone=backbone,
            num_classes=classes,
            bounding_box_format="xyxy",
            anchor_generator=keras_cv.layers.AnchorGenerator(
                bounding_box_format="xyxy",
                sizes=list(sizes),
                scales=list(scales),
                aspect_ratios=list(ratios),
                strides=list(strides),
            ),
            feature_pyramid=pyramid,
            classification_head=class_head,
            box_head=box_head,
        )
    return RetinaNet(
        image_shape,
        network=network,
        backbone=backbone,
        strides=strides,
        sizes=sizes,
        scales=scales,
        ratios=ratios,
        match_iou=match_iou,
    )


def small(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = (8.0, 16.0, 32.0),
    scales: tuple[float, ...] = (1.0, 1.26, 1.59),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    width: int = 32,
) -> RetinaNet:
    """About a million weights with `width` 32: for 64 to 256 pixels on a CPU, strides 4, 8 and 16."""
    backbone = parts.small(image_shape, width)
    return from_keras_cv(
        image_shape,
        classes,
        backbone=backbone,
        pyramid=parts.small_pyramid(backbone, 2 * width),
        head_filters=2 * width,
        head_layers=2,
        strides=parts.SMALL_STRIDES,
        sizes=sizes,
        scales=scales,
        ratios=ratios,
        match_iou=SMALL_MATCH_IOU,
    )


def resnet50(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = RESNET50_SIZES,
    scales: tuple[float, ...] = (1.0, 1.26, 1.59),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
    pretrained: bool = False,
) -> RetinaNet:
    """The paper's size: ResNet-50, KerasCV's feature pyramid P3 to P7 and heads of 256 channels.

    `pretrained`: its backbone is to be given weights (`parts.resnet50`).
    """
    return from_keras_cv(
        image_shape,
        classes,
        backbone=parts.resnet50(image_shape, pretrained),
        pyramid=None,
        head_filters=256,
        head_layers=3,
        strides=RESNET50_STRIDES,
        sizes=sizes,
        scales=scales,
        ratios=ratios,
    )
