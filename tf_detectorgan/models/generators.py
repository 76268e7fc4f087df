"""The generators G_X and G_Y: CycleGAN's ResNet, and the composition of its output with its input.

G_X inserts an object at the mask m; G_Y removes the objects at the mask.

Letters: N images, H, W, C channels, M mask channels (one a class), K boxes. Images are float32 in [-1, 1].
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Insertion, Labelled
from tf_detectorgan.models.convolutions import DoublingConv2D, NarrowConv2D
from tf_detectorgan.models.layers import InstanceNormalization, ReflectionPadding, weights_dtype


def default_blocks(side: int) -> int:
    """Returns the paper's 9 residual blocks, or 6 for images of up to 128 pixels."""
    return 6 if side <= 128 else 9


def resnet_generator(
    image_shape: tuple[int, int, int],
    input_channels: int,
    *,
    filters: int = 64,
    blocks: int | None = None,
    residual: bool = False,
    name: str = "generator",
) -> keras.Model:
    """Builds c7s1-f, d2f, d4f, R4f x blocks, u2f, uf, c7s1-C (Zhu et al. 2017, appendix 7.2).

    u is nearest-neighbour upsampling and a convolution.

    Args:
      image_shape: (H, W, C); H and W divisible by 4.
      input_channels: channels of the input [N, H, W, input_channels].
      filters: f, 64 in the paper.
      blocks: residual blocks; None takes `default_blocks`.
      residual: the output is an unbounded difference image, zero before training; otherwise a tanh.

    Returns:
      A model from [N, H, W, input_channels] to [N, H, W, C].
    """
    height, width, channels = image_shape
    if height % 4 or width % 4:
        raise ValueError(f"the generator needs height and width divisible by 4, got {height}x{width}")
    if blocks is None:
        blocks = default_blocks(max(height, width))

    # No bias: the normalisation that follows would remove it.
    def conv(x, filters, size, strides=1, padding="valid", activate=True):
        x = InstanceNormalization()(keras.layers.Conv2D(filters, size, strides, padding, use_bias=False)(x))
        return keras.layers.ReLU()(x) if activate else x

    inputs = keras.Input((height, width, input_channels))
    x = conv(ReflectionPadding(3)(inputs), filters, 7)
    x = conv(x, 2 * filters, 3, strides=2, padding="same")
    x = conv(x, 4 * filters, 3, strides=2, padding="same")
    for _ in range(blocks):
        y = conv(ReflectionPadding(1)(x), 4 * filters, 3)
        y = conv(ReflectionPadding(1)(y), 4 * filters, 3, activate=False)
        x = keras.layers.Add()([x, y])
    for f in (2 * filters, filters):
        # Not CycleGAN's transposed convolution, which causes checkerboard artifacts (decision 0041).
        x = keras.layers.ReLU()(InstanceNormalization()(DoublingConv2D(f, use_bias=False)(x)))
    x = NarrowConv2D(
        channels,
        7,
        activation=None if residual else "tanh",
        kernel_initializer="zeros" if residual else "glorot_uniform",
        dtype=weights_dtype(),
    )(ReflectionPadding(3)(x))
    return keras.Model(inputs, x, name=name)


@dataclasses.dataclass(frozen=True)
class Composition:
    """How a generator's output becomes an image.

    Attributes:
      output: "full_image": the network's output is the image [paper]; "blend_in_box": it is blended into the
        input by a feathered box mask.
      generator_input: "mask": G_X's input is the image and the mask [paper]. "mask_and_object": also the
        image with the matched object pasted in, to which G_X's output is added; it is 0 before training.
      feather: width of the blend outside the box, as a fraction of the box's longer side; never less than 2
        pixels, so 0 is a seam of 2 pixels.
      classes: number of classes; the mask has one channel each.
    """

    output: str
    generator_input: str
    feather: float
    classes: int

    def input_channels(self, channels: int) -> int:
        """Returns the number of channels of G_X's input for images with `channels`."""
        return (2 * channels if self.generator_input == "mask_and_object" else channels) + self.classes

    def blend(self, boxes, content, height: int, width: int):
        """Returns alpha [N, H, W, 1] in [0, 1] of boxes [N, 4], or of unions of boxes [N, K, 4].

        It is 0 outside of the images' content [N, 4], so that padding does not change.
        """
        if boxes.shape.rank == 2:
            boxes = boxes[:, None]
        feather = reach(boxes, self.feather)[..., None, None]
        alpha = boxes_lib.feathered_mask(boxes, height, width, feather)
        alpha = tf.where(
            (boxes_lib.longer_side(boxes) > 0)[..., None, None], alpha, 0.0
        )  # padded boxes have no extent
        return (tf.reduce_max(alpha, axis=1) * boxes_lib.mask(content, height, width))[..., None]


