"""The history of synthetic images that discriminators are trained on (Shrivastava et al. 2017, section 2.3).

Letters: P images in the pool, N in the batch, H, W, C channels.
"""

from __future__ import annotations

import tensorflow as tf


class ImagePool(tf.Module):
    """A pool of generated images with their boxes, in graph variables, so that it is part of the checkpoint.

    One pool belongs to one replica; its variables are not mirrored. While the pool fills, images pass
    unchanged and are stored. Then each image of a batch is, with probability 1/2, exchanged for a stored one,
    which it replaces.
    """

    def __init__(
        self, size: int, batch_size: int, image_shape: tuple[int, int, int], name: str = "image_pool"
    ):
        """`size` is rounded down to whole batches; 0 (or less than a batch) makes `exchange` the identity."""
        super().__init__(name=name)
        self.size = size // batch_size * batch_size
        self.images = tf.Variable(tf.zeros([self.size, *image_shape]), trainable=False, name="images")
        self.boxes = tf.Variable(tf.zeros([self.size, 4]), trainable=False, name="boxes")
        self.stored = tf.Variable(0, trainable=False, name="stored")

    def exchange(self, images, boxes, seed):
        """Images [N, H, W, C] and boxes [N, 4] to show a discriminator.

        Args:
          seed: int32 [2], different at every step and replica; alone decides what is exchanged.
        """
        if not self.size:
            return images, boxes
        batch = images.shape[0]
        filling = self.stored < self.size
        # int64: GPUs slice and compare int32 on the host, and `order` would travel there.
        order = tf.cast(tf.argsort(tf.random.stateless_uniform([self.size], seed)), tf.int64)[:batch]
        slots = tf.where(filling, tf.cast(self.stored + tf.range(batch), tf.int64), order)
        coin = tf.random.stateless_uniform([batch], seed + 1) < 0.5
        take = ~filling & coin
        keep = filling | coin
        # Not a scatter, which deterministic GPUs do on the host: the whole pool would travel there and back.
        chosen = slots[:, None] == tf.range(self.size, dtype=tf.int64)
        stores = chosen & keep[:, None]  # [N, P], at most one N a slot
        stored, source = tf.reduce_any(stores, 0), tf.argmax(stores, 0)
        shown = []
        for pool, new in ((self.images, images), (self.boxes, boxes)):
            old = tf.gather(pool, slots)
            pool.assign(tf.where(_as(stored, pool), tf.gather(new, source), pool))
            shown.append(tf.where(_as(take, new), old, new))
        self.stored.assign(tf.minimum(self.stored + batch, self.size))
        return tuple(shown)


def _as(chosen, values):
    """`chosen` [N] with as many dimensions as `values` [N, ...]."""
    return tf.reshape(chosen, [-1] + [1] * (values.shape.rank - 1))
