"""The whole command on pictures in which a bright square is to be found, scored by `evaluate`."""

import json

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan import evaluate, localize
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluate import Evaluate
from tf_detectorgan.localize import Localize
from tf_detectorgan.prepare import Prepare, prepare

SQUARE = 8


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """32 x 32 noise, some with a square of 8: 8 with a box, 8 without, 16 clean; for test 8 and 4 clean."""
    folder, rng = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    images, boxes = [], []
    kinds = ["boxed"] * 8 + ["unboxed"] * 8 + ["clean"] * 16 + ["test"] * 8 + ["test_clean"] * 4
    for number, kind in enumerate(kinds, 1):
        pixels = rng.integers(40, 100, (32, 32)).astype(np.uint8)
        x, y = (int(v) for v in rng.integers(0, 32 - SQUARE + 1, 2))
        image = {"id": number, "file_name": f"{number}.png", "part": "test" if "test" in kind else "train"}
        if "clean" not in kind:
            pixels[y : y + SQUARE, x : x + SQUARE] += 120
        if kind == "unboxed":
            image["clean"] = False
        if kind in ("boxed", "test"):
            boxes.append({"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, SQUARE, SQUARE]})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(image)
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (folder / "annotations.json").write_text(json.dumps(document))
    out = folder / "prepared"
    prepare(
        Prepare(annotations=str(folder / "annotations.json"), out=str(out), image_size=32, split_key="part")
    )
    return str(out)


@pytest.mark.parametrize("method,iou", [("cam", "0.1"), ("patches", "0.3")])
def test_a_bright_square_is_found_and_scored(squares, tmp_path, method, iou, capsys):
    """Patches know its extent from the boxes: 2 x 2 to 3 x 3 cells of 4 pixels, IoU 64 / 144 at worst.

    Class activation maps know only where it is; a square at random has IoU 0.1 or more in 2 of 10 images.
    """
    out = tmp_path / "found.json"
    localize.main(
        Localize(
            data_dir=squares,
            method=method,
            out=str(out),
            steps=100,
            batch_size=8,
            grid=8,
            filters=8,
            learning_rate=3e-3,
        )
    )
    printed = capsys.readouterr().out
    assert f"in 12 images of the test split, in {out}" in printed
    evaluate.main(Evaluate(data_dir=squares, predictions=str(out), prediction_pixels="prepared"))
    places = json.loads((tmp_path / "found.test_metrics.json").read_text())["localization"]
    assert places["iou"][iou]["k"] >= 7
    assert places["iou"][iou]["n"] == 8


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"grid": 33}, "--grid=33: the images have 32 pixels"),
        ({"filters": 6}, "--filters=6: must be divisible by 4"),
        ({"split": "validation"}, "has no validation split"),
    ],
)
def test_what_does_not_fit_is_said_before_training(squares, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        localize.main(Localize(data_dir=squares, out=str(tmp_path / "found.json"), **changes))
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_overwritten_unasked(squares, tmp_path):
    (tmp_path / "found.json").write_text("mine")
    with pytest.raises(InputError, match="exists; use --overwrite"):
        localize.main(Localize(data_dir=squares, out=str(tmp_path / "found.json")))
    assert (tmp_path / "found.json").read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_it(squares, tmp_path):
    with pytest.raises(InputError, match="lower --learning_rate"):
        localize.main(
            Localize(data_dir=squares, out=str(tmp_path / "f.json"), learning_rate=1e38, grid=8, filters=4)
        )
    assert not list(tmp_path.iterdir())
