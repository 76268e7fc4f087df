"""Finds the GPUs of a process without TensorFlow, which would allocate their memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tf_detectorgan.errors import InputError


def gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Returns the device files, such as nvidia0; none if CUDA_VISIBLE_DEVICES ("" or "-1") hides them."""
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return [] if hidden else sorted(str(path) for path in devices.glob("nvidia[0-9]*"))


def require_gpus(visible: int, environment: Mapping[str, str], devices: Path = Path("/dev")) -> None:
    """Raises an error in a pod whose GPUs TensorFlow does not find: on the CPU, a training takes days.

    Args:
      visible: number of GPUs that TensorFlow finds.
      environment: KUBERNETES_SERVICE_HOST is set in every pod.
      devices: the folder with the device files.

    Raises:
      InputError: the pod has GPUs, but TensorFlow finds none.
    """
    given = gpus(environment, devices)
    if given and not visible and "KUBERNETES_SERVICE_HOST" in environment:
        raise InputError(
            f"this pod has {', '.join(given)}, but TensorFlow finds none: build the image with EXTRAS=gpu, "
            "check LD_LIBRARY_PATH for libcuda.so.1; CUDA_VISIBLE_DEVICES=-1 trains on the CPU"
        )
