"""The parts that small detectors share: backbone, feature pyramid, heads, with norms that Eqn 3 may pass."""

from __future__ import annotations

import math

import keras

from tf_detectorgan.errors import InputError
from tf_detectorgan.models.layers import ExactGroupNormalization

PRIOR = 0.01  # Lin et al. 2017, section 4.1: every place starts as background with this much doubt
PRIOR_BIAS = math.log(PRIOR / (1 - PRIOR))
SMALL_STRIDES = (4, 8, 16)


def small(image_shape: tuple[int, int, int], width: int) -> keras.Model:
    """Residual backbone with outputs P3, P4, P5 of strides 4, 8, 16; `pyramid_level_inputs` names them.

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


def small_pyramid(backbone: keras.Model, filters: int) -> keras.Model:
    """Feature pyramid (Lin et al. 2017), levels P3 to P5 only: KerasCV's has 256 channels, five levels."""
    shapes = {level: backbone.get_layer(level).output.shape[1:] for level in backbone.pyramid_level_inputs}
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


def head(outputs: int, filters: int, layers: int, bias: float) -> keras.Model:
    """Shared by all levels, like KerasCV's `PredictionHead`, whose width is fixed at 256.

    Normalised (Wu & He 2018, section 4.2), which KerasCV's is not: trained from scratch it bears a higher
    learning rate (decision 0059).
    """
    features = keras.Input((None, None, filters))
    x = features
    for _ in range(layers):
        x = conv(x, filters)
    normal = keras.initializers.RandomNormal(stddev=0.01)  # Lin et al. 2017, section 4.1
    prior = keras.initializers.Constant(bias)
    x = keras.layers.Conv2D(outputs, 3, padding="same", kernel_initializer=normal, bias_initializer=prior)(x)
    return keras.Model(features, x)


def conv(x, filters: int, strides: int = 1, activate: bool = True, name: str | None = None):
    """3x3 convolution, exact group norm and, if `activate`, a ReLU of this name."""
    x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False, kernel_initializer="he_normal")(x)
    x = ExactGroupNormalization(groups=8)(x)
    return keras.layers.ReLU(name=name)(x) if activate else x


def _residual_block(x, filters: int, name: str):
    y = conv(conv(x, filters), filters, activate=False)
    return keras.layers.ReLU(name=name)(keras.layers.Add()([x, y]))
