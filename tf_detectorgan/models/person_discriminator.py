"""PS-GAN's DIS_person: classifies the crop of one box of any size (Ouyang et al. 2018, section 3.2).

Letters: N images, H, W, C channels. Crops of different sizes share a batch: each is in the top left corner of
a canvas, and the rest is set to 0 after every layer. The results equal those of separate convolutions.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.models.layers import weights_dtype
from tf_detectorgan.resampling import cut

LEVELS = (4, 2, 1)  # bins per side of the spatial pyramid's levels


class PersonDiscriminator(keras.Model):
    """C64 of stride 2, C128-C256-C512 of stride 1, 4x4 kernels; spatial pyramid pooling; one logit."""

    def __init__(self, filters: int = 64, **kwargs):
        super().__init__(autocast=False, **kwargs)  # bfloat16 would move a box by a pixel
        self.convolutions = [keras.layers.Conv2D(2**i * filters, 4, 1 if i else 2, "same") for i in range(4)]
        self.logit = keras.layers.Dense(1, dtype=weights_dtype())

    def call(self, images, boxes):
        """Returns the logits [N, 1, 1, 1] of the crops in boxes [N, 4] of images [N, H, W, C]."""
        x, sizes = cut(images, boxes)
        for convolution in self.convolutions:
            x = keras.ops.leaky_relu(convolution(x), negative_slope=0.2)
            sizes = -(-sizes // convolution.strides[0])
            x *= tf.cast(boxes_lib.mask(boxes_lib.of_sizes(sizes), *x.shape[1:3])[..., None], x.dtype)
        return self.logit(spatial_pyramid(x, sizes))[:, None, None]


def spatial_pyramid(features, sizes):
    """Returns [N, 21 C]: maxima in 4x4, 2x2 and 1 bins of the top left `sizes` [N, 2] of [N, H, W, C].

    Bin i of n goes from floor(i h / n) to ceil((i + 1) h / n) (He et al. 2015, appendix A), so none is empty.
    """
    pooled = []
    for bins in LEVELS:
        rows = _maxima(features, sizes[:, 0], bins)  # [N, bins, W, C]
        cells = _maxima(tf.transpose(rows, [0, 2, 1, 3]), sizes[:, 1], bins)
        pooled.append(tf.reshape(cells, [-1, bins * bins * features.shape[-1]]))
    return tf.concat(pooled, -1)


def _maxima(x, sizes, bins: int):
    """Returns maxima [N, bins, W, C] in `bins` parts of the first sizes [N] rows of x [N, H, W, C]."""
    i = tf.range(bins, dtype=sizes.dtype)
    first = (sizes[:, None] * i // bins)[..., None]
    last = -(-sizes[:, None] * (i + 1) // bins)[..., None]
    row = tf.range(x.shape[1], dtype=sizes.dtype)
    inside = (row >= first) & (row < last)  # [N, bins, H]
    return tf.reduce_max(tf.where(inside[..., None, None], x[:, None], x.dtype.min), axis=2)
