import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan.gallery import (
    CELL,
    LARGEST,
    change,
    color_difference,
    contact_sheet,
    crop,
    image_uri,
    write_gallery,
)


def entry(channels=1, side=64, box=(20, 24, 30, 36), caption="7 · background 3 · matched 5"):
    rng = np.random.default_rng(0)
    background = rng.integers(60, 120, (side, side, channels), dtype=np.uint8)
    inserted = background.copy()
    x0, y0, x1, y1 = box
    inserted[y0:y1, x0:x1] += 40
    return {
        "background": background,
        "inserted": inserted,
        "matched": np.flip(inserted),
        "box": box,
        "caption": caption,
    }


def decoded(uri):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))))


def test_change_inside_and_outside_the_crop():
    """+40 in the box; -5 two pixels from it, which is part of the crop; -9 in a corner."""
    item = entry()
    item["inserted"][30, 32] -= 5
    assert change(item)[1:] == (40.0, 0.0)
    item["inserted"][0, 63] -= 9
    assert change(item)[1:] == (40.0, 9.0)
    assert change(item).signed[30, 25] == 40
    assert change(item).signed[0, 63] == -9


def test_change_is_the_mean_over_channels():
    item = entry(channels=3)
    item["inserted"][0, 0] = item["background"][0, 0] + np.array([3, 0, 0], np.uint8)
    assert change(item).away == 1.0


def test_colors_of_the_difference():
    colors = color_difference(np.float32([[0, 10, -10, 5, 99]]), scale=10)[0]
    assert colors[0].tolist() == [255, 255, 255]
    assert colors[1].tolist() == colors[4].tolist() == [196, 20, 20]
    assert colors[2].tolist() == [20, 60, 196]
    assert 20 < colors[3][1] < 255


def test_crop_has_a_margin_and_is_clipped_to_the_image():
    image = np.arange(64 * 64, dtype=np.int64).reshape(64, 64, 1)
    inner = crop(image, (20, 24, 30, 36))  # 10 x 12, a quarter is 3, so the margin is 8
    assert inner.shape == (28, 26, 1)
    assert inner[0, 0, 0] == 16 * 64 + 12
    assert crop(image, (0, 0, 40, 40)).shape == (50, 50, 1)  # margin 10 on the two sides inside the image
    assert crop(image, (63.5, 63.5, 64, 64)).shape == (9, 9, 1)
    assert crop(image, (70, 70, 80, 80)).size > 0


def test_embedded_image_is_exact_or_shrunk():
    small = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decoded(image_uri(small)), small)
    np.testing.assert_array_equal(decoded(image_uri(small[..., :1])), small[..., 0])
    assert decoded(image_uri(np.zeros((100, 2 * LARGEST, 1), np.uint8))).shape == (50, LARGEST)
    with pytest.raises(ValueError, match="uint8"):
        image_uri(np.zeros((4, 4, 1), np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_gallery_is_self_contained_and_escapes_html(tmp_path, channels):
    items = [entry(channels, caption=f"<script>alert({n})</script> & co") for n in range(3)]
    path = write_gallery(tmp_path / "new", {"First made": items}, "<b>tiles</b>")
    page = path.read_text()
    assert path == tmp_path / "new" / "gallery.html"
    assert "<script" not in page
    assert "&lt;b&gt;tiles" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 3 * 5
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    np.testing.assert_array_equal(np.atleast_3d(decoded(sources[1])), items[0]["inserted"])
    assert page.count('x="20.0" y="24.0" width="10.0" height="12.0"') == 3
    assert "±40 of 255 grey levels" in page
    assert "largest change 40 in the box,\n0 outside" in page


def test_empty_gallery_is_a_valid_page(tmp_path):
    page = write_gallery(tmp_path, {}, "none").read_text()
    assert "<h1>none</h1>" in page
    assert "<figure" not in page


def test_difference_scale_has_a_minimum(tmp_path):
    item = entry()
    item["inserted"] = item["background"] + np.uint8(1)
    assert "±8 of 255" in write_gallery(tmp_path, {"First made": [item]}, "t").read_text()


@pytest.mark.parametrize("channels, side", [(1, 64), (3, 64), (1, 2 * CELL)])
def test_contact_sheet_shows_background_and_insertion_in_their_cells(tmp_path, channels, side):
    item = entry(channels, side)
    path = contact_sheet([item, item], tmp_path / "a" / "sheet.png")
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    top, left = 2 * 18 + 8, 8
    step = max(1, side // CELL)
    factor = max(1, CELL // side)
    expected = np.kron(item["background"][..., 0], np.ones((factor, factor)))
    if step > 1:
        expected = expected.reshape(CELL, step, CELL, step).mean(axis=(1, 3))
    np.testing.assert_allclose(sheet[top : top + CELL, left : left + CELL, 0], expected, atol=1)
    second = sheet[top : top + CELL, left + CELL + 8 : left + 2 * CELL + 8]
    assert (second == [255, 176, 0]).all(axis=-1).any()  # the box
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], tmp_path / "none.png")
