"""How much memory a process may still take before the kernel ends it, or its whole container."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

# Limit, use, and those lines of memory.stat that are cached files, which the kernel drops when it needs room:
# cgroup v2 (memory.max is "max" where there is no limit), then v1.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


class Room(NamedTuple):
    """Memory in bytes: of the machine, or of the control group where that has less left."""

    total: int
    left: int


def room(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Room:
    """The least of what the machine and the control group have left."""
    machine = (proc / "meminfo").read_text()
    total, available = (
        1024 * int(re.search(rf"^{name}:\s*(\d+) kB", machine, re.MULTILINE)[1])  # type: ignore[index]
        for name in ("MemTotal", "MemAvailable")
    )
    rooms = [Room(total, available)]
    for limit, use, stat, cached in _GROUPS:
        text = _read(cgroup / limit)
        if text.isdecimal():
            files = sum(_number(_read(cgroup / stat), name) for name in cached)
            rooms.append(Room(int(text), int(text) - int(_read(cgroup / use)) + files))
    return min(rooms, key=lambda one: one.left)


def resident(pid: int) -> int:
    """Bytes that a process holds; 0 once it has ended."""
    found = re.search(r"VmRSS:\s*(\d+) kB", _read(Path(f"/proc/{pid}/status")))
    return 1024 * int(found[1]) if found else 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str, name: str) -> int:
    found = re.search(rf"^{name} (\d+)$", text, re.MULTILINE)
    return int(found[1]) if found else 0
