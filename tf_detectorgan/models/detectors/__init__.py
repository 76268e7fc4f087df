"""Detectors by name. Each has an exact second derivative, which Eqn 3 needs."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable

from tf_detectorgan.errors import InputError
from tf_detectorgan.models.detectors import fcos, kerashub, retinanet
from tf_detectorgan.models.detectors.detector import Detector

# Each takes (image_shape, classes), and its options as keyword arguments.
DETECTORS: dict[str, Callable[..., Detector]] = {
    "retinanet_small": retinanet.small,
    "retinanet_resnet50": retinanet.resnet50,
    "retinanet_kerashub": kerashub.resnet50,
    "fcos_small": fcos.small,
}
# The flag of each option, with the value that means "not given".
FLAGS = {
    "sizes": "--anchor_sizes=",
    "ratios": "--anchor_ratios=",
    "pretrained": "--backbone_weights=none",
}


def maker(name: str, options: Iterable[str] = ()) -> Callable[..., Detector]:
    """Returns the function that builds detector `name`: a key of DETECTORS, or "package.module:function".

    Raises:
      InputError: it does not exist, or lacks one of `options` (keys of FLAGS).
    """
    make = DETECTORS[name] if name in DETECTORS else _imported(name)
    for option in options:
        if option not in inspect.signature(make).parameters:
            flag, _ = FLAGS[option].split("=")
            raise InputError(
                f"{flag}: --detector={name} has no such option; leave it out, or set {FLAGS[option]}"
            )
    return make


def _imported(name: str) -> Callable[..., Detector]:
    module, _, function = name.partition(":")
    if not function:
        raise InputError(
            f"--detector={name} is none of {', '.join(DETECTORS)}; name your own as package.module:function"
        )
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--detector={name}: {error}; the module must be importable, for example by PYTHONPATH"
        ) from error


def build(name: str, image_shape: tuple[int, int, int], classes: int, **options) -> Detector:
    """Returns detector `name` for images (H, W, C); `options`: keys of FLAGS; empty values mean its defaults.

    Raises:
      InputError: there is no such detector, it lacks a given option, or an argument is invalid for it.
    """
    given = {k: v for k, v in options.items() if v}
    return maker(name, given)(image_shape, classes, **given)
