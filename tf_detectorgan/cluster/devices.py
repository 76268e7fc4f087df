"""GPUs that a process was given, without TensorFlow, which would take their memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tf_detectorgan.errors import InputError


def gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Returns the device files, such as nvidia0; none if CUDA_VISIBLE_DEVICES ("" or "-1") hides them."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return [] if hidden else sorted(str(path) for path in devices.glob("nvidia[0-9]*"))


def require_gpus(visible: int, environment: Mapping[str, str], devices: Path = Path("/dev")) -> None:
    """A pod that was given GPUs must not train on its processors, days long and at the GPUs' price.

    Args:
      visible: GPUs that TensorFlow sees.
      environment: KUBERNETES_SERVICE_HOST is set in every pod.
      devices: the folder with the device files.

    Raises:
      InputError: there are GPUs, and TensorFlow sees none.
    """
    given = gpus(environment, devices)
    if given and not visible and "KUBERNETES_SERVICE_HOST" in environment:
        raise InputError(
            f"this pod has {', '.join(given)}, but TensorFlow sees none: is the image built with EXTRAS=gpu, "
            "and is the driver's libcuda.so.1 found (LD_LIBRARY_PATH)? CUDA_VISIBLE_DEVICES=-1 trains without"
        )
