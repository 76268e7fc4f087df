"""Eqn 3 through every registered detector and the documented one, against central differences in float64."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import gradcheck
from tf_detectorgan.batch import Labelled
from tf_detectorgan.models import detectors
from tf_detectorgan.training import exactness, second_order

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
DOCUMENTED = "my_detectors:one_cell"
LARGE = ("retinanet_resnet50", "retinanet_kerashub")


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture
def my_detectors(tmp_path, monkeypatch):
    """Makes the example of docs/detectors.md importable."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/detectors.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_detectors.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def labelled(seed):
    rng = np.random.default_rng(seed)
    images = tf.constant(rng.uniform(-1, 1, (2, SIDE, SIDE, 1)))
    corner = rng.integers(0, 16, (2, 2, 2))
    boxes = np.concatenate([corner, corner + rng.integers(6, 14, (2, 2, 2))], -1).astype(np.float32)
    labels = np.array([[0, 1], [1, -1]], np.int32)
    return Labelled(images, tf.constant(boxes * (labels[..., None] >= 0)), tf.constant(labels))


@pytest.mark.parametrize(
    "name",
    [
        DOCUMENTED,
        *(name for name in detectors.DETECTORS if name not in LARGE),
        *(pytest.param(name, marks=[pytest.mark.slow, pytest.mark.nightly]) for name in LARGE),
    ],
)
def test_derivative_of_eqn_3_is_exact_for_every_detector(float64, my_detectors, request, monkeypatch, name):
    """Within gradcheck's tolerance, through one step; other tests check several steps on toy detectors."""
    if "small" not in name:  # small ones are traced fast, and checked in graphs, as `train` runs them
        request.getfixturevalue("eagerly")
    if name == "retinanet_kerashub":
        pytest.importorskip("keras_hub", reason="pip install -c constraints.txt '.[kerashub]'")
    if name == "retinanet_resnet50":  # the slowest: only the h at which no ReLU's kink is between the points
        monkeypatch.setattr(exactness, "STEPS", (1e-8,))
    keras.utils.set_random_seed(0)
    DET = detectors.build(name, (SIDE, SIDE, 1), 2)
    assert DET.unrollable
    # KerasHub's heads, without norms, have small gradients, for which rounding is 1e-5 with a rate of 0.001.
    rate = 0.01 if name == "retinanet_kerashub" else 0.001
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    optimizer.build(DET.network.trainable_variables)
    streams = exactness.Streams(*(labelled(k) for k in range(1, 4)), later=())
    (exact,) = exactness.check_steps(DET, optimizer, streams, directions=1, seed=0)
    assert gradcheck.is_exact(exact)
    tf.config.run_functions_eagerly(False)
    assert second_order.obstacles(DET, streams.y) == []


@pytest.mark.slow
def test_pretrained_backbone_has_no_obstacle(float64):
    """It is a different network: the ResNet-50 of keras.applications, with frozen batch norms."""
    DET = detectors.build("retinanet_resnet50", (SIDE, SIDE, 1), 2, pretrained=True)
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in DET.network._flatten_layers())
    assert second_order.obstacles(DET, labelled(1)) == []
