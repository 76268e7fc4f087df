"""Eqn 3 through every registered detector, against central differences in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models import detectors
from tf_detectorgan.training import unroll

SIDE = 32


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


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
        pytest.param(
            name, marks=[pytest.mark.slow] * name.startswith(("retinanet_resnet", "retinanet_keras"))
        )
        for name in detectors.DETECTORS
    ],
)
def test_eqn_3_equals_central_differences(float64, name):
    if name == "retinanet_kerashub":
        pytest.importorskip("keras_hub", reason="pip install -c constraints.txt '.[kerashub]'")
    keras.utils.set_random_seed(0)
    DET = detectors.build(name, (SIDE, SIDE, 1), 2)
    assert DET.unrollable
    # KerasHub's heads, small and without norms, have small gradients: rounding is 1e-5 of them at 0.001.
    rate = 0.01 if name == "retinanet_kerashub" else 0.001
    optimizer = keras.optimizers.SGD(rate, momentum=0.9)
    optimizer.build(DET.network.trainable_variables)
    y, syn, y2 = labelled(1), labelled(2), labelled(3)

    def L_real_ahead(x_syn):
        W = unroll.lookahead(DET, optimizer, y, syn._replace(images=x_syn), None).update.W
        targets = DET.targets(y2)
        return DET.loss(W, y2.images, targets, tf.maximum(DET.positives(targets), 1))

    look = unroll.lookahead(DET, optimizer, y, syn, y2)
    np.testing.assert_allclose(look.L_real_ahead, L_real_ahead(syn.images), rtol=1e-12)
    exact = look.d_L_real_ahead
    size = np.abs(np.random.default_rng(0).normal(size=syn.images.shape))
    v = size * tf.sign(exact)  # uphill at every pixel: nothing cancels, so rounding stays small
    h = 1e-8  # at 1e-7 some ReLU of the ResNet lies between the two points, where its gradient jumps
    central = (L_real_ahead(syn.images + h * v) - L_real_ahead(syn.images - h * v)) / (2 * h)
    np.testing.assert_allclose(tf.reduce_sum(exact * v), central, rtol=1e-5)
