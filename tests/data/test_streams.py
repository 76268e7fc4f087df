import itertools

import pytest
import tensorflow as tf

from tf_detectorgan.data import streams
from tf_detectorgan.errors import InputError

N = 10


def open_numbers(memory_limit):
    strings = tf.data.Dataset.from_tensor_slices([f"{i:04d}" for i in range(N)])
    return streams.open_source(strings, "numbers", memory_limit)


def take(source, count, seed=0, start=0):
    elements = streams.endless(source, seed, "x", start).as_numpy_iterator()
    return [(int(number), int(text)) for number, text in itertools.islice(elements, count)]


# Records have 4 bytes. A limit of 40 holds all in memory; one of 24 reads blocks of 12 bytes, 3 records.
@pytest.fixture(params=[40, 24], ids=["held", "blocks"])
def source(request):
    return open_numbers(request.param)


def test_records_are_held_in_memory_if_they_fit_into_the_limit():
    assert open_numbers(40).held is not None
    assert open_numbers(24).held is None
    assert open_numbers(24).block == 3


def test_each_record_occurs_once_per_epoch_in_a_new_order(source):
    values = [value for _, value in take(source, 4 * N)]
    epochs = [values[i * N : (i + 1) * N] for i in range(4)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize("start", [N, 2 * N + 3])
def test_starting_at_an_element_equals_skipping_to_it(source, start):
    assert take(source, 2 * N, start=start) == take(source, start + 2 * N)[start:]


def test_the_order_depends_on_the_seed_and_not_on_the_global_seed(source):
    first = take(source, N)
    tf.random.set_seed(1234)
    assert take(source, N) == first
    assert take(source, N, seed=1) != first


def test_a_source_without_records_is_an_error_naming_it():
    with pytest.raises(InputError, match="train_clean"):
        streams.open_source(tf.data.Dataset.from_tensor_slices(tf.zeros([0], tf.string)), "train_clean")
