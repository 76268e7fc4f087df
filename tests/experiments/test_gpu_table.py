"""gpu_check's table and verdict, by hand from given records."""

import copy

import pytest

from tf_detectorgan.experiments import gpu_table
from tf_detectorgan.experiments.gpu_table import AGAIN, BFLOAT16, FIRST, FREE, GRADCHECK, PHASES


def run(seconds, memory):
    phase = {"result": "ab12", "seconds": seconds, "faults": 0, "first_faults": [], "transfers": 2}
    return {
        "machine": {"Python": "3.11.7", "GPUs": [{"device_name": "T4", "compute_capability": "(7, 5)"}]},
        "phases": {name: dict(phase) for name in PHASES},
        "memory": memory,
    }


@pytest.fixture
def records():
    """All held, on a GPU."""
    found = {
        name: run(seconds, {"peak_memory_mib": 2000, "gpu_peak_memory_mib": mib})
        for name, seconds, mib in (
            (FIRST, 0.5, 800),
            (AGAIN, 0.5, 800),
            (FREE, 0.25, 810),
            (BFLOAT16, 0.125, 500),
        )
    }
    return copy.deepcopy(found) | {GRADCHECK: {"exact": True, "relative error": "2.8e-09", "said": "fine"}}


def test_everything_held(records):
    assert gpu_table.table(1, "--size=64", records) == (
        "gpu_check: 1 GPU found; the first one is checked\n"
        "\n"
        "`gpu_check --size=64`\n"
        "\n"
        "| | |\n"
        "|---|---|\n"
        "| Python | 3.11.7 |\n"
        "| GPU 0 | device_name T4, compute_capability (7, 5) |\n"
        "| Eqn 3, float64 | exact, relative error 2.8e-09 |\n"
        "\n"
        "| phase | same bits twice | ops a deterministic GPU would not run | copies to the host a step | s a "
        "step or batch, deterministic | not deterministic | bfloat16 |\n"
        "|---|---|---|---|---|---|---|\n"
        + "".join(f"| {phase} | yes | 0 | 2 | 0.5 | 0.25 | 0.125 |\n" for phase in PHASES)
        + "| peak memory, MiB | | | | 800 | 810 | 500 |\n"
    )
    assert gpu_table.failures(records) == []
    assert gpu_table.last_line([], "a.md") == "gpu_check: all that was checked held. table: a.md"


def test_without_a_gpu_the_first_line_says_what_is_not_checked(records):
    for record in records.values():
        record.get("memory", {}).pop("gpu_peak_memory_mib", None)
    text = gpu_table.table(0, "", records)
    assert text.splitlines()[0].startswith("gpu_check: no GPU was found. Checked on the CPU:")
    assert "Not checked: GPU kernels" in text
    assert "| peak memory, MiB | | | | 2000 | 2000 | 2000 |" in text


def test_other_bits_of_a_second_run(records):
    records[AGAIN]["phases"]["joint"]["result"] = "cd34"
    assert gpu_table.failures(records) == ["joint gave other bits when it ran again with the same seed"]
    assert "| joint | NO | 0 |" in gpu_table.table(1, "", records)
    last = gpu_table.last_line(gpu_table.failures(records), "")
    assert last.startswith("gpu_check: did NOT hold: joint gave other bits")


def test_ops_that_a_gpu_would_not_run_are_named(records):
    records[FIRST]["phases"]["detect"] |= {"faults": 7, "first_faults": ["a/b (Svd) refuses"]}
    assert gpu_table.failures(records) == ["detect has 7 ops that a deterministic GPU would not run"]
    assert "\n- detect: a/b (Svd) refuses\n" in gpu_table.table(1, "", records)


def test_gradcheck_that_is_not_exact(records):
    records[GRADCHECK] = {"exact": False, "relative error": "4.5e-05", "said": "NOT exact to 1e-06"}
    assert gpu_table.failures(records) == ["gradcheck: NOT exact to 1e-06"]
    assert "| Eqn 3, float64 | NOT exact, relative error 4.5e-05 |" in gpu_table.table(1, "", records)


@pytest.mark.parametrize("name", [FIRST, AGAIN, FREE, BFLOAT16, GRADCHECK])
def test_a_process_that_died_is_shown_with_its_last_line(records, name):
    records[name] = {
        "error": gpu_table.failed(1, "Traceback\n  File x\nUnimplementedError: no such kernel\n\n")
    }
    assert gpu_table.failures(records) == [f"{name}: exit code 1: UnimplementedError: no such kernel"]
    assert f"\n- {name}: exit code 1: UnimplementedError: no such kernel\n" in gpu_table.table(1, "", records)


def test_a_process_that_was_killed():
    said = gpu_table.failed(-9, "joint: 10%\n")
    assert said == "ended by SIGKILL (a lack of memory does that): joint: 10%"
    assert gpu_table.failed(1, "") == "exit code 1: it said nothing"


def test_what_the_settings_refuse_is_no_failure(records):
    records[BFLOAT16] = {"refused": "--precision=mixed_bfloat16: use float32"}
    assert gpu_table.failures(records) == []
    assert "\n- bfloat16: --precision=mixed_bfloat16: use float32\n" in gpu_table.table(1, "", records)