def reach(boxes, feather: float):
    """Returns the blend's width outside boxes [..., 4], pixels [...]: `feather` x longer side, at least 2."""
    return tf.maximum(2.0, feather * boxes_lib.longer_side(boxes))


def class_mask(boxes, labels, classes: int, height: int, width: int):
    """Returns m [N, H, W, classes]: 1 inside boxes [N, K, 4] of labels [N, K] (label -1: none)."""
    inside = boxes_lib.mask(boxes, height, width)  # [N, K, H, W]
    one_hot = tf.one_hot(labels, classes)  # [N, K, classes]
    return tf.reduce_max(inside[..., None] * one_hot[:, :, None, None, :], axis=1)


def paste(x, exemplars, alpha):
    """Returns x with the exemplars [N, H, W, C] pasted in by the feathered mask alpha [N, H, W, 1].

    A constant is first added to each exemplar, so that its mean over the feather, where 0 < alpha < 1, equals
    that of x. This avoids a step at the seam.
    """
    seam = tf.where((alpha > 0) & (alpha < 1), 1.0, 0.0)
    offset = tf.math.divide_no_nan(
        tf.reduce_sum(seam * (x - exemplars), [1, 2], keepdims=True),
        tf.reduce_sum(seam, [1, 2], keepdims=True),
    )
    return x + alpha * (tf.clip_by_value(exemplars + offset, -1.0, 1.0) - x)


def bbox_target(x, insertion: Insertion, composition: Composition):
    """Returns the target [N, H, W, C] of BboxLoss in `insertion.boxes`: the matched object.

    With generator_input "mask_and_object" it is the object as pasted, with its brightness adapted to its new
    surroundings. Otherwise BboxLoss would make the object's background too dark wherever x is brighter.
    """
    if composition.generator_input == "mask":
        return insertion.exemplars
    return paste(x, insertion.exemplars, composition.blend(insertion.boxes, insertion.content, *x.shape[1:3]))


def bbox_weight(insertion: Insertion, composition: Composition, height: int, width: int):
    """Returns the weight [N, H, W, 1] of each pixel in BboxLoss: 1 in the box.

    With generator_input "mask_and_object" the feather around the box counts too: the target is known there,
    and no other loss constrains G_X's output in it.
    """
    if composition.generator_input == "mask":
        return boxes_lib.mask(insertion.boxes, height, width)[..., None]
    return composition.blend(insertion.boxes, insertion.content, height, width)


def insert(G_X, x, insertion: Insertion, composition: Composition, residual_scale=None):
    """Returns G_X(x, m): x [N, H, W, C] with one object inserted at `insertion.boxes`, in [-1, 1].

    `residual_scale` [N] multiplies the difference that G_X adds to the pasted object; None: 1, as with
    generator_input "mask", where there is no such difference.
    """
    boxes, labels = insertion.boxes[:, None], insertion.labels[:, None]
    return _draw(G_X, x, boxes, labels, insertion.content, insertion.exemplars, composition, residual_scale)


def reinsert(G_X, image, y: Labelled, content, composition: Composition):
    """Returns `image` [N, H, W, C] with y's own objects inserted by G_X, for y's cycle and identity losses.

    `content` [N, 4] is the box of the pixels that are not padding.
    """
    return _draw(G_X, image, y.boxes, y.labels, content, y.images, composition)


def remove(G_Y, y, boxes, labels, content, composition: Composition):
    """Returns G_Y(y, m): y [N, H, W, C] with the objects in boxes [N, K, 4] of labels [N, K] removed.

    `content` [N, 4] is the box of the pixels that are not padding.
    """
    height, width = y.shape[1:3]
    m = class_mask(boxes, labels, composition.classes, height, width)
    drawn = G_Y(tf.concat([y, m], -1))
    if composition.output == "full_image":
        return on_content(drawn, y, content)
    return y + composition.blend(boxes, content, height, width) * (drawn - y)


def _draw(G_X, x, boxes, labels, content, exemplars, composition: Composition, residual_scale=None):
    height, width = x.shape[1:3]
    m = class_mask(boxes, labels, composition.classes, height, width)
    alpha = composition.blend(boxes, content, height, width)
    if composition.generator_input == "mask":
        drawn = G_X(tf.concat([x, m], -1))
        return (
            on_content(drawn, x, content) if composition.output == "full_image" else x + alpha * (drawn - x)
        )
    pasted = paste(x, exemplars, alpha)
    difference = G_X(tf.concat([x, pasted, m], -1))
    if residual_scale is not None:
        difference *= residual_scale[:, None, None, None]
    drawn = pasted + (alpha * difference if composition.output == "blend_in_box" else difference)
    return on_content(tf.clip_by_value(drawn, -1.0, 1.0), x, content)


def on_content(drawn, image, content):
    """Returns `drawn` [N, H, W, C] inside content [N, 4] and `image` outside."""
    return tf.where(boxes_lib.mask(content, *image.shape[1:3])[..., None] > 0, drawn, image)
