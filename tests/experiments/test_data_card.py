"""Tests of the data card of four images of 64 x 64 px, with numbers counted by hand."""

import dataclasses
import html
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan.data import phantom, records, shards
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import data_card
from tf_detectorgan.prepare import Prepare, prepare

LINES = """file_name,class,x,y,width,height,patient
a.png,nodule,8,8,16,16,one
a.png,mass,40,40,2,2,one
b.png,nodule,4,4,36,4,two
c.png,,,,,,<i>two</i>
d.png,,,,,,<i>two</i>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    (root / "boxes.csv").write_text(LINES)
    for number, name in enumerate("abc"):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
    Image.fromarray(pixels).save(root / "d.png")  # c once more
    options = {"splits": (1.0, 0.0, 0.0), "group_key": "patient", "image_size": 0}
    prepare(Prepare(images=str(root), out=str(root / "set"), **options))
    prepare(Prepare(inspect=str(root / "set")))
    assert records.open_dataset(root / "set").count("train_labelled") == 2  # the data set is unchanged
    return (root / "set" / "data_card.html").read_text("utf-8")


def text(page):
    """Returns the text of the page with single spaces."""
    body = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(body))


def test_card_counts_images_boxes_and_groups(page):
    words = text(page)
    assert "4 images of 64 × 64 px, grey, 8 bits; classes: nodule, mass." in words
    # Sizes 16, 2 and 12 (root of 36 times 4): 5 % of the way from 2 to 12 lies at 10 %, and so on.
    assert "train, labelled 2 2 3 2 1 3.0 / 12.0 / 15.6" in words
    assert "train, clean 2 1 – – – –" in words
    assert "3 groups (patients, scenes); the largest, <i>two</i>, has 2 images." in words
    assert "Licence and citation are not recorded" in words


def test_coverage_includes_anchor_sized_boxes_but_no_tiny_or_long_ones(page):
    """16 x 16 px is the size of an anchor; a box of 2 x 2 px has an IoU of at most 4 / 64 with any anchor.

    36 x 4 px: an anchor of aspect ratio 2 that contains it has an area of 648, so IoU <= 144 / 648.
    No anchor has a height of 4.
    """
    assert re.search(
        r"retinanet_small: 33 % of the training boxes overlap one of \d+ anchors by IoU >= 0.5\.", text(page)
    )


def test_card_reports_an_unsupported_image_size_and_shows_the_rest(tmp_path):
    config = phantom.PhantomConfig(size=40, train_images=2, clean_images=1, unboxed_images=0)
    config = dataclasses.replace(config, validation_images=0, test_images=0, test_clean_images=0)
    shards.build(phantom.plan(config), tmp_path / "set")
    words = text(data_card.write(records.open_dataset(tmp_path / "set")).read_text("utf-8"))
    assert "3 images of 40 × 40 px" in words
    assert re.search(
        r"retinanet_small cannot be trained on these images: .* divisible by 16, got 40x40", words
    )
    assert "of the training boxes" not in words


def test_identical_images_are_listed_and_others_are_not(page):
    words = text(page)
    assert "Images stored more than once, with identical pixels: 1:" in words
    assert "c.png (train, clean); d.png (train, clean)" in words
    assert "a.png (train" not in words
    assert "No image of one split is nearly identical to an image of another split." in words


def test_nearly_identical_images_of_two_splits_are_listed(tmp_path):
    """An image whose grey levels are all one higher is another file, but a near duplicate."""
    (tmp_path / "boxes.csv").write_text(
        "file_name,x,y,width,height,part\na.png,8,8,16,16,train\nb.png,,,,,train\nc.png,8,8,16,16,test\n"
    )
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        pixels = np.random.default_rng(seed).integers(0, 250, (64, 64)).astype(np.uint8)
        Image.fromarray(pixels + (name == "c")).save(tmp_path / f"{name}.png")
    options = {"split_key": "part", "image_size": 0, "allow_duplicates": True}
    prepare(Prepare(images=str(tmp_path), out=str(tmp_path / "set"), **options))
    words = text(data_card.write(records.open_dataset(tmp_path / "set")).read_text("utf-8"))
    assert "No image is stored twice." in words
    found = "Identical or nearly identical images in two of training, validation and test: 1 pair: "
    assert found + "a.png (train_labelled) and c.png" in words


def test_damaged_record_is_an_error_and_no_card_is_written(tmp_path, tiny_phantom):
    shutil.copytree(tiny_phantom("card"), tmp_path / "set")
    path = max((tmp_path / "set").glob("*tfrecord*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path.name}: truncated or damaged"):
        prepare(Prepare(inspect=str(tmp_path / "set")))
    assert not (tmp_path / "set" / "data_card.html").exists()


def test_card_draws_every_box_and_is_self_contained(page):
    drawn = re.findall(
        r'<rect class="truth" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', page
    )
    assert sorted(tuple(map(float, box)) for box in drawn) == [(4, 4, 36, 4), (8, 8, 16, 16), (40, 40, 2, 2)]
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]{0,20})', page))
    assert "http" not in re.sub(r'src="[^"]*"', "", page)


def test_group_in_two_parts_is_reported():
    held = data_card.Contents(["a"], [("p",)], [], np.zeros([0, 4]), [])
    found = data_card._groups({"train_clean": held, "test_clean": held, "test_labelled": held})
    assert found == {"count": 1, "name": "p", "largest": 3, "torn": ["p"]}


def test_directory_without_a_data_set_is_an_error(tmp_path):
    with pytest.raises(InputError, match="not a prepared data set"):
        prepare(Prepare(inspect=str(tmp_path)))
