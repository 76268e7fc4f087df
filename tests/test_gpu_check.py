"""`gpu_check` with processes of its own, and its verdict on records that are given."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from tf_detectorgan import config, gpu_check
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import gpu_table
from tf_detectorgan.gpu_check import RUNS, GpuCheck
from tf_detectorgan.training import trial
from tf_detectorgan.training.settings import Train


def given(result):
    """The record of a run whose phases ended with `result`."""
    phase = {"result": result, "seconds": 1.0, "faults": 0, "first_faults": [], "transfers": 0}
    phases = dict.fromkeys(gpu_table.PHASES, phase)
    return {"machine": {}, "phases": phases, "memory": {"peak_memory_mib": 9}}


@pytest.mark.slow
@pytest.mark.nightly
def test_a_tiny_check_from_end_to_end(tmp_path, monkeypatch, capfd):
    """One run and gradcheck are processes; the other runs' records are taken to be the first one's."""
    real, made, lock = gpu_check.trial, [], threading.Lock()

    def once(words, folder):
        with lock:
            made.append(made[0] if made else real(words, folder))
        return made[0]

    monkeypatch.setattr(gpu_check, "trial", once)
    out = tmp_path / "table.md"
    gpu_check.main(GpuCheck(detector="tests.own_detector:tiny", size=32, steps=4, out=str(out)))
    said, text = capfd.readouterr().out, out.read_text()
    assert said.startswith("gpu_check: no GPU was found.")
    assert text in said
    assert said.splitlines()[-1] == f"gpu_check: all that was checked held. table: {out}"
    assert len(made) == len(RUNS)
    rows = {line.split(" | ")[0][2:]: line.split(" | ")[1:] for line in text.splitlines() if " | " in line}
    for phase in gpu_table.PHASES:
        assert rows[phase][:2] == ["yes", "0"]
        assert float(rows[phase][3]) > 0
    assert float(rows["Eqn 3, float64"][0].split()[-2]) < 1e-6
    assert f"| TensorFlow | {tf.__version__} |" in text


@pytest.mark.parametrize("again, code", [("ab", None), ("cd", 1)])
def test_exit_code_1_when_a_second_run_has_other_bits(again, code, monkeypatch, capsys):
    results = {name: given("ab") for name in RUNS} | {gpu_table.AGAIN: given(again)}
    results[gpu_table.GRADCHECK] = {"exact": True, "relative error": "1e-9", "said": ""}
    monkeypatch.setattr(gpu_check, "run_all", lambda *_, **__: results)
    if code:
        with pytest.raises(SystemExit) as left:
            gpu_check.main(GpuCheck())
        assert left.value.code == code
    else:
        gpu_check.main(GpuCheck())
    assert ("did NOT hold: pretrain_gan gave other bits" in capsys.readouterr().out) == bool(code)


def test_processes_that_die_leave_their_last_line(monkeypatch, tmp_path):
    dying = [sys.executable, "-c", "import sys; sys.exit('Traceback\\nInternalError: no kernel image')"]
    monkeypatch.setattr(
        gpu_check, "_run", lambda *_: subprocess.run(dying, capture_output=True, text=True, check=False)
    )
    records = gpu_check.run_all(gpu_check._words(GpuCheck()), tmp_path, at_a_time=2)
    died = {"error": "exit code 1: InternalError: no kernel image"}
    assert records == dict.fromkeys(RUNS, died) | {gpu_table.GRADCHECK: {"error": "not run: no images"}}
    assert gpu_check.gradcheck([], tmp_path) == died
    text = gpu_table.table(1, "", records)
    assert "- deterministic: exit code 1: InternalError: no kernel image\n" in text
    assert "| joint | not known | none | none | none | none | none |\n" in text


def test_precision_that_a_detector_refuses_is_said_and_not_run(tmp_path):
    words = ["--detector=retinanet_kerashub", "--precision=mixed_bfloat16"]
    (reason,) = gpu_check.trial(words, tmp_path / "0").values()
    assert reason.startswith("--precision=mixed_bfloat16: rounding spoils Eqn 3")


def test_processes_get_flags_of_train():
    s = config.parse(Train, gpu_check._words(GpuCheck(detector="fcos_small", size=96, steps=5)))
    assert (s.detector, s.phantom_size, s.gan_steps, s.joint_steps) == ("fcos_small", 96, 5, 5)
    assert [config.parse(Train, more).deterministic for more in RUNS.values()] == [True, True, False, True]


def test_an_exception_ends_all_processes_and_starts_none(monkeypatch, tmp_path):
    """Ctrl-C in the wait for the first of three processes that would sleep, one at a time."""
    started = []

    def slow(words, folder):
        started.append(folder)
        return gpu_check._run("no_such_module") if len(started) > 1 else sleeping()

    def sleeping():
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
            gpu_check._running.add(process)
            os.kill(os.getpid(), signal.SIGINT)
            process.wait()
            gpu_check._running.discard(process)
        return {"ended by": -process.returncode}

    monkeypatch.setattr(gpu_check, "trial", slow)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # an earlier test may have its own
    try:
        with pytest.raises(KeyboardInterrupt):
            gpu_check.run_all([], tmp_path, at_a_time=1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert len(started) == 1


def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(InputError, match="not a file in a directory that exists"):
        gpu_check.main(GpuCheck(out=str(tmp_path / "missing" / "table.md")))


def test_an_error_of_tensorflow_in_one_line():
    text = "Graph execution error:\n\nDetected at node s defined at (most recent call last):\n  File a.py\n\n"
    text += "A deterministic GPU implementation of it is not available.\n\t [[{{node s}}]] [Op:__inference_1]"
    error = tf.errors.UnimplementedError(None, None, text)
    assert trial.last_line(error) == (
        "UnimplementedError: A deterministic GPU implementation of it is not available."
    )
    assert trial.last_line(KeyError()) == "KeyError"
