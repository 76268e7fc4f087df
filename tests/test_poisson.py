"""Poisson blending: only inside the mask, with the exemplar's gradients and the background's level."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Insertion
from tf_detectorgan.poisson import poisson_blend

LEVEL = 2 / 255  # one grey level of 8 bits in [-1, 1]


def insertion(boxes, exemplars, height=32):
    count = len(boxes)
    content = boxes_lib.of_sizes(tf.constant([[height, 40]] * count))
    return Insertion(
        tf.constant(boxes, tf.float32), tf.zeros([count], tf.int32), tf.constant(exemplars), content
    )


def smooth(rng, channels):
    """Returns images [2, 32, 40, C] of smooth waves."""
    v, u = np.mgrid[:32, :40]
    waves = [np.sin(u / 9 + rng.uniform(0, 6)) * np.cos(v / 11) * 0.4 for _ in range(2 * channels)]
    return np.moveaxis(np.reshape(waves, [2, channels, 32, 40]), 1, -1).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "box", [[10, 8, 21, 17], [0, 0, 9, 7], [31, 25, 40, 32], [12.3, 5.6, 18.9, 14.2]], ids=str
)
def test_blending_an_image_into_itself_is_the_identity(channels, box):
    """For every box. The image has no two equal places, so a shift by one pixel would be detected."""
    x = smooth(np.random.default_rng(0), channels)
    blended = poisson_blend(x, insertion([box] * 2, x)).numpy()
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, x, atol=1.6 * LEVEL)


def test_blend_keeps_the_background_outside_and_removes_the_object_level():
    """A blob on level 0.3 is blended into level -0.4: its height above the surroundings is unchanged."""
    v, u = np.mgrid[:32, :40]
    blob = 0.5 * np.exp(-((u - 20.5) ** 2 + (v - 15.5) ** 2) / 18)
    exemplar = (0.3 + blob)[None, ..., None].astype(np.float32)
    x = np.full([1, 32, 40, 1], -0.4, np.float32)
    blended = poisson_blend(x, insertion([[11, 6, 31, 26]], exemplar)).numpy()[0, ..., 0]
    near = np.zeros([32, 40], bool)
    near[5:27, 10:32] = True  # the box and the margin of one pixel
    assert (blended[~near] == np.float32(-0.4)).all()
    # The peak is 64 grey levels high; OpenCV rounds every gradient to whole levels.
    np.testing.assert_allclose(blended[near] - (-0.4), blob[near], atol=4 * LEVEL)


def test_blend_keeps_padding_black():
    """Content of 24 rows, the box at its lower edge: the margin of one pixel would reach the padding."""
    x = np.full([1, 32, 40, 1], -1.0, np.float32)
    x[:, :24] = 0.2
    exemplar = smooth(np.random.default_rng(1), 1)[:1]
    blended = poisson_blend(x, insertion([[12, 14, 22, 24]], exemplar, height=24)).numpy()
    np.testing.assert_array_equal(blended[:, 24:], x[:, 24:])
    assert (blended[:, 14:24, 12:22] != x[:, 14:24, 12:22]).any()
