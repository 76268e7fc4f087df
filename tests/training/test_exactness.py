"""Checks of Eqn 3's derivative: exact and wrong layers, ops without a second derivative, the command."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import gradcheck
from tf_detectorgan.models.layers import ExactGroupNormalization
from tf_detectorgan.training import build, exactness, run_directory, second_order
from tf_detectorgan.training.settings import Train


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture(scope="module")
def data_dir(tiny_phantom):
    return str(tiny_phantom("checked"))


class NearestResize(keras.layers.Layer):
    def call(self, inputs):
        return tf.image.resize(inputs, (12, 12), method="nearest")


class Planted(keras.layers.Layer):
    def __init__(self, function):
        super().__init__(name="planted")
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


def half_stopped(x):
    return tf.concat([x[:, :4], tf.stop_gradient(x[:, 4:])], 1)


@tf.custom_gradient
def half_lost(x):
    return tf.identity(x), lambda d: tf.concat([d[:, :4], tf.zeros_like(d[:, 4:])], 1)


@tf.function
def nested(x):
    return x - tf.stop_gradient(tf.reduce_mean(x, [1, 2], keepdims=True))


@tf.function
def branching(x):
    """Stops the gradient in the second of two branches, in a loop, in a function."""

    def body(i, x):
        return i + 1, tf.cond(tf.reduce_sum(x) > 0, lambda: tf.tanh(x), lambda: tf.stop_gradient(x) * x)

    return tf.while_loop(lambda i, _: i < 2, body, [0, x], maximum_iterations=2)[1]


@tf.function
def exact_branching(x):
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: 2 * x)


def cropped(x):
    whole, which = tf.tile([[0.0, 0, 1, 1]], [tf.shape(x)[0], 1]), tf.range(tf.shape(x)[0])
    return tf.cast(tf.image.crop_and_resize(tf.cast(x, tf.float32), whole, which, [8, 8]), x.dtype)


LAYERS = {
    "nested": lambda: Planted(nested),
    "branching": lambda: Planted(branching),
    "crop": lambda: Planted(cropped),
    "batch_norm": lambda: keras.layers.BatchNormalization(name="planted_norm"),
    "layer_norm": lambda: keras.layers.LayerNormalization(name="planted_norm"),
    "spectral": lambda: keras.layers.SpectralNormalization(keras.layers.Conv2D(4, 3), name="planted_norm"),
    "exact_branching": lambda: Planted(exact_branching),
    "stopped": lambda: Planted(tf.stop_gradient),
    "zero": lambda: Planted(lambda x: 0 * x + tf.stop_gradient(x)),
    "half_stopped": lambda: Planted(half_stopped),
    "half_lost": lambda: Planted(half_lost),
    "exact": lambda: ExactGroupNormalization(2, name="norm"),
    "keras": lambda: keras.layers.GroupNormalization(2, name="planted_norm"),
    "resize": lambda: NearestResize(name="planted_resize"),
    "bilinear": lambda: keras.layers.UpSampling2D(interpolation="bilinear", name="planted_resize"),
    "same_pool": lambda: keras.layers.MaxPooling2D(2, strides=1, padding="same", name="planted_pool"),
    "valid_pool": lambda: keras.layers.MaxPooling2D(2, strides=1),
    "pool": lambda: keras.layers.MaxPooling2D(3, strides=2, padding="same"),
}


def checked(tiny, layer, optimizer, later=0, flat=False, recompute=False):
    """Returns the checks of one step and, with `later` > 0, of 1 + `later` steps."""
    DET = tiny.ToyDetector(LAYERS[layer]())
    optimizer.build(DET.network.trainable_variables)
    streams = [tiny.labelled(np.random.default_rng(k), 2) for k in range(3 + later)]
    y, synthetic, y2, *others = streams
    if flat:
        synthetic = synthetic._replace(images=tf.zeros_like(synthetic.images))
    streams_64 = exactness.Streams(y, synthetic, y2, tuple(others)).cast(tf.float64)
    return exactness.check_steps(DET, optimizer, streams_64, directions=2, seed=0, recompute=recompute)


@pytest.mark.parametrize("recompute", [False, True])
def test_exact_layers_pass(float64, tiny, recompute):
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    found = checked(tiny, "exact", optimizer, later=2, recompute=recompute)
    assert [check.steps for check in found] == [1, 3]
    assert all(check.error < 1e-6 and check.norm > 0 for check in found)


@pytest.mark.parametrize("layer", ["keras", "zero", "half_stopped", "half_lost", "bilinear", "same_pool"])
def test_layer_with_a_wrong_derivative_is_not_exact(float64, tiny, layer):
    """Also a derivative that is wrongly 0: everywhere, or in the lower half of the image."""
    (exact,) = checked(tiny, layer, keras.optimizers.SGD(0.05))
    assert exact.error > (0.1 if layer in ("zero", "half_stopped", "half_lost") else gradcheck.TOLERANCE)
    assert not gradcheck.is_exact(exact)
    assert (exact.norm == 0) == (layer == "zero")


def test_derivative_of_0_is_not_reported_as_exact(float64, tiny):
    (exact,) = checked(tiny, "exact", keras.optimizers.SGD(0.0))
    assert exact == (1, 0, 0)
    assert not gradcheck.is_exact(exact)


@pytest.mark.parametrize("noise", [exactness.NOISE, 0.0])
def test_noise_makes_the_check_of_max_pooling_on_flat_images_exact(float64, tiny, monkeypatch, noise):
    monkeypatch.setattr(exactness, "NOISE", noise)
    (exact,) = checked(tiny, "pool", keras.optimizers.SGD(0.05), flat=True)
    assert (exact.error < gradcheck.TOLERANCE) == (noise > 0)


@pytest.mark.parametrize(
    "layer,kind,instead",
    [
        ("exact", None, None),
        ("exact_branching", None, None),
        ("keras", "StopGradient", "ExactGroupNormalization"),
        ("batch_norm", "StopGradient", "ExactGroupNormalization"),
        ("layer_norm", "StopGradient", "ExactGroupNormalization"),
        ("spectral", "StopGradient", "no norm"),
        ("nested", "StopGradient", ""),
        ("branching", "StopGradient", ""),
        ("crop", "CropAndResizeGradImage", "slicing"),
        ("resize", "ResizeNearestNeighborGrad", "UpSampling2D"),
        ("bilinear", "ResizeBilinearGrad", "interpolation='nearest'"),
        ("same_pool", "MaxPool", "strides of 2"),
        ("valid_pool", None, None),
        ("pool", None, None),
    ],
)
def test_obstacles_have_name_type_and_alternative(float64, tiny, layer, kind, instead):
    y = tiny.labelled(np.random.default_rng(0), 1)
    found = second_order.obstacles(tiny.ToyDetector(LAYERS[layer]()), y)
    if kind is None:
        assert found == []
        return
    assert {one.kind for one in found} == {kind}
    assert all("planted" in one.op for one in found)
    assert all(instead in one.instead for one in found)


def test_obstacle_in_the_loss_is_found(float64, tiny):
    DET, y = tiny.ToyDetector(), tiny.labelled(np.random.default_rng(0), 1)
    loss = DET.loss

    def planted(W, images, *others):
        return loss(W, images, *others) * tf.stop_gradient(
            tf.reduce_mean(DET.call(W, images)), name="planted"
        )

    DET.loss = planted
    assert [(one.op, one.kind) for one in second_order.obstacles(DET, y)] == [("planted", "StopGradient")]


def made_of(tiny, layer):
    """Returns a replacement of `build.detector` that builds a detector with the layer."""

    def detector(settings, *_):
        with build.detector_precision(settings):
            return tiny.ToyDetector(LAYERS[layer]())

    return detector


def first_streams(tiny):
    """Returns streams to use instead of those of the first batch."""
    y, synthetic, y2, third = (tiny.labelled(np.random.default_rng(k), 2) for k in range(4))
    return exactness.Streams(y, synthetic, y2, (third,))


@pytest.mark.parametrize(
    "layer,precision,code,line",
    [
        ("exact", "mixed_bfloat16", None, "the derivative is exact to 1e-06"),
        ("keras", "float32", 1, "the derivative is NOT exact"),
        ("half_lost", "float32", 1, "custom gradients (tf.custom_gradient) were not checked"),
        ("stopped", "float32", 1, "Eqn 3 cannot be computed: L_real has no gradient for: "),
        ("resize", "float32", 1, "Eqn 3 cannot be computed"),
    ],
)
def test_command_prints_result_and_exit_code(
    tiny, data_dir, tmp_path, monkeypatch, capsys, layer, precision, code, line
):
    settings = Train(run_dir=str(tmp_path / "run"), data_dir=data_dir, gan_batch=2, precision=precision)
    if code:  # one complete run is enough
        monkeypatch.setattr(gradcheck, "first_streams", lambda run: first_streams(tiny))
        run = types.SimpleNamespace(settings=settings, dataset=None)
        monkeypatch.setattr(run_directory, "begin", lambda *_: run)
    monkeypatch.setattr(build, "detector", made_of(tiny, layer))
    try:
        if code is None:
            gradcheck.main(settings)
        else:
            with pytest.raises(SystemExit) as left:
                gradcheck.main(settings)
            assert left.value.code == code
    finally:
        keras.config.set_floatx("float32")
    printed = capsys.readouterr().out
    assert line in printed
    assert ("planted" in printed) == (layer not in ("exact", "half_lost"))
    assert ("were not checked" in printed) == (layer == "half_lost")
    if precision != "float32":
        assert f"{precision} compared with float32: " in printed
        assert "cosine 0.99" in printed or "cosine 1.0" in printed


@pytest.mark.parametrize("cosine,near", [(0.91, True), (0.89, False), (float("nan"), False)])
def test_is_near_depends_on_the_cosine(tiny, monkeypatch, capsys, cosine, near):
    monkeypatch.setattr(build, "detector", made_of(tiny, "exact"))
    monkeypatch.setattr(exactness, "check_precision", lambda *_: (0.5, cosine))
    monkeypatch.setattr(exactness, "WARM_UP", 0)
    run = types.SimpleNamespace(settings=Train(precision="mixed_bfloat16"), dataset=None)
    assert gradcheck.is_near(run, first_streams(tiny)) == near
    printed = capsys.readouterr().out
    assert f"mixed_bfloat16 compared with float32: cosine {cosine:.4f}, relative error 5.0e-01" in printed
    assert ("NOT near" in printed) != near
