"""A detector as users bring their own, `--detector=tests.own_detector:tiny`, whose steps are traced fast."""

import keras

from tf_detectorgan.models.detectors import backbone as parts
from tf_detectorgan.models.detectors.anchors import Layout
from tf_detectorgan.models.detectors.retinanet import SMALL_MATCH_IOU, RetinaNet

STRIDE = 4


def tiny(image_shape, classes, *, sizes=(6.0,)):
    """Two convolutions and one square anchor in every fourth pixel of every fourth row."""
    images = keras.Input(image_shape, name="images")
    features = parts.conv(parts.conv(images, 8, strides=2), 16, strides=STRIDE // 2)
    answers = {
        name: keras.layers.Reshape((-1, values))(parts.head(values, 16, 0, bias)(features))
        for name, values, bias in (("classification", classes, parts.PRIOR_BIAS), ("box", 4, 0.0))
    }
    network = keras.Model({"images": images}, answers)
    return RetinaNet(
        image_shape,
        network=network,
        backbone=network,
        layout=Layout((STRIDE,), sizes, ratios=(1.0,), scales=(1.0,)),
        match_iou=SMALL_MATCH_IOU,
    )
