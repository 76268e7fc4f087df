"""Copies batches to the GPU before the step needs them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

BUFFER_SIZE = 2  # batches on the device that no step has used yet


def prefetch_to_device(batches: Iterable, device: str) -> Iterator:
    """Yields the batches in order; a thread copies their float tensors to `device`, BUFFER_SIZE in advance.

    Tensors of other types are not copied: TensorFlow passes int32 and strings to functions in host memory, so
    a copy on the device would be copied back in every step. tf.data's prefetch_to_device copies all types.
    """
    source = iter(batches)

    def copy_next():
        batch = next(source, None)
        if batch is None:
            return None
        with tf.device(device):
            return tf.nest.map_structure(lambda t: tf.identity(t) if t.dtype.is_floating else t, batch)

    with ThreadPoolExecutor(max_workers=1) as thread:
        copies = collections.deque(thread.submit(copy_next) for _ in range(BUFFER_SIZE))
        while (batch := copies.popleft().result()) is not None:
            copies.append(thread.submit(copy_next))
            yield batch
