"""Crops of different sizes in one batch have the same logits as separately."""

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan.models.person_discriminator import PersonDiscriminator, spatial_pyramid

BOXES = tf.constant([[2.2, 3.0, 9.5, 14.1], [0.0, 0.0, 24.0, 24.0], [20.7, 22.9, 21.0, 24.0]])
SLICES = [np.s_[3:15, 2:10], np.s_[0:24, 0:24], np.s_[22:24, 20:21]]  # the pixels that the boxes touch


def images(side=24, count=3, channels=2):
    return tf.random.stateless_normal([count, side, side, channels], [1, side])


def test_spatial_pyramid_equals_loops():
    x, sizes = images(), [(12, 8), (24, 24), (2, 1)]
    found = spatial_pyramid(x, tf.constant(sizes)).numpy()
    for i, (h, w) in enumerate(sizes):
        wanted = []
        for n in (4, 2, 1):
            for column in range(n):
                for row in range(n):
                    rows = slice(row * h // n, -(-(row + 1) * h // n))
                    columns = slice(column * w // n, -(-(column + 1) * w // n))
                    wanted.append(x[i].numpy()[rows, columns].max((0, 1)))
        np.testing.assert_array_equal(found[i], np.concatenate(wanted))


def test_logit_of_a_crop_is_independent_of_the_batch():
    """Compares with Keras's convolutions and strides on an image that is the crop."""
    keras.utils.set_random_seed(0)
    D, x = PersonDiscriminator(filters=3), images()
    together = D(x, BOXES)
    assert together.shape == (3, 1, 1, 1)
    for i, where in enumerate(SLICES):
        alone = x[i].numpy()[where][None]
        for convolution in D.convolutions:
            alone = tf.nn.leaky_relu(convolution(alone), 0.2)
        logit = D.logit(spatial_pyramid(alone, tf.constant([alone.shape[1:3]])))
        np.testing.assert_allclose(together[i, 0, 0, 0], logit[0, 0], rtol=1e-5, atol=1e-6)


def test_logit_depends_only_on_pixels_of_the_box():
    keras.utils.set_random_seed(0)
    D, x = PersonDiscriminator(filters=3), images()
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = tf.reduce_sum(D(x, BOXES))
    used = tf.reduce_any(tape.gradient(logits, x) != 0, -1).numpy()
    for i, where in enumerate(SLICES):
        assert used[i][where].any()
        used[i][where] = False
    assert not used.any()
