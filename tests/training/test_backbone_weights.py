"""Pretrained backbone weights: file formats, errors with layer and shape, the copy in the run directory."""

import socket

import h5py
import keras
import numpy as np
import pytest

from tf_detectorgan.errors import InputError
from tf_detectorgan.models import detectors
from tf_detectorgan.models.detectors import backbone
from tf_detectorgan.training import backbone_weights, build, run_directory
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


def network(filters=3, first="first", more=()):
    keras.utils.set_random_seed(filters)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(filters, 3, name=first),
            keras.layers.BatchNormalization(name="norm"),
            *more,
        ],
        name="tiny",
    )


def as_keras_2(file):
    """Makes the names bytes, as in files of Keras 2."""
    with h5py.File(file, "r+") as content:
        layers = content["model_weights"]
        for group, name in [(layers, "layer_names"), *((one, "weight_names") for one in layers.values())]:
            if name in group.attrs:
                group.attrs[name] = np.array([one.encode() for one in group.attrs[name]], dtype="S")


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_layers_are_assigned_by_name_from_every_format(tmp_path, suffix):
    """The file may have other layers."""
    source = network(more=[keras.layers.Dense(2, name="head")])
    source.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in source.weights])
    file = tmp_path / f"source{suffix}"
    (source.save_weights if suffix == ".weights.h5" else source.save)(file)
    if suffix == ".h5":
        as_keras_2(file)
    ours = network()
    backbone_weights.assign(ours, file)
    for found, expected in zip(ours.get_weights(), source.get_weights()[:6], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_missing_layers_and_other_shapes_raise_with_their_names(tmp_path):
    file = tmp_path / "other.weights.h5"
    network(filters=5).save_weights(file)
    ours = network(more=[keras.layers.Dense(2, name="head")])
    before = ours.get_weights()
    with pytest.raises(InputError) as raised:
        backbone_weights.assign(ours, file)
    message = str(raised.value)
    assert (
        "does not fit tiny in 3 of 3 layers: first is [(3, 3, 1, 5), (5,)], should be [(3, 3, 1, 3), (3,)]"
        in message
    )
    assert "head is missing, should be [(3, 2), (2,)]" in message
    assert all(np.array_equal(a, b) for a, b in zip(before, ours.get_weights(), strict=True))


@pytest.mark.parametrize("name,content", [("none.keras", None), ("text.h5", "text"), ("text.keras", "text")])
def test_file_without_weights_raises_with_its_name(tmp_path, name, content):
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}: .*give none, imagenet, or a Keras weights file"):
        backbone_weights.read(tmp_path / name)


def test_pretrained_weights_for_unsupported_detector_or_channels_raise():
    with pytest.raises(InputError, match="--backbone_weights: --detector=fcos_small has no such option"):
        Train(detector="fcos_small", backbone_weights="imagenet")
    with pytest.raises(InputError, match="images of 1 or 3 channels, these have 2"):
        backbone.resnet50((32, 32, 2), pretrained=True)


def test_failed_download_raises_with_its_url_and_an_alternative(tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))  # no cached download
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        InputError,
        match=r"^--backbone_weights: imagenet: .*https://storage\.googleapis\.com/.*resnet50\.weights\.h5",
    ):
        backbone_weights.fetch("imagenet", tmp_path / "run" / "weights.h5")
    assert not (tmp_path / "run").exists()


class FakeDetector:
    """A detector with the attributes that `build_run` uses."""

    unrollable = True

    def __init__(self):
        self.backbone = network(filters=4)
        self.weights = self.backbone.weights
        self.detect = self.backbone


def test_run_keeps_a_copy_of_the_weights(tmp_path, tiny_phantom, monkeypatch):
    """It can be resumed after the file was deleted, but not with other weights."""
    source, DET = network(filters=4), FakeDetector()
    source.set_weights([np.random.default_rng(0).normal(size=w.shape) for w in source.weights])
    monkeypatch.setattr(keras.applications, "ResNet50", lambda **_: network(filters=4))
    monkeypatch.setattr(detectors, "build", lambda *_, **options: DET if options["pretrained"] else None)
    file = tmp_path / "theirs.weights.h5"
    source.save_weights(file)
    options = {"run_dir": str(tmp_path / "run"), "data_dir": str(tiny_phantom("pretrained"))}
    options |= {"detector": "retinanet_resnet50"}
    run_directory.begin(Train(**options, backbone_weights=str(file)), Workers())
    file.unlink()
    run = run_directory.begin(Train(**options, backbone_weights=str(file)), Workers())
    build.detector(run.settings, run.dataset, run.strategy)
    for found, expected in zip(DET.backbone.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(InputError, match="--backbone_weights was .*theirs.weights.h5, is none"):
        run_directory.begin(Train(**options), Workers())


@pytest.fixture(scope="module")
def theirs():
    return keras.applications.ResNet50(include_top=False, weights=None)


@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_backbone_output_equals_keras(theirs, channels):
    """A grey image is treated as a colour image with equal channels."""
    ours = backbone.resnet50((32, 32, channels), pretrained=True)
    ours.set_weights(theirs.get_weights())
    stored = np.random.default_rng(0).integers(0, 256, (1, 32, 32, channels)).astype(np.float32)
    colour = np.broadcast_to(stored, (1, 32, 32, 3)).copy()  # which preprocess_input changes
    expected = theirs(keras.applications.resnet.preprocess_input(colour))
    np.testing.assert_allclose(ours(stored / 127.5 - 1), expected, atol=1e-4 * np.max(expected))
    norms = [part for part in ours.layers if isinstance(part, keras.layers.BatchNormalization)]
    assert len(norms) == 53
    assert not any(part.trainable for part in norms)
