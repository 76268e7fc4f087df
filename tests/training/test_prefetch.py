"""Prefetching to a device: order of the batches, devices of their tensors, buffer size, errors."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.training import prefetch

CPU_1 = "/job:localhost/replica:0/task:0/device:CPU:1"


def numbered(count):
    """Returns a dataset whose batch t is filled with the number t."""
    return tf.data.Dataset.range(count).map(
        lambda t: Labelled(
            tf.fill([2, 4, 4, 1], tf.cast(t, tf.float32)),
            tf.fill([2, 1, 4], 0.5),
            tf.fill([2, 1], tf.cast(t, tf.int32)),
        )
    )


@pytest.mark.parametrize("count", [0, 1, 7])
def test_floats_are_on_the_device_in_order_and_integers_on_the_host(count):
    found = list(prefetch.prefetch_to_device(numbered(count), CPU_1))
    assert len(found) == count
    for t, batch in enumerate(found):
        assert isinstance(batch, Labelled)
        assert {batch.images.device, batch.boxes.device} == {CPU_1}
        assert batch.labels.device.endswith("CPU:0")
        np.testing.assert_array_equal(batch.images, np.full([2, 4, 4, 1], t))
        np.testing.assert_array_equal(batch.labels, np.full([2, 1], t))


def test_at_most_buffer_size_batches_are_drawn_in_advance():
    drawn = []

    def source():
        for t in range(100):
            drawn.append(t)
            yield tf.constant(float(t))

    batches = prefetch.prefetch_to_device(source(), CPU_1)
    assert float(next(batches)) == 0
    batches.close()  # waits for the thread
    assert len(drawn) <= 1 + prefetch.BUFFER_SIZE


def test_pipeline_error_is_raised_at_the_next_of_its_batch():
    def source():
        yield tf.constant(1.0)
        raise ValueError("record 2 is damaged")

    batches = prefetch.prefetch_to_device(source(), CPU_1)
    assert float(next(batches)) == 1
    with pytest.raises(ValueError, match="record 2"):
        next(batches)
