"""Pooling, maps and cells by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models import localizers
from tf_detectorgan.models.localizers import ClassActivation, LogSumExpPooling, PatchGrid


def test_log_sum_exp_by_hand():
    """r = 1 over ln 1, ln 1, ln 1, ln 5: log of the mean (1 + 1 + 1 + 5) / 4 = 2."""
    x = tf.constant(np.log([1.0, 1.0, 1.0, 5.0]).reshape(1, 2, 2, 1), tf.float32)
    np.testing.assert_allclose(LogSumExpPooling(1.0)(x), [[np.log(2)]], rtol=1e-6)


def test_log_sum_exp_lies_between_mean_and_maximum():
    x = tf.constant([[[[1.0], [2.0]], [[3.0], [400.0]]]])
    np.testing.assert_allclose(LogSumExpPooling(1e-5)(x), [[101.5]], rtol=1e-2)
    # exp(10 * 400) is no float; log(4) / 10 below the maximum
    np.testing.assert_allclose(LogSumExpPooling(10.0)(x), [[400 - np.log(4) / 10]], rtol=1e-6)


def test_the_heat_map_is_the_last_weights_on_each_cell():
    model = ClassActivation((16, 16, 1), 2, grid=4, filters=4)
    images = tf.random.stateless_normal([3, 16, 16, 1], [0, 1])
    heat = model.heat(images)
    assert heat.cells.shape == (3, 4, 4, 2)
    features = model.network(images)["features"].numpy()
    kernel, bias = model.network.layers[-1].get_weights()
    for label in range(2):
        expected = (features * kernel[:, label]).sum(-1)
        low, high = (f(expected, (1, 2), keepdims=True) for f in (np.min, np.max))
        np.testing.assert_allclose(heat.cells[..., label], (expected - low) / (high - low), atol=1e-5)
    pooled = np.log(np.exp(10 * features.astype(np.float64)).mean((1, 2))) / 10
    np.testing.assert_allclose(heat.confidence, 1 / (1 + np.exp(-(pooled @ kernel + bias))), atol=1e-5)


def test_cells_touched_by_a_box():
    """16 x 8 pixels as 4 x 4 cells of 4 x 2; the box 3..9 x 2..4 has part of three of them."""
    cells = localizers.cells((8, 16, 1), 4)
    np.testing.assert_array_equal(cells[5], [4, 2, 8, 4])
    labelled = Labelled(None, tf.constant([[[3.0, 2, 9, 4], [0, 0, 0, 0]]]), tf.constant([[1, -1]]))
    inside = localizers.inside(labelled, cells, 2).numpy()
    assert inside.shape == (1, 16, 2)
    assert np.flatnonzero(inside[0, :, 1]).tolist() == [4, 5, 6]
    assert not inside[..., 0].any()


@pytest.mark.parametrize("side,grid", [(20, 6), (16, 16), (40, 5)])
@pytest.mark.parametrize("kind", [ClassActivation, PatchGrid])
def test_any_side_is_seen_as_the_grid(kind, side, grid):
    heat = kind((side, side, 3), 1, grid=grid, filters=4).heat(tf.zeros([2, side, side, 3]))
    assert heat.cells.shape == (2, grid, grid, 1)
    assert heat.confidence.shape == (2, 1)
