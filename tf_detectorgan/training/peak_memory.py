"""The most memory that a phase has held, in this process and on the GPU that held the most."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

import tensorflow as tf

_PROCESS = Path("/proc/self")


def reset() -> None:
    """Begins to count anew, from what is held now; where the kernel refuses, it counts on."""
    with contextlib.suppress(OSError):
        (_PROCESS / "clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
    for gpu in _gpus():
        tf.config.experimental.reset_memory_stats(gpu)


def read() -> dict[str, int]:
    """MiB at most since `reset`: "peak_memory_mib" resident, and "gpu_peak_memory_mib" if there is a GPU."""
    found = re.search(r"VmHWM:\s*(\d+) kB", (_PROCESS / "status").read_text())
    kibibytes = int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # on Linux
    held = {"peak_memory_mib": kibibytes // 1024}
    peaks = [tf.config.experimental.get_memory_info(gpu)["peak"] for gpu in _gpus()]
    return held | ({"gpu_peak_memory_mib": max(peaks) // 2**20} if peaks else {})


def _gpus() -> list[str]:
    return [device.name.replace("/device:", "") for device in tf.config.list_logical_devices("GPU")]
