"""Context-based placement draws positions in surroundings like those of labelled objects."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import context_placement

S = 32
WHOLE = tf.constant([[S, S]])


def halves(dark_left):
    """Returns [1, S, S, 1]: a dark and a bright half with a little noise."""
    image = np.random.default_rng(0).normal(0, 0.05, (1, S, S, 1))
    image[:, :, : S // 2] += -0.5 if dark_left else 0.5
    image[:, :, S // 2 :] -= -0.5 if dark_left else 0.5
    return tf.constant(image, tf.float32)


ONE = tf.constant([0])


def positions(context, image, extents, sizes=WHOLE, count=50, label=ONE, bounds=None):
    """Returns box centres [count, 2] of evenly spaced draws; default bounds keep boxes in the content."""
    draws = tf.linspace(0.01, 0.99, count)
    extents = tf.constant([extents], tf.float32)
    first, last = bounds or (extents / 2, tf.cast(sizes, tf.float32) - extents / 2)
    image, sizes, extents, label, first, last = (
        tf.repeat(v, count, axis=0) for v in (image, sizes, extents, label, first, last)
    )
    return context_placement.draw_positions(
        context, image, sizes, extents, label, (first, last), draws
    ).numpy()


def test_positions_lie_in_the_dark_half_if_the_labelled_object_does():
    """They are near the labelled object's height, and on the other side if the image is mirrored."""
    context = context_placement.fit(halves(True), WHOLE, tf.constant([[5.0, 12, 11, 18]]), ONE, mirrored=True)
    for dark_left in (True, False):
        found = positions(context, halves(dark_left), [6, 6])
        dark = found[:, 1] < S / 2 if dark_left else found[:, 1] > S / 2
        assert dark.all()
        assert np.abs(found[:, 0] - 15).max() < 12
        assert len(np.unique(found, axis=0)) > 30
    once = context_placement.fit(halves(True), WHOLE, tf.constant([[5.0, 12, 11, 18]]), ONE, mirrored=False)
    assert (once.rings.shape[0], context.rings.shape[0]) == (1, 2)


def test_mirrored_context_equals_the_context_of_the_mirrored_image():
    box, mirrored = tf.constant([[5.2, 12, 11, 18]]), tf.constant([[S - 11.0, 12, S - 5.2, 18]])
    context = context_placement.fit(halves(True), WHOLE, box, ONE, mirrored=True)
    other = context_placement.fit(halves(True)[:, :, ::-1], WHOLE, mirrored, ONE, mirrored=False)
    np.testing.assert_allclose(context.rings[1:], other.rings, atol=1e-5)
    np.testing.assert_allclose(context.positions[1:], other.positions, atol=1e-6)


@pytest.mark.parametrize("bounds", [[(3, 4), (S - 3, S - 4)], [(9.25, 4), (9.25, 20)], [(7, 7), (7, 7)]])
def test_positions_lie_in_a_cell_that_overlaps_the_bounds(bounds):
    """A cell is half a pixel wide. There is a position even if the bounds are a point."""
    context = context_placement.fit(halves(True), WHOLE, tf.constant([[1.0, 1, 9, 7]]), ONE, mirrored=False)
    first, last = bounds
    found = positions(context, halves(True), [6, 8], bounds=[tf.constant([v], tf.float32) for v in bounds])
    margin = 0.505 * S / context_placement.GRID
    assert (found >= np.subtract(first, margin)).all()
    assert (found <= np.add(last, margin)).all()


def test_positions_follow_the_objects_of_the_same_class():
    """The two classes have equal surroundings and heights, but lie on different sides of the image."""
    image = tf.zeros([1, S, S, 1])
    boxes = tf.constant([[1.0, 13, 7, 19], [S - 7.0, 13, S - 1, 19]])
    context = context_placement.fit(
        tf.repeat(image, 2, 0), tf.repeat(WHOLE, 2, 0), boxes, tf.constant([0, 1]), mirrored=False
    )
    left, right = (positions(context, image, [6, 6], label=tf.constant([c])) for c in (0, 1))
    assert np.median(left[:, 1]) < S / 3
    assert np.median(right[:, 1]) > 2 * S / 3
    mirrored = context_placement.fit(image, WHOLE, boxes[:1], ONE, mirrored=True)
    np.testing.assert_array_equal(mirrored.labels, [0, 0])


def test_positions_are_relative_to_the_content_not_to_the_stored_image():
    """The labelled object is at the lower edge; in content of half the height, so are the positions."""
    image = tf.zeros([1, S, S, 1])
    context = context_placement.fit(
        image, WHOLE, tf.constant([[13.0, S - 5, 19, S - 1]]), ONE, mirrored=False
    )
    found = positions(context, image, [4, 6], tf.constant([[S // 2, S]]))
    assert np.median(found[:, 0]) > 0.7 * S / 2
    assert found[:, 0].max() <= S / 2 - 2 + 0.505 * S / context_placement.GRID
