"""PatchGAN discriminators. DIS_globalX and DIS_globalY classify whole images, DIS_localX crops of objects.

In the paper DIS_globalX separates real *labelled* images y from G_X(x), and DIS_globalY separates clean
images x from G_Y(y). Letters: N images, H, W, C channels.
"""

from __future__ import annotations

import keras

from tf_detectorgan.models.layers import InstanceNormalization, weights_dtype


def patch_gan(
    image_shape: tuple[int, int, int], *, filters: int = 64, layers: int = 3, name: str = "discriminator"
) -> keras.Model:
    """Returns a PatchGAN (Isola et al. 2017): C64-C128-C256-C512, 4x4 kernels, the first `layers` strided.

    The output is logits [N, h, w, 1]. Their receptive field is 70 x 70 pixels with 3 layers, 34 x 34 with 2.
    """

    def leaky(x):
        return keras.layers.LeakyReLU(negative_slope=0.2)(x)

    inputs = keras.Input(image_shape)
    x = leaky(keras.layers.Conv2D(filters, 4, 2, "same")(inputs))
    for i in range(1, layers):
        x = keras.layers.Conv2D(min(2**i, 8) * filters, 4, 2, "same", use_bias=False)(x)
        x = leaky(InstanceNormalization()(x))
    x = keras.layers.Conv2D(min(2**layers, 8) * filters, 4, 1, "same", use_bias=False)(x)
    x = leaky(InstanceNormalization()(x))
    x = keras.layers.Conv2D(1, 4, 1, "same", dtype=weights_dtype())(x)
    return keras.Model(inputs, x, name=name)
