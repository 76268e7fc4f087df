"""Room for memory by small files that look like the kernel's."""

import os
from pathlib import Path

import pytest

from tf_detectorgan.preflight import kernel
from tf_detectorgan.preflight.kernel import Room

MIB = 2**20
V1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"
V2 = "memory.max", "memory.current", "memory.stat"


@pytest.fixture
def room(tmp_path):
    """room(names, limit, use, stat): of a machine of 1000 KiB, 600 of them available."""
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  5 kB\nMemAvailable:  600 kB\n")

    def room(names=(), *texts):
        for name, text in zip(names, texts, strict=True):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        return kernel.room(tmp_path, tmp_path)

    return room


def test_without_a_control_group_the_machine_counts(room):
    assert room() == Room(1000 * 1024, 600 * 1024)


@pytest.mark.parametrize("names, prefix", [(V1, "total_"), (V2, "")])
def test_a_control_groups_cached_files_count_as_left(room, names, prefix):
    stat = f"anon 7\n{prefix}inactive_file 30\n{prefix}active_file 12\nworkingset_active_file 99"
    assert room(names, "5000", "4500", stat) == Room(5000, 5000 - 4500 + 30 + 12)


@pytest.mark.parametrize("names, limit", [(V1, "9223372036854771712"), (V2, "max")])
def test_a_control_group_without_a_limit_does_not_count(room, names, limit):
    assert room(names, limit, "4500", "") == Room(1000 * 1024, 600 * 1024)


@pytest.mark.parametrize("names, mount, line", [(V1, "memory", "5:cpu,memory:"), (V2, "", "0::")])
@pytest.mark.parametrize("tight", ["", "user.slice", "user.slice/job_7"])
def test_the_tightest_of_the_groups_above_counts(room, tmp_path, names, mount, line, tight):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"9:pids:/other\n{line}/user.slice/job_7\n")
    limit, use, stat = (Path(name).name for name in names)
    for group in ("", "user.slice", "user.slice/job_7", "other"):
        folder = tmp_path / mount / group
        folder.mkdir(parents=True, exist_ok=True)
        left = {tight: 10, "other": 5}.get(group, 20)
        (folder / limit).write_text("1000\n")
        (folder / use).write_text(f"{1000 - left}\n")
    assert room() == Room(1000, 10)


def test_a_group_that_has_ended_or_is_not_mounted_does_not_count(room, tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/../../kubepods/pod1\n")
    assert room() == Room(1000 * 1024, 600 * 1024)


def test_resident_memory_of_this_process_and_of_none():
    before = kernel.resident(os.getpid())
    held = bytearray(50 * MIB)
    assert 45 * MIB < kernel.resident(os.getpid()) - before < 60 * MIB
    assert len(held) == 50 * MIB
    assert kernel.resident(2**22 + 1) == 0  # above the largest process number
