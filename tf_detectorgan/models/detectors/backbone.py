"""Parts that detectors share: backbones, feature pyramid, heads; their norms are twice differentiable."""

from __future__ import annotations

import math

import keras
import keras_cv

from tf_detectorgan.errors import InputError
from tf_detectorgan.models.layers import Doubling, ExactGroupNormalization, dtype_policy, weights_dtype

PRIOR = 0.01  # initial probability of the object at every anchor; Lin et al. 2017, section 4.1
PRIOR_BIAS = math.log(PRIOR / (1 - PRIOR))
SMALL_STRIDES = (4, 8, 16)
CAFFE_MEAN = (103.939, 116.779, 123.68)  # ImageNet's blue, green, red; keras.applications.resnet


def small(image_shape: tuple[int, int, int], width: int) -> keras.Model:
    """Returns a residual backbone with outputs of strides 4, 8, 16, named by `pyramid_level_inputs`.

    Raises:
      InputError: an image side is not divisible by 16.
    """
    height, image_width, _ = image_shape
    if height % 16 or image_width % 16:
        raise InputError(f"small detectors need image sides divisible by 16, got {height}x{image_width}")
    inputs = keras.Input(image_shape)
    x = conv(conv(inputs, width // 2), width, strides=2)
    levels = {}
    for level, filters in (("P3", 2 * width), ("P4", 3 * width), ("P5", 4 * width)):
        x = _residual_block(conv(x, filters, strides=2), filters, name=level)
        levels[level] = x
    backbone = keras.Model(inputs, x, name="small_backbone")
    backbone.pyramid_level_inputs = {level: level for level in levels}
    return backbone


def resnet50(image_shape: tuple[int, int, int], pretrained: bool = False) -> keras.Model:
    """Returns a ResNet-50 with outputs of strides 8, 16 and 32; `pyramid_level_inputs` names their layers.

    It is for training from scratch or, if `pretrained`, for weights that are loaded later (decision 0112).

    Raises:
      InputError: an image side is not divisible by 32, or `pretrained` images do not have 1 or 3 channels.
    """
    height, width, channels = image_shape
    if height % 32 or width % 32:
        raise InputError(f"ResNet-50 needs image sides divisible by 32, got {height}x{width}")
    if not pretrained:
        return _resnet50_from_scratch(image_shape)
    if channels not in (1, 3):
        raise InputError(
            f"--backbone_weights: need images of 1 or 3 channels, these have {channels}; set it to none"
        )
    return _resnet50_with_fixed_norms(image_shape)


def _resnet50_from_scratch(image_shape) -> keras.Model:
    """Returns KerasCV's ResNet-50 with exact group normalisation (32 groups) for batch normalisation."""
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
    return backbone


def _with_exact_norm(layer):
    if isinstance(layer, keras.layers.BatchNormalization):
        return ExactGroupNormalization(groups=32, name=layer.name)
    return layer.__class__.from_config(layer.get_config())


def _resnet50_with_fixed_norms(image_shape) -> keras.Model:
    """Returns Keras applications' ResNet-50; its batch normalisations have fixed statistics, gamma and beta.

    Images are preprocessed as by its `preprocess_input`; grey images become three equal channels.
    """
    images = keras.Input(image_shape)
    grey = image_shape[2] == 1
    with dtype_policy(weights_dtype()):
        bgr = keras.layers.Concatenate()([images] * 3) if grey else keras.ops.flip(images, -1)
        levels = keras.layers.Rescaling(127.5, [127.5 - mean for mean in CAFFE_MEAN])(bgr)
    backbone = keras.applications.ResNet50(include_top=False, weights=None, input_tensor=levels)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    backbone.pyramid_level_inputs = {
        "P3": "conv3_block4_out",
        "P4": "conv4_block6_out",
        "P5": "conv5_block3_out",
    }
    return backbone


def small_pyramid(backbone: keras.Model, filters: int) -> keras.Model:
    """Returns a feature pyramid (Lin et al. 2017), P3 to P5; KerasCV's has 256 channels, 5 levels."""
    shapes = {level: backbone.get_layer(level).output.shape[1:] for level in backbone.pyramid_level_inputs}
    inputs = {level: keras.Input(shape, name=level) for level, shape in shapes.items()}
    merged = None
    outputs: list[keras.KerasTensor] = []
    for level in reversed(list(inputs)):
        lateral = keras.layers.Conv2D(filters, 1)(inputs[level])
        if merged is not None:
            lateral = keras.layers.Add()([lateral, Doubling()(merged)])
        merged = lateral
        outputs.insert(0, keras.layers.Conv2D(filters, 3, padding="same")(merged))
    return keras.Model(inputs, outputs, name="small_pyramid")


def head(outputs: int, filters: int, layers: int, bias: float) -> keras.Model:
    """Returns a head that all levels share; KerasCV's `PredictionHead` has a fixed width of 256.

    Unlike KerasCV's, it has normalisation layers (Wu & He 2018, section 4.2), so that training from scratch
    is stable at a higher learning rate (decision 0059).
    """
    features = keras.Input((None, None, filters))
    x = features
    for _ in range(layers):
        x = conv(x, filters)
    normal = keras.initializers.RandomNormal(stddev=0.01)  # Lin et al. 2017, section 4.1
    prior = keras.initializers.Constant(bias)
    prediction = keras.layers.Conv2D(
        outputs,
        3,
        padding="same",
        kernel_initializer=normal,
        bias_initializer=prior,
        dtype=weights_dtype(),
    )
    return keras.Model(features, prediction(x))


def conv(x, filters: int, strides: int = 1, activate: bool = True, name: str | None = None):
    """Applies a 3x3 convolution, exact group normalisation and, if `activate`, a ReLU with this name."""
    x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = ExactGroupNormalization(groups=8)(x)
    return keras.layers.ReLU(name=name)(x) if activate else x


def _residual_block(x, filters: int, name: str):
    y = conv(conv(x, filters), filters, activate=False)
    return keras.layers.ReLU(name=name)(keras.layers.Add()([x, y]))
