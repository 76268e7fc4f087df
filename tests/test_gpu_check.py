"""Tests of `gpu_check`: its processes, and the result that it prints for given records."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import tensorflow as tf

from tf_detectorgan import command, config, gpu_check
from tf_detectorgan.errors import InputError
from tf_detectorgan.gpu_check import GRADCHECK, RUNS, GpuCheck
from tf_detectorgan.training.settings import Train

PHASES = ("pretrain_gan", "pretrain_detector", "joint", "synthetic", "final_detector", "evaluation")


def given(result):
    """Returns the record of a run whose phases have the hash `result`."""
    phase = {"result": result, "seconds": 1.0, "memory": 9, "faults": 0, "first_faults": [], "transfers": 0}
    return {"machine": {}, "phases": dict.fromkeys(PHASES, phase)}


@pytest.mark.slow
@pytest.mark.nightly
def test_tiny_check_from_end_to_end(tmp_path, monkeypatch, capfd):
    """Starts one run and gradcheck; the other runs reuse the record of the first."""
    real, made = gpu_check.run_trial, []

    def once(words, folder):
        made.append(made[0] if made else real(words, folder))
        return made[0]

    monkeypatch.setattr(gpu_check, "run_trial", once)
    out = tmp_path / "table.md"
    gpu_check.main(GpuCheck(detector="tests.own_detector:tiny", size=32, steps=2, out=str(out)))
    printed, text = capfd.readouterr().out, out.read_text()
    assert printed.startswith("gpu_check: no GPU found.")
    assert text in printed
    assert printed.splitlines()[-1] == f"gpu_check: all checks passed. table: {out}"
    assert len(made) == len(RUNS)
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    for phase in PHASES:
        assert rows[phase][:2] == ["yes", "0"]
        assert float(rows[phase][3]) > 0
    assert float(rows["Eqn 3, float64"][0].split()[-2]) < 1e-6
    assert f"| TensorFlow | {tf.__version__} |" in text


@pytest.mark.parametrize("again, code", [("ab", None), ("cd", 1)])
def test_exit_code_is_1_if_two_runs_are_not_bit_identical(again, code, monkeypatch, capsys):
    results = {name: given("ab") for name in RUNS} | {gpu_check.AGAIN: given(again)}
    results[GRADCHECK] = {"exact": True, "relative error": "1e-9", "said": ""}
    monkeypatch.setattr(gpu_check, "run_all", lambda *_: results)
    if code:
        with pytest.raises(SystemExit) as left:
            gpu_check.main(GpuCheck())
        assert left.value.code == code
    else:
        gpu_check.main(GpuCheck())
    printed = capsys.readouterr().out
    assert ("FAILED: pretrain_gan: two runs with the same seed" in printed) == bool(code)
    assert f"| joint | {'NO' if code else 'yes'} | 0 | 0 | 1 | 1 | 1 | 9 | 9 | 9 |\n" in printed


def test_failed_processes_are_reported_with_their_last_line(monkeypatch, tmp_path):
    dying = [sys.executable, "-c", "import sys; sys.exit('Traceback\\nInternalError: no kernel image')"]
    monkeypatch.setattr(
        gpu_check, "_run", lambda *_: subprocess.run(dying, capture_output=True, text=True, check=False)
    )
    records = gpu_check.run_all(gpu_check.train_flags(GpuCheck()), tmp_path)
    assert records == dict.fromkeys(
        [*RUNS, GRADCHECK], {"error": "exit code 1: InternalError: no kernel image"}
    )
    text = gpu_check.table(1, "", records)
    assert "- deterministic: exit code 1: InternalError: no kernel image\n" in text
    assert "| Eqn 3, float64 | failed |" in text


def test_sigterm_ends_the_child_process(monkeypatch, tmp_path, handlers):
    """Tests the handler that `command` sets, with `timeit` as a long-running process."""
    file = tmp_path / "pid"
    work = f"open({str(file)!r}, 'w').write(f'{{os.getpid()}}\\n'); time.sleep(60)"
    monkeypatch.setattr(config, "read_flags", lambda options: None)
    children = []

    def end_this_process():
        while not file.exists() or not file.read_text().endswith("\n"):
            time.sleep(0.02)
        children.append(int(file.read_text()))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_this_process, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as left:
        command.guard(
            GpuCheck, lambda _: gpu_check._run("timeit", "-n1", "-r1", "-s", "import os, time", work)
        )
    thread.join()
    assert left.value.code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)


def test_unsupported_precision_is_reported_without_a_run(tmp_path):
    words = ["--detector=retinanet_kerashub", "--precision=mixed_bfloat16"]
    (reason,) = gpu_check.run_trial(words, tmp_path / "0").values()
    assert reason.startswith("--precision=mixed_bfloat16: rounding makes the gradient")


def test_train_flags_are_valid_for_train():
    s = config.parse(Train, gpu_check.train_flags(GpuCheck(detector="fcos_small", size=96, steps=5)))
    assert (s.detector, s.phantom_size, s.pretrain_gan_steps, s.joint_steps) == ("fcos_small", 96, 5, 5)
    assert [config.parse(Train, more).deterministic for more in RUNS.values()] == [True, True, False, True]


def test_out_in_a_missing_directory_is_an_error_before_any_run(tmp_path):
    with pytest.raises(InputError, match="give a file in an existing directory"):
        gpu_check.main(GpuCheck(out=str(tmp_path / "missing" / "table.md")))
