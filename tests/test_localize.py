"""The whole command on pictures in which a bright square is to be found, scored by `evaluate`."""

import dataclasses
import json
import signal

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan import evaluate, localize
from tf_detectorgan.errors import InputError, Interrupted
from tf_detectorgan.evaluate import Evaluate
from tf_detectorgan.localize import Localize
from tf_detectorgan.prepare import Prepare, prepare

SQUARE = 8
SMALL = {"batch_size": 8, "grid": 8, "filters": 8, "learning_rate": 3e-3}

pytestmark = pytest.mark.usefixtures("handlers")


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
    localize.main(Localize(squares, method, str(tmp_path), steps=100, **SMALL))
    out = tmp_path / "test.json"
    assert f"in 12 images of the test split, in {out}" in capsys.readouterr().out
    evaluate.main(Evaluate(data_dir=squares, predictions=str(out), prediction_pixels="prepared"))
    places = json.loads((tmp_path / "test.test_metrics.json").read_text())["localization"]
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
        localize.main(Localize(squares, run_dir=str(tmp_path), **changes))
    assert not list(tmp_path.iterdir())


def test_interrupted_training_goes_on_to_the_same_file(squares, tmp_path, monkeypatch):
    """Stopped after 8 of 20 steps; then a second split without a step more, and no other setting."""
    options = Localize(squares, "patches", str(tmp_path / "whole"), steps=20, **SMALL)
    localize.main(options)
    stopped = dataclasses.replace(options, run_dir=str(tmp_path / "stopped"))
    batches = localize.pipeline.presence_batches

    def stopping(*args, **named):
        yield from batches(*args, **named).take(7)
        signal.raise_signal(signal.SIGTERM)
        yield from batches(*args, **named).skip(7)

    monkeypatch.setattr(localize.pipeline, "presence_batches", stopping)
    with pytest.raises(Interrupted, match="8 of 20 steps are saved"):
        localize.main(stopped)
    monkeypatch.setattr(localize.pipeline, "presence_batches", batches)
    assert not (tmp_path / "stopped/test.json").exists()
    localize.main(stopped)
    assert (tmp_path / "stopped/test.json").read_bytes() == (tmp_path / "whole/test.json").read_bytes()
    monkeypatch.setattr(localize.pipeline, "presence_batches", None)
    localize.main(stopped)
    with pytest.raises(InputError, match="--seed was 0, is 1"):
        localize.main(dataclasses.replace(stopped, seed=1))
