"""Ends a child with its parent, and reads the memory that is available before the kernel kills processes.

Does not import TensorFlow, which takes seconds.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.errors import EXIT_INTERRUPTED

_PR_SET_PDEATHSIG = 1  # prctl(2)
_NAME = "PREFLIGHT_PARENT"
# Mount point below /sys/fs/cgroup, files with limit and use, and statistics of cached files, which the kernel
# drops when it needs memory: cgroup v2 (memory.max is "max" if there is no limit), then v1.
_V2 = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


class AvailableMemory(NamedTuple):
    """Memory in bytes of the machine, or of the control group with the least available memory."""

    total: int
    available: int


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> AvailableMemory:
    """Returns the smallest memory available to the machine, this process's control group and its parents.

    In a container the mount point is its own group; Slurm and systemd set limits further down.
    """
    machine = (proc / "meminfo").read_text()
    total, available = (
        1024 * int(re.search(rf"^{name}:\s*(\d+) kB", machine, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("MemTotal", "MemAvailable")
    )
    found_memory = [AvailableMemory(total, available)]
    own = _read(proc / "self" / "cgroup")
    for (mount, limit, use, cached), line in ((_V2, r"0::"), (_V1, r"\d+:(?:\w+,)*memory(?:,\w+)*:")):
        found = re.search(rf"^{line}/(.*)$", own, re.MULTILINE)
        path = Path(found[1] if found else "")
        for folder in (cgroup / mount / group for group in dict.fromkeys((path, *path.parents))):
            text = _read(folder / limit)
            if text.isdecimal():
                lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
                files = sum(int(number) for name, number in lines if name in cached)
                free = int(text) - int(_read(folder / use)) + files
                found_memory.append(AvailableMemory(int(text), free))
    return min(found_memory, key=lambda memory: memory.available)


def resident(pid: int) -> int:
    """Returns the resident memory of a process in bytes; 0 if it has ended."""
    found = re.search(r"VmRSS:\s*(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return 1024 * int(found[1]) if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def variable() -> dict[str, str]:
    """Returns the environment variable that tells a child the process id of this parent."""
    return {_NAME: str(os.getpid())}


def end_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends; exits now if the parent has already ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Not compared with 1, the usual parent of orphans: `train` of a pod is process 1.
    if os.getppid() != int(os.environ.get(_NAME, os.getppid())):
        os._exit(EXIT_INTERRUPTED)
