"""PS-GAN's and pix2pix's generator: a U-Net that replaces a box of noise by an object.

Letters: N images, S side, C channels, f filters.
"""

from __future__ import annotations

import keras

from tf_detectorgan.models.generators import Composition, on_content
from tf_detectorgan.models.layers import InstanceNormalization, weights_dtype


def unet(image_shape: tuple[int, int, int], *, filters: int = 64, name: str = "generator") -> keras.Model:
    """Returns a U-Net from S x S to 1 x 1 and back (Isola et al. 2017, 6.1.1): 8 halvings at 256 pixels.

    The encoder is Cf-C2f-C4f-C8f-C8f-..., 4x4 kernels of stride 2. The decoder mirrors it, with skip
    connections; the output is tanh. There is no dropout, and upsampling replaces transposed convolutions
    (decisions 0105, 0041).

    Args:
      image_shape: (S, S, C), S a power of 2, at least 8: 256 in the paper, 128 or 64 for CPUs.
      filters: f, 64 in the paper.

    Returns:
      A model from [N, S, S, C] to the same shape.
    """
    height, width, channels = image_shape
    halvings = height.bit_length() - 1
    if height != width or height != 2**halvings or halvings < 3:
        raise ValueError(f"the U-Net needs square images, side a power of 2 >= 8; got {height}x{width}")
    widths = [min(2**i, 8) * filters for i in range(halvings)]

    def normalized(x, width, side, kernel, stride):
        one = side == 1  # normalisation would set a single pixel to 0; on larger maps it cancels a bias
        x = keras.layers.Conv2D(width, kernel, stride, "same", use_bias=one)(x)
        return x if one else InstanceNormalization()(x)

    inputs = keras.Input(image_shape)
    x = keras.layers.Conv2D(widths[0], 4, 2, "same")(inputs)
    skips = [x]
    for i in range(1, halvings):
        x = keras.layers.LeakyReLU(negative_slope=0.2)(x)
        x = normalized(x, widths[i], height >> (i + 1), 4, 2)
        skips.append(x)
    for i in reversed(range(halvings - 1)):
        x = keras.layers.UpSampling2D(2)(keras.layers.ReLU()(x))
        x = normalized(x, widths[i], height >> (i + 1), 3, 1)
        x = keras.layers.Concatenate()([x, skips[i]])
    x = keras.layers.UpSampling2D(2)(keras.layers.ReLU()(x))
    x = keras.layers.Conv2D(channels, 3, 1, "same", activation="tanh", dtype=weights_dtype())(x)
    return keras.Model(inputs, x, name=name)


def redraw(G, noised, boxes, content, composition: Composition):
    """Returns the synthetic images [N, S, S, C] in [-1, 1] of `noised` [N, S, S, C], whose boxes are noise.

    Output "full_image": G's output [paper]; "blend_in_box": that, blended into the input near boxes [N, 4].
    Padding outside content [N, 4] is unchanged.
    """
    drawn = G(noised)
    if composition.output == "full_image":
        return on_content(drawn, noised, content)
    return noised + composition.blend(boxes, content, *noised.shape[1:3]) * (drawn - noised)
