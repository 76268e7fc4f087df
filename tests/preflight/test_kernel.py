"""Tests of the available memory with small files in the format of the kernel."""

import os
from pathlib import Path

import pytest

from tf_detectorgan.preflight import kernel
from tf_detectorgan.preflight.kernel import AvailableMemory

MIB = 2**20
V1 = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"
V2 = "memory.max", "memory.current", "memory.stat"


@pytest.fixture
def memory(tmp_path):
    """Returns memory(names, limit, use, stat) for a machine of 1000 KiB, of which 600 are available."""
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  5 kB\nMemAvailable:  600 kB\n")

    def memory(names=(), *texts):
        for name, text in zip(names, texts, strict=True):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        return kernel.available_memory(tmp_path, tmp_path)

    return memory


def test_machine_memory_is_used_without_a_control_group(memory):
    assert memory() == AvailableMemory(1000 * 1024, 600 * 1024)


@pytest.mark.parametrize("names, prefix", [(V1, "total_"), (V2, "")])
def test_cached_files_of_a_control_group_count_as_available(memory, names, prefix):
    stat = f"anon 7\n{prefix}inactive_file 30\n{prefix}active_file 12\nworkingset_active_file 99"
    assert memory(names, "5000", "4500", stat) == AvailableMemory(5000, 5000 - 4500 + 30 + 12)


@pytest.mark.parametrize("names, limit", [(V1, "9223372036854771712"), (V2, "max")])
def test_control_group_without_a_limit_is_ignored(memory, names, limit):
    assert memory(names, limit, "4500", "") == AvailableMemory(1000 * 1024, 600 * 1024)


@pytest.mark.parametrize("names, mount, line", [(V1, "memory", "5:cpu,memory:"), (V2, "", "0::")])
@pytest.mark.parametrize("tight", ["", "user.slice", "user.slice/job_7"])
def test_smallest_limit_of_parent_groups_is_used(memory, tmp_path, names, mount, line, tight):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(f"9:pids:/other\n{line}/user.slice/job_7\n")
    limit, use, stat = (Path(name).name for name in names)
    for group in ("", "user.slice", "user.slice/job_7", "other"):
        folder = tmp_path / mount / group
        folder.mkdir(parents=True, exist_ok=True)
        left = {tight: 10, "other": 5}.get(group, 20)
        (folder / limit).write_text("1000\n")
        (folder / use).write_text(f"{1000 - left}\n")
    assert memory() == AvailableMemory(1000, 10)


def test_missing_control_group_is_ignored(memory, tmp_path):
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text("0::/../../kubepods/pod1\n")
    assert memory() == AvailableMemory(1000 * 1024, 600 * 1024)


def test_resident_memory_of_this_and_of_a_missing_process():
    before = kernel.resident(os.getpid())
    held = bytearray(50 * MIB)
    assert 45 * MIB < kernel.resident(os.getpid()) - before < 60 * MIB
    assert len(held) == 50 * MIB
    assert kernel.resident(2**22 + 1) == 0  # above the largest process id
