"""Detectors by name. Each is differentiable twice, so that Eqn 3 is exact through it."""

from __future__ import annotations

from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.models.detectors.retinanet import RetinaNet

DETECTORS = {"retinanet_small": retinanet.small, "retinanet_resnet50": retinanet.resnet50}


def build(
    name: str,
    image_shape: tuple[int, int, int],
    classes: int,
    *,
    sizes: tuple[float, ...] = (),
    scales: tuple[float, ...] = (),
    ratios: tuple[float, ...] = (),
) -> RetinaNet:
    """The detector `name` of DETECTORS for images (H, W, C); empty anchor arguments: the detector's own."""
    given = {"sizes": sizes, "scales": scales, "ratios": ratios}
    return DETECTORS[name](image_shape, classes, **{k: v for k, v in given.items() if v})
