"""KerasHub's RetinaNet, an optional extra. Anchors, loss and decoder are those of `retinanet.py`."""

from __future__ import annotations

import keras

from tf_detectorgan.errors import InputError
from tf_detectorgan.models.detectors import backbone as parts
from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.models.detectors.anchors import Layout

LEVELS = (3, 7)  # P3 to P7, as the strides of `retinanet.RESNET50_STRIDES`


def resnet50(
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = retinanet.RESNET50_SIZES,
    ratios: tuple[float, ...] = Layout.ratios,
    pretrained: bool = False,
) -> retinanet.RetinaNet:
    """Returns KerasHub's pyramid and heads (4 convolutions, no norm) on `retinanet_resnet50`'s ResNet-50.

    Raises:
      InputError: KerasHub is not installed, or an argument is invalid.
    """
    hub = _keras_hub()
    layout = Layout(retinanet.RESNET50_STRIDES, sizes, ratios)
    backbone = parts.resnet50(image_shape, pretrained)
    network = _network(hub, image_shape, classes, backbone, layout)
    return retinanet.RetinaNet(image_shape, network=network, backbone=backbone, layout=layout)


def _network(hub, image_shape, classes: int, backbone, layout: Layout) -> keras.Model:
    backbone.pyramid_outputs = {
        level: backbone.get_layer(name).output for level, name in backbone.pyramid_level_inputs.items()
    }
    lowest, highest = LEVELS
    detector = hub.models.RetinaNetObjectDetector(
        backbone=hub.models.RetinaNetBackbone(
            backbone, min_level=lowest, max_level=highest, use_p5=False, image_shape=image_shape
        ),
        num_classes=classes,
        bounding_box_format="xyxy",
        # Only the number of anchors is used, for the size of the heads.
        anchor_generator=hub.layers.AnchorGenerator(
            "xyxy",
            lowest,
            highest,
            num_scales=len(layout.scales),
            aspect_ratios=list(layout.ratios),
            anchor_size=4.0,
        ),
    )
    _initialise(detector.classification_head, parts.PRIOR_BIAS)
    _initialise(detector.box_head, 0.0)
    images = keras.Input(image_shape, name="images")
    outputs = detector(images)
    return keras.Model(
        {"images": images}, {"classification": outputs["cls_logits"], "box": outputs["bbox_regression"]}
    )


def _initialise(head, bias: float) -> None:
    """Initialises a head as in Lin et al. 2017, 4.1; KerasHub sets the wrong bias (decision 0002)."""
    normal = keras.initializers.RandomNormal(stddev=0.01)
    for layer in (*head.conv_layers, head.prediction_layer):
        layer.kernel.assign(normal(layer.kernel.shape, layer.kernel.dtype))
    head.prediction_layer.bias.assign(keras.ops.full_like(head.prediction_layer.bias, bias))


def _keras_hub():
    try:
        import keras_hub  # an optional extra, and slow to import
    except ImportError as error:
        raise InputError(
            f"--detector=retinanet_kerashub: {error}; pip install -c constraints.txt '.[kerashub]' "
            "(Python 3.11 or later)"
        ) from error
    return keras_hub
