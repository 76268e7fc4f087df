import numpy as np
import tensorflow as tf

from tf_detectorgan.data import draws


def test_uniforms_depend_on_seed_stream_and_number_only():
    first = draws.uniforms(3, "x", 7, 5).numpy()
    tf.random.set_seed(99)
    np.testing.assert_array_equal(draws.uniforms(3, "x", 7, 5), first)
    others = [draws.uniforms(*other, 5).numpy() for other in [(4, "x", 7), (3, "y", 7), (3, "x", 8)]]
    assert not any(np.intersect1d(other, first).size for other in others)


def test_draws_are_uniform_over_elements():
    numbers = tf.data.Dataset.range(1000).map(lambda number: draws.uniforms(0, "y", number, 3))
    values = np.stack(list(numbers.as_numpy_iterator()))
    # The mean of 1000 uniforms has a standard deviation of sqrt(1/12/1000) = 0.009.
    np.testing.assert_allclose(values.mean(axis=0), 0.5, atol=4 * 0.009)
    assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 4 / np.sqrt(1000)


def test_pick_covers_the_range_and_stays_inside():
    assert draws.pick([0.0, 0.3, 0.34, 0.99, 1.0], 3).numpy().tolist() == [0, 0, 1, 2, 2]


def test_pick_true_picks_true_entries_with_equal_shares():
    candidates = tf.constant([[False, True, False, True, True]] * 6)
    chosen = draws.pick_true(tf.constant([0.0, 0.3, 0.4, 0.6, 0.7, 0.99]), candidates)
    assert chosen.numpy().tolist() == [1, 1, 3, 3, 4, 4]


def test_shuffles_differ_and_contain_every_value():
    first, second = (draws.shuffled(tf.range(20), 0, "x", epoch).numpy().tolist() for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
