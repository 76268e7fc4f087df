import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_detectorgan.data import image_files, resize


@pytest.mark.parametrize(
    "pixels, name",
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4, 1), "grey8.png"),
        (np.arange(36, dtype=np.uint8).reshape(3, 4, 3), "colour8.png"),
        (np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000, "grey16.png"),
        (np.arange(36, dtype=np.uint16).reshape(3, 4, 3) * 1800, "colour16.png"),
    ],
)
def test_every_depth_and_colour_is_read_unchanged(tmp_path, pixels, name):
    (tmp_path / name).write_bytes(tf.io.encode_png(pixels).numpy())
    read = image_files.read_image(tmp_path / name)
    assert read.dtype == pixels.dtype
    np.testing.assert_array_equal(read, pixels)


def test_16_bit_tiff_alpha_and_palette(tmp_path):
    deep = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "deep.tif")[..., 0], deep)
    clear = np.array([[[10, 20, 30, 0]]], np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "clear.png"), clear[..., :3])
    Image.fromarray(clear[..., :3]).quantize().save(tmp_path / "palette.png")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "palette.png"), clear[..., :3])


def test_damaged_files_and_other_depths_are_refused(tmp_path):
    path = tmp_path / "image"
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50), np.uint8)).save(whole, "PNG")
    deep = tf.io.encode_png(
        np.random.default_rng(0).integers(0, 65535, (50, 50, 1)).astype(np.uint16)
    ).numpy()
    for contents in (b"", b"no image", whole.getvalue()[:-40], deep[: len(deep) // 2]):
        path.write_bytes(contents)
        with pytest.raises((ValueError, OSError)):
            image_files.read_image(path)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match="8 or 16 bits"):
        image_files.read_image(tmp_path / "float.tif")


def test_shrinking_averages_areas():
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4, 1)
    np.testing.assert_allclose(resize.resize(pixels, 2, 2)[..., 0], [[2.5, 4.5], [10.5, 12.5]])
    # Three pixels to two: the middle one belongs to both by halves.
    row = np.array([0.0, 3.0, 9.0], np.float32).reshape(1, 3, 1)
    np.testing.assert_allclose(
        resize.resize(row, 1, 2)[0, :, 0], [(0 + 1.5) / 1.5, (1.5 + 9) / 1.5], rtol=1e-6
    )


def test_growing_is_linear_between_pixel_centres():
    row = np.array([0.0, 4.0], np.float32).reshape(1, 2, 1)
    np.testing.assert_allclose(resize.resize(row, 1, 4)[0, :, 0], [0, 1, 3, 4])


@pytest.mark.parametrize("height, width, expected", [(300, 200, (128, 85)), (10, 4000, (1, 128))])
def test_the_longer_side_gets_the_size(height, width, expected):
    assert resize.target_size(height, width, 128) == expected


def test_conversion_between_depths_and_colours():
    grey, colour = np.array([[[10], [255]]], np.uint8), np.array([[[255, 0, 0], [7, 7, 7]]], np.uint8)
    np.testing.assert_array_equal(resize.convert(grey, 1, 16)[..., 0], [[2570, 65535]])
    np.testing.assert_array_equal(resize.convert(grey, 3, 8), [[[10] * 3, [255] * 3]])
    np.testing.assert_allclose(resize.convert(colour, 1, 8)[..., 0], [[0.299 * 255, 7]], rtol=1e-6)
    assert not resize.is_grey(colour)
    assert resize.is_grey(np.repeat(grey, 3, -1))
