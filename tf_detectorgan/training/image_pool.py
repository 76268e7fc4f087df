"""The pool of earlier synthetic images for training discriminators (Shrivastava et al. 2017, section 2.3).

Letters: P images in the pool, N images in the batch, H, W, C channels.
"""

from __future__ import annotations

import tensorflow as tf


class ImagePool(tf.Module):
    """A pool of generated images with their boxes, in variables, so that it is part of the checkpoint.

    Each replica has its own pool; its variables are not mirrored. Until the pool is full, images are stored
    and returned unchanged. Then each image of a batch is exchanged with a stored one with probability 1/2.
    """

    def __init__(
        self, size: int, batch_size: int, image_shape: tuple[int, int, int], name: str = "image_pool"
    ):
        """`size` is rounded down to whole batches. If it is less than a batch, `exchange` is the identity."""
        super().__init__(name=name)
        self.size = size // batch_size * batch_size
        self.images = tf.Variable(tf.zeros([self.size, *image_shape]), trainable=False, name="images")
        self.boxes = tf.Variable(tf.zeros([self.size, 4]), trainable=False, name="boxes")
        self.stored = tf.Variable(0, trainable=False, name="stored")

    def exchange(self, images, boxes, seed):
        """Returns the images [N, H, W, C] and boxes [N, 4] to train a discriminator on, and updates the pool.

        Args:
          seed: int32 [2], different at every step and replica; determines which images are exchanged.
        """
        if not self.size:
            return images, boxes
        batch = images.shape[0]
        filling = self.stored < self.size
        # int64, because TensorFlow slices and compares int32 on the host: `order` would be copied there.
        order = tf.cast(tf.argsort(tf.random.stateless_uniform([self.size], seed)), tf.int64)[:batch]
        slots = tf.where(filling, tf.cast(self.stored + tf.range(batch), tf.int64), order)
        coin = tf.random.stateless_uniform([batch], seed + 1) < 0.5
        take = ~filling & coin
        keep = filling | coin
        # Not a scatter, which runs on the host with determinism: the pool would be copied there and back.
        chosen = slots[:, None] == tf.range(self.size, dtype=tf.int64)
        stores = chosen & keep[:, None]  # [N, P], at most one N a slot
        stored, source = tf.reduce_any(stores, 0), tf.argmax(stores, 0)
        exchanged = []
        for pool, new in ((self.images, images), (self.boxes, boxes)):
            old = tf.gather(pool, slots)
            pool.assign(tf.where(_expanded(stored, pool), tf.gather(new, source), pool))
            exchanged.append(tf.where(_expanded(take, new), old, new))
        self.stored.assign(tf.minimum(self.stored + batch, self.size))
        return tuple(exchanged)


def _expanded(mask, values):
    """Returns `mask` [N] with as many dimensions as `values` [N, ...]."""
    return tf.reshape(mask, [-1] + [1] * (values.shape.rank - 1))
