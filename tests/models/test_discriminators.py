"""Receptive field and architecture of the PatchGAN."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.models.discriminators import patch_gan
from tf_detectorgan.models.layers import ExactGroupNormalization

NORMS = (ExactGroupNormalization, keras.layers.GroupNormalization)


@pytest.mark.parametrize("layers,side,field", [(2, 80, 34), (3, 128, 70)])
def test_receptive_field_by_gradient(layers, side, field):
    """Finds the pixels that one interior logit depends on, through the model's own convolutions.

    Instance normalisation depends on whole channels, so it is replaced by the identity. All weights are made
    positive, so that no two paths cancel and all ReLUs are active.
    """
    discriminator = keras.models.clone_model(
        patch_gan((side, side, 1), filters=2, layers=layers),
        clone_function=lambda layer: (
            keras.layers.Activation("linear", name=layer.name)
            if isinstance(layer, NORMS)
            else layer.__class__.from_config(layer.get_config())
        ),
    )
    assert any(isinstance(layer, keras.layers.Activation) for layer in discriminator.layers)
    discriminator.set_weights([np.full(w.shape, 0.1) for w in discriminator.get_weights()])
    x = tf.ones([1, side, side, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        logits = discriminator(x)
        row, column = logits.shape[1] // 2, logits.shape[2] // 2 - 1
        one = logits[0, row, column, 0]
    used = tape.gradient(one, x)[0, :, :, 0].numpy() > 0
    rows, columns = np.flatnonzero(used.any(1)), np.flatnonzero(used.any(0))
    for found in (rows, columns):
        assert 0 < found[0] and found[-1] < side - 1  # noqa: PT018  # not clipped by the image's border
        assert len(found) == found[-1] - found[0] + 1 == field
    assert used.sum() == field**2


def test_architecture_is_the_70_pixel_patch_gan():
    """C64-C128-C256-C512: 4x4 kernels, strides 2, 2, 2, 1, 1; no norm in the first and last layer."""
    D = patch_gan((128, 96, 3))
    convolutions = [layer for layer in D.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.filters for layer in convolutions] == [64, 128, 256, 512, 1]
    assert [layer.strides[0] for layer in convolutions] == [2, 2, 2, 1, 1]
    assert {layer.kernel_size for layer in convolutions} == {(4, 4)}
    assert [layer.use_bias for layer in convolutions] == [True, False, False, False, True]
    assert sum(isinstance(layer, NORMS) for layer in D.layers) == 3
    assert D.output_shape == (None, 16, 12, 1)
