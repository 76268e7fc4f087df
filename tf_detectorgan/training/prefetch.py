"""Copies batches to the GPU before the step asks for them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf

AHEAD = 2  # batches on the device that no step has taken yet


def ahead(batches: Iterable, device: str) -> Iterator:
    """The batches in their order; a thread copies their floats to `device`, up to AHEAD batches early.

    Other types stay: TensorFlow passes int32 and strings to functions in the host's memory, so a copy on the
    device would be fetched back in every step. That is why this is not tf.data's prefetch_to_device.
    """
    source = iter(batches)

    def copied():
        batch = next(source, None)
        if batch is None:
            return None
        with tf.device(device):
            return tf.nest.map_structure(lambda t: tf.identity(t) if t.dtype.is_floating else t, batch)

    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = collections.deque(thread.submit(copied) for _ in range(AHEAD))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(copied))
            yield batch
