"""Asks the kernel to end a child with its parent, and how much memory is left before it kills processes.

Needs no TensorFlow, whose import takes seconds.
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
# Mount point below /sys/fs/cgroup, limit, use, and those lines of the statistics that are cached files, which
# the kernel drops when it needs room: cgroup v2 (memory.max is "max" where there is no limit), then v1.
_V2 = ("", "memory.max", "memory.current", ("inactive_file", "active_file"))
_V1 = (
    "memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


class Room(NamedTuple):
    """Memory in bytes: of the machine, or of the control group where that has less left."""

    total: int
    left: int


def room(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Room:
    """Returns the least of what the machine, this process's control group and the groups above it have left.

    A container sees its own group at the mount point; Slurm and systemd set limits further down.
    """
    machine = (proc / "meminfo").read_text()
    total, available = (
        1024 * int(re.search(rf"^{name}:\s*(\d+) kB", machine, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("MemTotal", "MemAvailable")
    )
    rooms = [Room(total, available)]
    own = _read(proc / "self" / "cgroup")
    for (mount, limit, use, cached), line in ((_V2, r"0::"), (_V1, r"\d+:(?:\w+,)*memory(?:,\w+)*:")):
        found = re.search(rf"^{line}/(.*)$", own, re.MULTILINE)
        path = Path(found[1] if found else "")
        for folder in (cgroup / mount / group for group in dict.fromkeys((path, *path.parents))):
            text = _read(folder / limit)
            if text.isdecimal():
                lines = (line.split() for line in _read(folder / "memory.stat").splitlines())
                files = sum(int(number) for name, number in lines if name in cached)
                rooms.append(Room(int(text), int(text) - int(_read(folder / use)) + files))
    return min(rooms, key=lambda one: one.left)


def resident(pid: int) -> int:
    """Returns the bytes that are resident of a process; 0 once it has ended."""
    found = re.search(r"VmRSS:\s*(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return 1024 * int(found[1]) if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def variable() -> dict[str, str]:
    """Returns the environment variable that names this process as the parent of one to be started."""
    return {_NAME: str(os.getpid())}


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends; ends it now if the parent has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Not compared with 1, the usual parent of orphans: a pod's `train` is process 1.
    if os.getppid() != int(os.environ.get(_NAME, os.getppid())):
        os._exit(EXIT_INTERRUPTED)
