import json
import socket

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan.user_study import plan as plans

PAIRS = 3


@pytest.fixture
def synthetic(tmp_path):
    """Returns synthetic(method, count) -> directory, as of tf_detectorgan.synthesize; B is brighter."""

    def make(method, count=PAIRS, shift=0.0):
        home = tmp_path / method / "synthetic"
        (home / "images").mkdir(parents=True)
        images, boxes = [], []
        for i in range(count):
            grey = 20 * i + (100 if method == "b" else 0)
            Image.fromarray(np.full((32, 32), grey, np.uint8)).save(home / f"images/{i}.png")
            provenance = {"method": method, "background_id": i}
            images.append({"id": i, "file_name": f"images/{i}.png", "provenance": provenance})
            boxes.append({"image_id": i, "bbox": [4 + shift, 6, 8, 10]})
        (home / "annotations.json").write_text(json.dumps({"images": images, "annotations": boxes}))
        return home.parent

    return make


@pytest.fixture
def study(synthetic, tmp_path):
    """A study of three pairs and one attention check."""
    first, second = (plans.synthetic_images(synthetic(name)) for name in "ab")
    rng = np.random.default_rng(0)
    real = plans.RealImage(rng.integers(0, 255, (32, 32, 1), np.uint8), (8, 8, 12, 12), "real.png")
    plans.write(tmp_path / "study", plans.matched(first, second, PAIRS, 0), [real], ("a", "b"), 0)
    return tmp_path / "study"


@pytest.fixture
def free_port():
    """Returns an unused port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
