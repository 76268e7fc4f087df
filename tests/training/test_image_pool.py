"""The image pool, by counting: image number k is filled with k and its box is (k, k, k, k)."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training.image_pool import ImagePool

SHAPE = (2, 2, 1)


def numbered(first, batch):
    numbers = tf.range(first, first + batch, dtype=tf.float32)
    return numbers[:, None, None, None] * tf.ones([1, *SHAPE]), numbers[:, None] * tf.ones([1, 4])


def run(size, batch, steps, seed=0, pool=None, first=1):
    """Returns the returned images [steps, batch], and the pool before and after each step [steps, size]."""
    pool = pool or ImagePool(size, batch, SHAPE)
    exchange = tf.function(pool.exchange, autograph=False)
    returned, before, after = [], [], []
    for step in range(steps):
        images, boxes = numbered(first + step * batch, batch)
        before.append(pool.images[:, 0, 0, 0].numpy())
        images, boxes = exchange(images, boxes, tf.constant([seed, step]))
        for k in range(batch):
            # All pixels of the image, and its box, have the same number.
            assert len(np.unique([*images[k].numpy().ravel(), *boxes[k].numpy()])) == 1
        np.testing.assert_array_equal(pool.images[:, 0, 0, 0], pool.boxes[:, 0])
        after.append(pool.images[:, 0, 0, 0].numpy())
        returned.append(images[:, 0, 0, 0].numpy())
    return np.array(returned), np.array(before), np.array(after)


def test_images_are_returned_unchanged_until_the_pool_is_full():
    returned, _, after = run(size=6, batch=2, steps=3)
    np.testing.assert_array_equal(returned.ravel(), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(after[-1], [1, 2, 3, 4, 5, 6])


def test_half_of_the_images_are_exchanged_when_the_pool_is_full():
    steps, batch, size = 200, 3, 12
    returned, before, after = run(size, batch, steps)
    full = size // batch
    exchanged = 0
    for step in range(full, steps):
        new = np.arange(1 + step * batch, 1 + (step + 1) * batch)
        swapped = returned[step] != new
        exchanged += swapped.sum()
        removed = sorted(set(before[step]) - set(after[step]))
        added = sorted(set(after[step]) - set(before[step]))
        assert removed == sorted(returned[step][swapped])
        assert added == sorted(new[swapped])
        assert len(set(after[step])) == size
    count = (steps - full) * batch
    # 588 Bernoulli trials: 4 standard deviations are 48.
    assert abs(exchanged - count / 2) < 2 * np.sqrt(count)


def test_every_slot_is_exchanged():
    """A stored image is replaced with probability of about 1/8 per step: after 120 steps all are replaced."""
    _, _, after = run(size=12, batch=3, steps=120)
    assert after[-1].min() > 12
    assert len({row.argmin() for row in after[4:]}) > 6  # not always in the same slot


def test_exchange_depends_on_the_seed_only():
    first, _, _ = run(8, 2, 40, seed=0)
    again, _, _ = run(8, 2, 40, seed=0)
    other, _, _ = run(8, 2, 40, seed=1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("size,batch", [(0, 2), (1, 2)])
def test_pool_smaller_than_a_batch_is_the_identity(size, batch):
    pool = ImagePool(size, batch, SHAPE)
    images, boxes = numbered(1, batch)
    same_images, same_boxes = pool.exchange(images, boxes, tf.constant([0, 0]))
    assert same_images is images
    assert same_boxes is boxes


def test_size_is_rounded_down_to_whole_batches():
    assert ImagePool(50, 4, SHAPE).size == 48


def test_pool_restored_from_a_checkpoint_continues_identically(tmp_path):
    """Half full (2 steps) or full (9 steps)."""
    for steps in (2, 9):
        pool = ImagePool(8, 2, SHAPE)
        run(8, 2, steps, pool=pool)
        saved = tf.train.Checkpoint(pool=pool).save(str(tmp_path / "pool"))
        fresh = ImagePool(8, 2, SHAPE)
        tf.train.Checkpoint(pool=fresh).restore(saved).assert_consumed()
        expected, _, _ = run(8, 2, 20, pool=pool, first=100, seed=5)
        found, _, _ = run(8, 2, 20, pool=fresh, first=100, seed=5)
        np.testing.assert_array_equal(found, expected)


def test_eager_and_graph_agree():
    eager, graph = ImagePool(4, 2, SHAPE), ImagePool(4, 2, SHAPE)
    traced = tf.function(graph.exchange)
    for step in range(12):
        images, boxes = numbered(1 + 2 * step, 2)
        seed = tf.constant([3, step])
        for a, b in zip(eager.exchange(images, boxes, seed), traced(images, boxes, seed), strict=True):
            np.testing.assert_array_equal(a, b)
    assert traced.experimental_get_tracing_count() == 1
