"""Networks that compute in bfloat16: dtypes of weights and outputs, and differences to float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.models import layers
from tf_detectorgan.models.detectors import fcos, retinanet
from tf_detectorgan.models.discriminators import patch_gan
from tf_detectorgan.models.generators import resnet_generator
from tf_detectorgan.models.person_discriminator import PersonDiscriminator
from tf_detectorgan.models.unet import unet

SHAPE = (32, 32, 1)
IMAGES = tf.constant(np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)), tf.float32)
BOXES = tf.constant([[3.2, 4.9, 21.7, 30.1], [0.0, 0.0, 32.0, 32.0]])


def of_detector(DET):
    return DET.network, lambda: DET.call(DET.weights, IMAGES)


def of_network(network, *more):
    return network, lambda: network(IMAGES, *more)


NETWORKS = {
    "generator": lambda: of_network(resnet_generator(SHAPE, 1, filters=4, blocks=1)),
    "unet": lambda: of_network(unet(SHAPE, filters=4)),
    "discriminator": lambda: of_network(patch_gan(SHAPE, filters=4)),
    "person": lambda: of_network(PersonDiscriminator(4), BOXES),
    "retinanet": lambda: of_detector(retinanet.small(SHAPE, 2, width=16)),
    "fcos": lambda: of_detector(fcos.small(SHAPE, 2, width=16)),
    "retinanet_pretrained": lambda: of_detector(retinanet.resnet50(SHAPE, 2, pretrained=True)),
}


def made(name, policy):
    """Returns the built network and its outputs."""
    keras.utils.set_random_seed(0)
    with layers.dtype_policy(policy):
        network, call = NETWORKS[name]()
    return network, tf.nest.flatten(call())


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_and_outputs_are_float32(name):
    """Weights and outputs are float32; all convolutions but the last are bfloat16."""
    network, outputs = made(name, "mixed_bfloat16")
    assert {v.dtype for v in network.weights} == {"float32"}
    computed = [
        layer.compute_dtype
        for layer in network._flatten_layers()
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    ]
    last = 2 if name.startswith(("retinanet", "fcos")) else 1
    assert computed.count("float32") == last
    assert computed.count("bfloat16") == len(computed) - last > 3
    for output in outputs:
        assert output.dtype == tf.float32
        assert np.any(output != tf.cast(tf.cast(output, tf.bfloat16), tf.float32))


@pytest.mark.parametrize("name", ["generator", "unet", "discriminator", "person"])
def test_bfloat16_outputs_are_near_float32(name):
    """bfloat16 has 8 significant bits, so errors are a few hundredths. Detectors: test_loss_scale.py."""
    (found,), (expected,) = (made(name, policy)[1] for policy in ("mixed_bfloat16", "float32"))
    assert 1e-5 < tf.norm(found - expected) / tf.norm(expected) < 0.05


def test_gradients_of_a_shared_weight_are_summed_in_float32():
    """A detector's head is used once per pyramid level: each gradient is rounded, the sum is not."""
    with layers.dtype_policy("mixed_bfloat16"):
        network = keras.Sequential([keras.Input(SHAPE), keras.layers.Conv2D(4, 3)])
    W = [v.value for v in network.trainable_variables]

    def gradients(inputs):
        with tf.GradientTape() as tape:
            tape.watch(W)
            outputs = [network.stateless_call(W, [], x)[0] for x in inputs]
            L = tf.add_n([tf.reduce_sum(tf.cast(output, tf.float32) ** 2) for output in outputs])
        return tape.gradient(L, W)

    inputs = [IMAGES * (0.5 + 0.01 * k) for k in range(32)]
    found, each = gradients(inputs), [gradients([x]) for x in inputs]
    for k, gradient in enumerate(found):
        assert gradient.dtype == tf.float32
        exact = np.sum([np.float64(one[k]) for one in each], 0)
        rounded = tf.zeros_like(gradient, tf.bfloat16)
        for one in each:
            rounded += tf.cast(one[k], tf.bfloat16)
        np.testing.assert_allclose(gradient, exact, atol=1e-5 * np.abs(exact).max())
        assert np.abs(np.float64(tf.cast(rounded, tf.float32)) - exact).max() > 1e-3 * np.abs(exact).max()


def test_dtype_policy_is_restored_on_exit():
    with layers.dtype_policy("mixed_float16"):
        assert layers.weights_dtype() == "float32"
        assert keras.layers.Dense(1).compute_dtype == "float16"
    assert keras.layers.Dense(1).compute_dtype == "float32"
