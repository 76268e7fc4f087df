import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tf_detectorgan.data import image_files


@pytest.mark.parametrize(
    "pixels, name",
    [
        (np.arange(12, dtype=np.uint8).reshape(3, 4, 1), "grey8.png"),
        (np.arange(36, dtype=np.uint8).reshape(3, 4, 3), "colour8.png"),
        (np.arange(12, dtype=np.uint16).reshape(3, 4, 1) * 5000, "grey16.png"),
        (np.arange(36, dtype=np.uint16).reshape(3, 4, 3) * 1800, "colour16.png"),
    ],
)
def test_png_of_each_depth_and_colour_is_read_exactly(tmp_path, pixels, name):
    (tmp_path / name).write_bytes(tf.io.encode_png(pixels).numpy())
    read = image_files.read_image(tmp_path / name)
    assert read.dtype == pixels.dtype
    np.testing.assert_array_equal(read, pixels)


def test_16_bit_tiff_is_read_exactly_alpha_dropped_and_palette_applied(tmp_path):
    deep = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "deep.tif")[..., 0], deep)
    clear = np.array([[[10, 20, 30, 0]]], np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "clear.png"), clear[..., :3])
    Image.fromarray(clear[..., :3]).quantize().save(tmp_path / "palette.png")
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "palette.png"), clear[..., :3])


def test_damaged_files_and_other_depths_are_errors(tmp_path):
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
