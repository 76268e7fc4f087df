"""The pool's rule by counting. Image number k is filled with k and its box is (k, k, k, k)."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training.image_pool import ImagePool

SHAPE = (2, 2, 1)


def numbered(first, batch):
    numbers = tf.range(first, first + batch, dtype=tf.float32)
    return numbers[:, None, None, None] * tf.ones([1, *SHAPE]), numbers[:, None] * tf.ones([1, 4])


def run(size, batch, steps, seed=0, pool=None, first=1):
    """What came back at each step [steps, batch], and what the pool held before and after [steps, size]."""
    pool = pool or ImagePool(size, batch, SHAPE)
    exchange = tf.function(pool.exchange, autograph=False)
    shown, before, after = [], [], []
    for step in range(steps):
        images, boxes = numbered(first + step * batch, batch)
        before.append(pool.images[:, 0, 0, 0].numpy())
        images, boxes = exchange(images, boxes, tf.constant([seed, step]))
        for k in range(batch):
            # An image is whole, and its box is its own.
            assert len(np.unique([*images[k].numpy().ravel(), *boxes[k].numpy()])) == 1
        np.testing.assert_array_equal(pool.images[:, 0, 0, 0], pool.boxes[:, 0])
        after.append(pool.images[:, 0, 0, 0].numpy())
        shown.append(images[:, 0, 0, 0].numpy())
    return np.array(shown), np.array(before), np.array(after)


def test_it_fills_first_and_passes_images_unchanged():
    shown, _, after = run(size=6, batch=2, steps=3)
    np.testing.assert_array_equal(shown.ravel(), [1, 2, 3, 4, 5, 6])
    np.testing.assert_array_equal(after[-1], [1, 2, 3, 4, 5, 6])


def test_then_half_are_exchanged_for_stored_ones_which_they_replace():
    steps, batch, size = 200, 3, 12
    shown, before, after = run(size, batch, steps)
    full = size // batch
    exchanged = 0
    for step in range(full, steps):
        new = np.arange(1 + step * batch, 1 + (step + 1) * batch)
        swapped = shown[step] != new
        exchanged += swapped.sum()
        left = sorted(set(before[step]) - set(after[step]))
        came = sorted(set(after[step]) - set(before[step]))
        assert left == sorted(shown[step][swapped])  # what is shown instead has left the pool
        assert came == sorted(new[swapped])  # what it was exchanged for has taken its place
        assert len(set(after[step])) == size
    count = (steps - full) * batch
    # 588 tosses of a coin: 4 standard deviations are 48.
    assert abs(exchanged - count / 2) < 2 * np.sqrt(count)


def test_every_slot_takes_part():
    """A stored image has a chance of about 1/8 a step to leave: after 120 steps nothing old is left."""
    _, _, after = run(size=12, batch=3, steps=120)
    assert after[-1].min() > 12
    assert len({row.argmin() for row in after[4:]}) > 6  # and not always in the same place


def test_the_seed_alone_decides():
    first, _, _ = run(8, 2, 40, seed=0)
    again, _, _ = run(8, 2, 40, seed=0)
    other, _, _ = run(8, 2, 40, seed=1)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@pytest.mark.parametrize("size,batch", [(0, 2), (1, 2)])
def test_without_room_for_a_batch_it_is_the_identity(size, batch):
    pool = ImagePool(size, batch, SHAPE)
    images, boxes = numbered(1, batch)
    same_images, same_boxes = pool.exchange(images, boxes, tf.constant([0, 0]))
    assert same_images is images
    assert same_boxes is boxes


def test_size_is_rounded_down_to_whole_batches():
    assert ImagePool(50, 4, SHAPE).size == 48


def test_it_continues_from_a_checkpoint(tmp_path):
    """Half filled (2 steps) or full (9): loaded into a fresh pool, it goes on as if nothing had happened."""
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
