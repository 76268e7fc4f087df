"""Noise in a box, which PS-GAN's generator replaces by a person (Ouyang et al. 2018, section 3.1).

Letters: N images, S stored side, C channels.
"""

from __future__ import annotations

import tensorflow as tf

from tf_detectorgan import boxes as box_ops


def fill(images, boxes, draws) -> tf.Tensor:
    """Returns `images` [N, S, S, C] with the pixels of boxes [N, 4] black, grey or white, a third each.

    The noise of an image depends only on its row of `draws` [N, 2] float32, not on the rest of the batch.
    """
    height, width = images.shape[1:3]

    def levels(seed):  # -1, 0 or 1, the same in all channels
        return tf.random.stateless_uniform([height, width, 1], seed, -1, 2, dtype=tf.int32, alg="philox")

    noise = tf.map_fn(levels, tf.bitcast(draws, tf.int32))
    inside = box_ops.mask(boxes, height, width)[..., None] > 0
    return tf.where(inside, tf.cast(noise, images.dtype), images)
