"""Detectors by name, and user-defined ones by module and function."""

import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.errors import InputError
from tf_detectorgan.models import detectors

ROOT = Path(__file__).resolve().parents[3]


def test_documented_detector_is_built_by_module_and_function(tmp_path, monkeypatch):
    """It detects, its targets agree with `coverage`, and its loss depends on the weights given."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/detectors.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "my_detectors.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    DET = detectors.build("my_detectors:one_cell", (32, 32, 1), 2, sizes=())
    boxes = tf.constant([[[8.0, 8, 17, 16], [0, 0, 3, 3]]])  # contains the point (12, 12); contains no point
    labelled = Labelled(tf.random.normal([1, 32, 32, 1]), boxes, tf.constant([[1, 0]]))
    np.testing.assert_array_equal(DET.coverage(boxes[0]).covered, [True, False])
    targets = DET.targets(labelled)
    assert float(DET.positives(targets)) == 1
    zeros = [tf.zeros_like(w) for w in DET.weights]
    # 16 cells of 2 classes at logit 0: one of the 32 logits has alpha 1/4, the others 3/4
    expected = np.log(2) / 4 * (0.25 + 31 * 0.75)
    np.testing.assert_allclose(DET.loss(zeros, labelled.images, targets, 1.0), expected, rtol=1e-5)
    found = DET.detect(labelled.images, zeros)
    np.testing.assert_array_equal(np.sum(found.labels >= 0, 1), [32])
    np.testing.assert_allclose(found.boxes[0, :32, 2:] - found.boxes[0, :32, :2], np.full((32, 2), 8.0))


@pytest.mark.parametrize(
    "name,message",
    [
        ("yolo", "--detector=yolo is none of retinanet_small, .*package.module:function"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("tf_detectorgan.models.detectors.fcos:large", "has no attribute 'large'"),
    ],
)
def test_unknown_detector_raises(name, message):
    with pytest.raises(InputError, match=message):
        detectors.maker(name)


def test_option_that_a_detector_lacks_raises():
    with pytest.raises(InputError, match=r"--anchor_ratios: --detector=fcos_small has no such option"):
        detectors.build("fcos_small", (32, 32, 1), 1, sizes=(), ratios=(1.0,))
