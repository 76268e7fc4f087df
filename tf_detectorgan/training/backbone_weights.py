"""Pretrained weights of a ResNet-50: fetched once, stored in the run directory."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from tf_detectorgan.errors import InputError

MAX_NAMED = 5  # mismatches in an error message


def fetch(source: str, file: Path) -> None:
    """Writes the weights of `source` to `file`; `source`: "imagenet", or a file as in `read`.

    `file` is in the run directory, so that resuming needs neither the source nor a network connection.

    Raises:
      InputError: the weights cannot be downloaded, or do not fit.
    """
    try:
        if source == "imagenet":
            network = _imagenet()
        else:
            network = keras.applications.ResNet50(include_top=False, weights=None)
            assign(network, Path(source).expanduser())
    except InputError as error:
        raise InputError(f"--backbone_weights: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{os.getpid()}.{file.name}")
    network.save_weights(partial)
    os.replace(partial, file)


def _imagenet() -> keras.Model:
    try:
        return keras.applications.ResNet50(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a plain Exception
        if "URL fetch failure" not in str(error):
            raise
        raise InputError(
            f"imagenet: {error}; or write a weights file on a machine with a network connection by "
            "keras.applications.ResNet50(include_top=False).save_weights('resnet50.weights.h5') and give it"
        ) from error


def assign(network: keras.Model, file: Path) -> None:
    """Assigns to every layer of `network` the weights of its name in `file`; `file` may have more layers.

    Raises:
      InputError: layers are missing in the file or have another shape there. Nothing is then assigned.
    """
    weights, problems = read(file), []
    layers = [layer for layer in network.layers if layer.weights]
    for layer in layers:
        shapes = [tuple(w.shape) for w in layer.weights]
        found = [values.shape for values in weights.get(layer.name, [])]
        if found != shapes:
            problems.append(f"{layer.name} is {found or 'missing'}, should be {shapes}")
    if problems:
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        raise InputError(
            f"{file}: does not fit {network.name} in {len(problems)} of {len(layers)} "
            f"layers: {'; '.join(problems[:MAX_NAMED])}{more}"
        )
    for layer in layers:
        layer.set_weights(weights[layer.name])


def read(file: Path) -> dict[str, list[np.ndarray]]:
    """Returns {layer name: weights} from a .keras or .weights.h5 file, or an .h5 file of Keras 2.

    Raises:
      InputError: there is no such file, or it has another format.
    """
    try:
        if file.suffix != ".keras":
            with h5py.File(file) as content:
                return _layers(content)
        with zipfile.ZipFile(file) as archive, archive.open("model.weights.h5") as inner:
            with h5py.File(inner) as content:
                return _layers(content)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{file}: {error}; give none, imagenet, or a Keras weights file (.keras, .weights.h5, .h5)"
        ) from error


def _layers(content: h5py.Group) -> dict[str, list[np.ndarray]]:
    if "model_weights" in content or "layer_names" in content.attrs:  # Keras 2
        layers = content.get("model_weights", content)
        names = [np.bytes_(name).decode() for name in layers.attrs["layer_names"]]  # bytes in older files
        return {k: [np.asarray(layers[k][w]) for w in layers[k].attrs["weight_names"]] for k in names}
    found: dict[str, list[np.ndarray]] = {}

    def visit(path: str, group) -> None:
        if path.endswith("/vars") and "name" in group.attrs:
            found[group.attrs["name"]] = [np.asarray(group[str(k)]) for k in range(len(group))]

    content.visititems(visit)
    return found
