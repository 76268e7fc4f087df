import numpy as np
import pytest

from tf_detectorgan.data import resize


def test_shrinking_averages_areas():
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    np.testing.assert_allclose(resize.resize(pixels, 2, 2)[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    # Three pixels to two: each target pixel gets half of the middle one.
    row = np.array([0.0, 3.0, 9.0], np.float32).reshape(1, 3, 1)
    np.testing.assert_allclose(
        resize.resize(row, 1, 2)[0, :, 0], [(0 + 1.5) / 1.5, (1.5 + 9) / 1.5], rtol=1e-6
    )


def test_enlarging_is_linear_between_pixel_centres():
    row = np.array([0.0, 4.0], np.float32).reshape(1, 2, 1)
    np.testing.assert_allclose(resize.resize(row, 1, 4)[0, :, 0], [0, 1, 3, 4])


@pytest.mark.parametrize("height, width, expected", [(300, 200, (128, 85)), (10, 4000, (1, 128))])
def test_target_size_sets_the_longer_side(height, width, expected):
    assert resize.target_size(height, width, 128) == expected


def test_convert_between_depths_and_colours():
    grey, colour = np.array([[[10], [255]]], np.uint8), np.array([[[255, 0, 0], [7, 7, 7]]], np.uint8)
    np.testing.assert_array_equal(resize.convert(grey, 1, 16)[..., 0], [[2570, 65535]])
    np.testing.assert_array_equal(resize.convert(grey, 3, 8), [[[10] * 3, [255] * 3]])
    np.testing.assert_allclose(resize.convert(colour, 1, 8)[..., 0], [[0.299 * 255, 7]], rtol=1e-6)
    assert not resize.is_grey(colour)
    assert resize.is_grey(np.repeat(grey, 3, -1))
