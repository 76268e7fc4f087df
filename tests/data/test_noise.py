"""Noise in a box: shares of the grey levels, unchanged surroundings, dependence on the draws."""

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data import noise, pipeline, records
from tf_detectorgan.data.placement import Placement


def test_each_level_fills_a_third_of_the_box_and_nothing_outside_changes():
    images = tf.random.stateless_uniform([2, 64, 64, 3], [0, 0], -1, 1)
    boxes = tf.constant([[3.0, 5, 63, 61], [10, 20, 12, 21]])
    draws = tf.constant([[0.25, 0.5], [0.75, 0.125]])
    found = noise.fill(images, boxes, draws).numpy()
    inside = np.zeros((2, 64, 64), bool)
    inside[0, 5:61, 3:63] = inside[1, 20:21, 10:12] = True
    np.testing.assert_array_equal(found[~inside], images.numpy()[~inside])
    assert set(np.unique(found[inside])) <= {-1.0, 0.0, 1.0}
    np.testing.assert_array_equal(found[inside][:, 0], found[inside][:, 2])  # grey
    # Of 3,360 pixels: a share's standard deviation is sqrt(2/9 / 3360) = 0.008.
    shares = [np.mean(found[0][inside[0]] == level) for level in (-1, 0, 1)]
    np.testing.assert_allclose(shares, 1 / 3, atol=4 * 0.0082)


def test_the_noise_of_an_image_depends_on_its_own_draws_only():
    images, boxes = tf.zeros([2, 16, 16, 1]), tf.constant([[0.0, 0, 16, 16]] * 2)
    draws = tf.constant([[0.1, 0.2], [0.1, 0.3]])
    both = noise.fill(images, boxes, draws)
    np.testing.assert_array_equal(noise.fill(images[1:], boxes[1:], draws[1:]), both[1:])
    assert np.any(both[0] != both[1])


def test_batches_with_noise_are_functions_of_seed_and_step(tiny_phantom):
    """x and y have noise in their boxes and are unchanged outside; step 2 does not depend on the start."""
    dataset = records.open_dataset(tiny_phantom("noise"))
    options = {"batch_size": 2, "seed": 3, "steps": 3, "placement": Placement(noise=True)}
    batches = list(pipeline.joint_batches(dataset, start_step=0, **options))
    for b in batches:
        for image, noised, boxes in (
            (b.x, b.insertion.exemplars, b.insertion.boxes),
            (b.y.images, b.y_noised, b.y_boxes),
        ):
            inside = box_ops.mask(boxes, *image.shape[1:3])[..., None] > 0
            np.testing.assert_array_equal(noised[~inside], image[~inside])
            assert set(np.unique(noised[inside])) == {-1.0, 0.0, 1.0}
    (late,) = pipeline.joint_batches(dataset, start_step=2, **options)
    tf.nest.map_structure(np.testing.assert_array_equal, batches[2], late)
