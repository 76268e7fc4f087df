"""Whether a pod's GPUs are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tf_detectorgan.errors import InputError


def require_gpus(visible: int, environment: Mapping[str, str], devices: Path = Path("/dev")) -> None:
    """A pod that was given GPUs must not train on its processors, days long and at the GPUs' price.

    Args:
      visible: GPUs that TensorFlow sees.
      environment: KUBERNETES_SERVICE_HOST is set in every pod; CUDA_VISIBLE_DEVICES "" or "-1" means no GPU.
      devices: the folder with nvidia0, nvidia1, ... of those that the pod was given.

    Raises:
      InputError: there are GPUs, and TensorFlow sees none.
    """
    given = sorted(str(path) for path in devices.glob("nvidia[0-9]*"))
    unwanted = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if given and not visible and not unwanted and "KUBERNETES_SERVICE_HOST" in environment:
        raise InputError(
            f"this pod has {', '.join(given)}, but TensorFlow sees none: is the image built with EXTRAS=gpu, "
            "and is the driver's libcuda.so.1 found (LD_LIBRARY_PATH)? CUDA_VISIBLE_DEVICES=-1 trains without"
        )
