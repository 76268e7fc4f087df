"""DET: KerasCV's RetinaNet with norms that Eqn 3 may differentiate.

Built from explicit arguments, as its presets download. Letters: N images, H, W, C channels, A anchors, K
boxes.
"""

from __future__ import annotations

import math

import keras
import keras_cv
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import losses
from tf_detectorgan.batch import Detections, Labelled
from tf_detectorgan.models.detectors import anchors as anchors_lib
from tf_detectorgan.models.layers import ExactGroupNormalization

PRIOR = 0.01  # Lin et al. 2017, section 4.1: every anchor starts as background with this much doubt
# Of smooth L1 in units of anchors.VARIANCE; Detectron2 counts without it, which is 5 to 10 times less.
BOX_WEIGHT = 0.2  # decision 0063
NMS_IOU = 0.5
MAX_DETECTIONS = 100
MIN_SCORE = 0.001
# Objects of 4 to 10 pixels on a grid of 4 rarely meet an anchor by IoU 0.5 (decision 0058).
SMALL_MATCH_IOU = (0.3, 0.2)


class RetinaNet:
    """A RetinaNet, its anchors, its loss and its decoder.

    `network` maps {"images": [N, H, W, C] in [-1, 1]} to {"classification": logits [N, A, classes], "box":
    offsets [N, A, 4]}. `outputs` is given its weights, so that the same graph runs on W and on W'.
    """

    def __init__(
        self,
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
    ):
        if len(strides) != len(sizes):
            raise ValueError(
                f"anchor sizes {sizes} must be {len(strides)} numbers, one a stride of {strides}"
            )
        height, width, _ = image_shape
        per_cell = len(scales) * len(ratios)
        self.network = keras_cv.models.RetinaNet(
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
            classification_head=_head(
                per_cell * classes, head_filters, head_layers, math.log(PRIOR / (1 - PRIOR))
            ),
            box_head=_head(per_cell * 4, head_filters, head_layers, 0.0),
        )
        self.anchors = anchors_lib.make_anchors(
            height, width, list(strides), list(sizes), list(scales), list(ratios)
        )
        self._scale = tf.constant([width, height, width, height], tf.float32)
        self._height, self._width = height, width
        self._match_iou = match_iou

    @property
    def weights(self) -> list[tf.Variable]:
        """W, the trainable variables."""
        return [v.value for v in self.network.trainable_variables]

    def outputs(self, W, images) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits [N, A, classes] and offsets [N, A, 4] with weights W (a list of tensors or variables)."""
        fixed = [v.value for v in self.network.non_trainable_variables]
        out, _ = self.network.stateless_call(list(W), fixed, {"images": images}, training=False)
        return out["classification"], out["box"]

    def targets(self, labelled: Labelled) -> anchors_lib.Targets:
        """What the network should answer; no gradient."""
        return anchors_lib.match(self.anchors, labelled.boxes, labelled.labels, *self._match_iou)

    def loss(self, W, images, targets: anchors_lib.Targets, normalizer) -> tf.Tensor:
        """L_d: focal + BOX_WEIGHT smooth L1, summed, divided by `normalizer` positive anchors (scalar)."""
        logits, offsets = self.outputs(W, images)
        per_image = losses.focal(logits, targets.classes) + BOX_WEIGHT * losses.smooth_l1(
            offsets, tf.cast(targets.offsets, offsets.dtype), targets.classes
        )
        return tf.reduce_sum(per_image) / tf.cast(normalizer, per_image.dtype)

    def detect(self, images, W=None) -> Detections:
        """Detections with weights W (None: the live ones), at most 100 an image, suppressed at IoU 0.5."""
        logits, offsets = self.outputs(self.weights if W is None else W, images)
        found = boxes_lib.clip(anchors_lib.decode(self.anchors, offsets), self._height, self._width)
        kept = tf.image.combined_non_max_suppression(
            (found / self._scale)[:, :, None, :],
            tf.sigmoid(logits),
            max_output_size_per_class=MAX_DETECTIONS,
            max_total_size=MAX_DETECTIONS,
            iou_threshold=NMS_IOU,
            score_threshold=MIN_SCORE,
        )
        count = tf.range(MAX_DETECTIONS)[None, :] < kept.valid_detections[:, None]
        labels = tf.where(count, tf.cast(kept.nmsed_classes, tf.int32), -1)
        return Detections(kept.nmsed_boxes * self._scale, kept.nmsed_scores, labels)


def positives(targets: anchors_lib.Targets) -> tf.Tensor:
    """Number of positive anchors of a batch, float32 scalar."""
    return tf.reduce_sum(tf.cast(targets.classes >= 0, tf.float32))


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
    height, image_width, _ = image_shape
    if height % 16 or image_width % 16:
        raise ValueError(f"retinanet_small needs image sides divisible by 16, got {height}x{image_width}")
    inputs = keras.Input(image_shape)
    x = _conv(_conv(inputs, width // 2), width, strides=2)
    levels = {}
    for level, filters in (("P3", 2 * width), ("P4", 3 * width), ("P5", 4 * width)):
        x = _residual_block(_conv(x, filters, strides=2), filters, name=level)
        levels[level] = x
    backbone = keras.Model(inputs, x, name="small_backbone")
    backbone.pyramid_level_inputs = {level: level for level in levels}
    return RetinaNet(
        image_shape,
        classes,
        backbone=backbone,
        pyramid=_small_pyramid({k: tuple(v.shape[1:]) for k, v in levels.items()}, 2 * width),
        head_filters=2 * width,
        head_layers=2,
        strides=(4, 8, 16),
        sizes=sizes,
        scales=scales,
        ratios=ratios,
        match_iou=SMALL_MATCH_IOU,
    )


def resnet50(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0, 256.0),
    scales: tuple[float, ...] = (1.0, 1.26, 1.59),
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0),
) -> RetinaNet:
    """The paper's size: KerasCV's ResNet-50, feature pyramid P3 to P7 and heads of 256 channels.

    Trained from scratch, so every batch normalisation of the backbone is replaced by an exact group
    normalisation with 32 groups. `sizes` are half of KerasCV's: they cover 79 of 79 NIH nodules at 512
    pixels, KerasCV's own 72.
    """
    height, width, _ = image_shape
    if height % 32 or width % 32:
        raise ValueError(f"retinanet_resnet50 needs image sides divisible by 32, got {height}x{width}")
    batch_normalised = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[3, 4, 6, 3],
        stackwise_strides=[1, 2, 2, 2],
        include_rescaling=False,
        input_shape=image_shape,
    )
    plain = keras.Model(batch_normalised.inputs, batch_normalised.outputs)
    backbone = keras.models.clone_model(
        plain, clone_function=_with_exact_norm, call_function=lambda layer, *args, **_: layer(*args)
    )
    backbone.pyramid_level_inputs = batch_normalised.pyramid_level_inputs
    return RetinaNet(
        image_shape,
        classes,
        backbone=backbone,
        pyramid=None,
        head_filters=256,
        head_layers=3,
        strides=(8, 16, 32, 64, 128),
        sizes=sizes,
        scales=scales,
        ratios=ratios,
    )


def _with_exact_norm(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return ExactGroupNormalization(groups=32, name=layer.name)
    return layer.__class__.from_config(layer.get_config())


def _conv(x, filters: int, strides: int = 1, activate: bool = True, name: str | None = None):
    x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = ExactGroupNormalization(groups=8)(x)
    return keras.layers.ReLU(name=name)(x) if activate else x


def _residual_block(x, filters: int, name: str):
    y = _conv(_conv(x, filters), filters, activate=False)
    return keras.layers.ReLU(name=name)(keras.layers.Add()([x, y]))


def _small_pyramid(shapes: dict[str, tuple], filters: int) -> keras.Model:
    """Feature pyramid (Lin et al. 2017), levels P3 to P5 only: KerasCV's has 256 channels, five levels."""
    inputs = {level: keras.Input(shape, name=level) for level, shape in shapes.items()}
    merged = None
    outputs: list[keras.KerasTensor] = []
    for level in reversed(list(inputs)):
        lateral = keras.layers.Conv2D(filters, 1)(inputs[level])
        if merged is not None:
            lateral = keras.layers.Add()([lateral, keras.layers.UpSampling2D(2)(merged)])
        merged = lateral
        outputs.insert(0, keras.layers.Conv2D(filters, 3, padding="same")(merged))
    return keras.Model(inputs, outputs, name="small_pyramid")


def _head(outputs: int, filters: int, layers: int, bias: float) -> keras.Model:
    """Shared by all levels, like KerasCV's `PredictionHead`, whose width is fixed at 256.

    Normalised (Wu & He 2018, section 4.2), which KerasCV's is not: trained from scratch it bears a higher
    learning rate (decision 0059).
    """
    features = keras.Input((None, None, filters))
    x = features
    for _ in range(layers):
        x = _conv(x, filters)
    normal = keras.initializers.RandomNormal(stddev=0.01)  # Lin et al. 2017, section 4.1
    prior = keras.initializers.Constant(bias)
    x = keras.layers.Conv2D(outputs, 3, padding="same", kernel_initializer=normal, bias_initializer=prior)(x)
    return keras.Model(features, x)
