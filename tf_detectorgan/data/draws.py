"""Stateless random numbers: each is a function of the seed, the stream and the element's number.

No state is kept, so the numbers of step t are the same in an uninterrupted and a resumed run.
Letters: N images, D draws per image, K candidates.
"""

from __future__ import annotations

import tensorflow as tf

# Append only: the index in this list is part of the seed.
STREAMS = (
    "x",
    "y",
    "u",
    "y2",
    "real",
    "synthetic",
    "clean",
    "synthesis",
    "y_later",
    "residual_scale",
    "objects",
)
_PURPOSES = ("order", "draws")


def _seed(seed: int, stream: str, purpose: str, *numbers) -> tf.Tensor:
    state = tf.constant([seed, STREAMS.index(stream) * len(_PURPOSES) + _PURPOSES.index(purpose)], tf.int64)
    for number in numbers:
        state = tf.random.experimental.stateless_fold_in(state, tf.cast(number, tf.int64), alg="philox")
    return state


def uniforms(seed: int, stream: str, number, count: int, *part) -> tf.Tensor:
    """Returns `count` numbers in [0, 1), float32 [count], for (a part of) a stream's element `number`."""
    return tf.random.stateless_uniform([count], _seed(seed, stream, "draws", number, *part), alg="philox")


def batch_uniforms(seed: int, stream: str, numbers, count: int, *part) -> tf.Tensor:
    """Returns the `uniforms` of a stream's elements `numbers` [N]: float32 [N, count]."""
    return tf.map_fn(
        lambda number: uniforms(seed, stream, number, count, *part), numbers, fn_output_signature=tf.float32
    )


def shuffled(values, seed: int, stream: str, *numbers) -> tf.Tensor:
    """Returns `values` [K, ...] in random order; `numbers` (epoch, block) identify the shuffle."""
    return tf.random.experimental.stateless_shuffle(
        values, _seed(seed, stream, "order", *numbers), alg="philox"
    )


def pick(draw, count) -> tf.Tensor:
    """Maps `draw` in [0, 1) to 0..count-1, int32 of the shape of `draw` and `count` (at least 1)."""
    count = tf.cast(count, tf.int32)
    # draw * count may round up to count.
    return tf.minimum(tf.cast(draw * tf.cast(count, tf.float32), tf.int32), count - 1)


def pick_true(draw, candidates) -> tf.Tensor:
    """Returns the index [N] int32 of a True entry of `candidates` [N, K], equally likely by `draw` [N]."""
    rank = tf.cumsum(tf.cast(candidates, tf.int32), axis=-1)
    chosen = pick(draw, rank[:, -1]) + 1
    return tf.argmax(candidates & (rank == chosen[:, None]), axis=-1, output_type=tf.int32)
