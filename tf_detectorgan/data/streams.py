"""Endless, reshuffled passes over undecoded records, which can start at any element.

Element p of a stream is a function of (seed, stream, p) alone. Each record occurs once per epoch e, which is
the elements e * count to (e + 1) * count - 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from tf_detectorgan.data import draws
from tf_detectorgan.errors import InputError

MEMORY_LIMIT = 512 * 2**20  # bytes of undecoded records of one stream that may be held in memory


@dataclasses.dataclass(frozen=True)
class Host:
    """One of the processes that train together. It decodes and gets only its own rows of each batch."""

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> np.ndarray:
        """Returns bool [batch_size]: True for this host's rows.

        Raises:
          ValueError: the rows cannot be divided equally among the hosts.
        """
        if batch_size % self.count:
            raise ValueError(f"{batch_size} rows are not divisible by {self.count} hosts")
        return np.arange(batch_size) // (batch_size // self.count) == self.index


SINGLE_HOST = Host()


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """Undecoded records to draw from: held in memory, or read in blocks if they are too large."""

    strings: tf.data.Dataset  # of serialized Examples ([] string), in a fixed order
    count: int
    held: tf.Tensor | None  # [count] string, all of `strings`; None: too large
    block: int  # records that are shuffled together if they are not held


def open_source(strings: tf.data.Dataset, name: str, memory_limit: int = MEMORY_LIMIT) -> RecordSource:
    """Reads the records once: into memory if they fit into `memory_limit` bytes, otherwise to count them.

    Raises:
      InputError: there are no records.
    """
    held: list[bytes] = []
    size = count = 0
    for chunk in strings.batch(64).as_numpy_iterator():
        count += len(chunk)
        size += sum(map(len, chunk))
        if size <= memory_limit:
            held.extend(chunk)
        else:
            held.clear()
    if not count:
        raise InputError(f"{name}: has no images; prepare a data set that has some")
    block = max(memory_limit // 2 * count // size, 1)
    return RecordSource(strings, count, tf.constant(held) if held else None, block)


def endless(source: RecordSource, seed: int, stream: str, start: int) -> tf.data.Dataset:
    """Returns (p, serialized Example) for p = start, start + 1, ...; earlier elements are not decoded."""
    first_epoch, within = divmod(start, source.count)
    epochs = tf.data.Dataset.range(first_epoch, tf.int64.max)
    if source.held is not None:
        held = source.held  # captured by the closure, not copied into a graph

        def one_epoch(epoch):
            return tf.data.Dataset.from_tensor_slices(
                draws.shuffled(tf.range(source.count), seed, stream, epoch)
            )

        strings = epochs.flat_map(one_epoch).skip(within).map(lambda index: held[index])
    else:
        strings = epochs.flat_map(lambda epoch: _by_blocks(source, seed, stream, epoch)).skip(within)
    return strings.enumerate(start)


def _by_blocks(source, seed, stream, epoch):
    """Returns one epoch, shuffled in blocks whose borders differ between epochs (decision 0030)."""
    # A negative number, because the draws of the elements are numbered from 0.
    draw = draws.uniforms(seed, stream, -1 - epoch, 1)[0]
    border = 1 + tf.cast(draws.pick(draw, source.block), tf.int64)
    blocks = source.strings.take(border).batch(source.block)
    blocks = blocks.concatenate(source.strings.skip(border).batch(source.block))
    return blocks.enumerate().flat_map(
        lambda number, block: tf.data.Dataset.from_tensor_slices(
            draws.shuffled(block, seed, stream, epoch, number)
        )
    )
