"""Peak memory of a phase, of this process and of the GPU with the highest peak."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

import tensorflow as tf

_PROCESS = Path("/proc/self")


def reset() -> None:
    """Resets the peaks to the current memory. If the kernel does not allow it, the process's peak is kept."""
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): sets the peak to the current resident memory
    for gpu in _gpus():
        tf.config.experimental.reset_memory_stats(gpu)


def read() -> dict[str, int]:
    """Returns the peaks since `reset` in MiB: "peak_memory_mib" and, with a GPU, "gpu_peak_memory_mib"."""
    found = re.search(r"VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text())
    kibibytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux
    result = {"peak_memory_mib": kibibytes // 1024}
    peaks = [tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in _gpus()]
    return result | ({"gpu_peak_memory_mib": max(peaks) // 2**20} if peaks else {})


def _gpus() -> list[str]:
    return [device.name.replace("/device:", "") for device in tf.config.list_logical_devices("GPU")]
