"""Tests when a preflight runs, and its outcomes. A small script stands in for the child, except once."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import reproduce, train
from tf_detectorgan.config import from_json
from tf_detectorgan.errors import InputError, Interrupted
from tf_detectorgan.experiments import runner
from tf_detectorgan.experiments.tables import TABLES
from tf_detectorgan.preflight import check, kernel, plan
from tf_detectorgan.preflight.kernel import AvailableMemory
from tf_detectorgan.reproduce import Reproduce
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.settings import Train

ROOT = Path(__file__).resolve().parents[2]
MIB, GIB = 2**20, 2**30
POD = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
RECORD = {"seconds": 1.0, "step_seconds": 0.5, "image_seconds": 0.5, "peak_memory_mib": 300}
FINISH = """
import json, os, pathlib, signal, sys, time
home, folders = pathlib.Path(sys.argv[1]), sys.argv[2:]
(home / "devices.json").write_text('{"replicas": 1, "gpu": false}')
for folder in folders:
    (home / folder).mkdir(parents=True)
    (home / folder / "new").write_text(json.dumps(RECORD))
    (home / folder / "new").rename(home / folder / "done.json")  # atomically, as `checkpoints.finish` does
""".replace("RECORD", repr(RECORD))


@pytest.fixture(scope="module")
def data(tiny_phantom):
    return str(tiny_phantom("preflight"))


@pytest.fixture
def settings(tmp_path, data):
    return Train(
        run_dir=str(tmp_path / "run"),
        data_dir=data,
        arm=("cut_paste",),
        preflight="true",
        final_detector_steps=9,
    )


@pytest.fixture
def scripted(monkeypatch, settings):
    """Returns scripted(script, finished), which replaces the child; `finished`: number of finished phases."""
    monkeypatch.setattr(check, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(kernel, "available_memory", lambda: AvailableMemory(100 * GIB, 50 * GIB))
    processes = []

    def scripted(script, finished=0):
        def start(short, environment, log):
            done = [str(phase.folder) for phase in plan.phases(short, 1)][:finished]
            with log.open("wb") as out:
                command = [sys.executable, "-c", FINISH + script, short.run_dir, *done]
                processes.append(subprocess.Popen(command, stdout=out, stderr=out))
            return processes[-1]

        monkeypatch.setattr(check, "start", start)
        return processes

    return scripted


def left_behind(settings):
    return sorted(path.name for path in Path(settings.run_dir).iterdir())


def test_killed_child_is_reported_with_phase_costs_and_remedies(scripted, settings, capsys):
    scripted(
        "os.kill(os.getpid(), signal.SIGKILL)", finished=3
    )  # two held-out detectors, the synthetic images
    with pytest.raises(InputError) as refused:
        check.before(settings)
    assert str(refused.value).startswith(
        "preflight: cut_paste/final_detector was killed, probably because memory ran out"
    )
    assert str(refused.value).endswith("of 100.0 GiB of memory in use); try a lower --detector_batch than 8")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == [
        "held_out_detector_0",
        "held_out_detector_1",
        "cut_paste/synthetic",
    ]
    assert left_behind(settings) == ["preflight.log"]


def test_child_that_uses_nearly_all_memory_is_killed(scripted, settings, monkeypatch):
    limit = 300 * MIB
    processes = scripted("held = bytearray(400 << 20); time.sleep(60)")
    used = lambda: kernel.resident(processes[-1].pid) if processes else 0  # noqa: E731
    monkeypatch.setattr(kernel, "available_memory", lambda: AvailableMemory(limit, limit - used()))
    with pytest.raises(
        InputError, match=r"^preflight: held_out_detector_0 was killed, .* memory ran out \(0.[3-9] GiB"
    ):
        check.before(settings)
    assert processes[0].returncode == -signal.SIGKILL


def test_errors_of_the_child_are_raised_with_their_text(scripted, settings):
    scripted("raise RuntimeError('no kernel')", finished=1)
    with pytest.raises(
        RuntimeError, match=r"^preflight: held_out_detector_1 failed: RuntimeError: no kernel \(full log: "
    ):
        check.before(settings)
    scripted("print('error: --x=1: is bad; give 2', file=sys.stderr); sys.exit(78)")
    with pytest.raises(InputError, match="^--x=1: is bad; give 2$"):
        check.before(settings)


def test_signal_kills_the_child_and_handlers_are_restored(scripted, settings, monkeypatch, handlers):
    processes = scripted("time.sleep(60)")
    mine = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(kernel, "resident", lambda pid: os.kill(os.getpid(), signal.SIGTERM) or 0)
    with pytest.raises(Interrupted, match="SIGTERM in preflight: it is not saved"):
        check.before(settings)
    assert processes[0].returncode == -signal.SIGKILL
    assert signal.getsignal(signal.SIGTERM) is mine
    assert left_behind(settings) == ["preflight.log"]


def test_signal_while_the_child_ends_is_raised(scripted, settings, monkeypatch, handlers):
    processes = scripted("", finished=5)

    def sleep(seconds):  # the last statement of the last iteration
        processes[0].wait()
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(check.time, "sleep", sleep)
    with pytest.raises(Interrupted, match="SIGTERM in preflight"):
        check.before(settings)
    assert processes[0].returncode == 0
    assert left_behind(settings) == ["preflight.log"]


def test_too_little_disk_space_is_an_error(scripted, settings, monkeypatch):
    scripted("(home / folders[2] / 'synthetic.tfrecord').write_bytes(bytes(1000))", finished=5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(
        InputError, match="^preflight: about .* of disk are needed, most of it by cut_paste/synth"
    ):
        check.before(settings)
    assert left_behind(settings) == ["preflight.log"]


def test_passed_preflight_is_recorded_and_not_repeated(scripted, settings, capsys):
    scripted("", finished=5)
    check.before(settings)
    assert left_behind(settings) == ["preflight.json", "preflight.log"]
    passed = json.loads((Path(settings.run_dir) / "preflight.json").read_text())
    assert from_json(Train, json.dumps(passed["settings"]), "") == settings
    rows = {row["phase"]: row for row in passed["rows"]}
    # 9 steps instead of 3, half a second each; a validation of 2 images, half a second each.
    assert rows["cut_paste/final_detector"]["hours"] == pytest.approx((1 + 6 * 0.5 + 2 * 0.5) / 3600)
    scripted("raise AssertionError")
    check.before(settings)
    check.before(dataclasses.replace(settings, preflight="auto"), POD)
    check.before(dataclasses.replace(settings, log_every=1))  # does not change the measured costs
    for changed in ({"arm": ("cut_paste", "superpose")}, {"gan_batch": 9}):
        with pytest.raises(RuntimeError, match="AssertionError"):
            check.before(dataclasses.replace(settings, **changed))


def test_settings_that_differ_from_the_run_are_an_error_before_the_child_starts(scripted, settings):
    scripted("raise AssertionError")
    config = Path(settings.run_dir) / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"final_detector_steps": 9, "gan_batch": 77}))
    with pytest.raises(InputError, match="--gan_batch was 77"):
        check.before(settings)


def test_preflight_is_due_by_flag_and_environment(settings):
    def due(choice, environment):
        return check.due(dataclasses.replace(settings, preflight=choice), environment)

    # Outside and inside a pod; the run takes seconds.
    assert {choice: (due(choice, {}), due(choice, POD)) for choice in ("auto", "true", "false")} == {
        "auto": (False, True),
        "true": (True, True),
        "false": (False, False),
    }
    for folder in ("shared/pretrain_gan", "arms/real_only"):
        (Path(settings.run_dir) / folder).mkdir(parents=True)
        (Path(settings.run_dir) / folder / "done.json").write_text("{}")
    assert due("auto", POD)  # --arm=cut_paste has not started
    (Path(settings.run_dir) / "arms/cut_paste").mkdir()
    assert [due(choice, POD) for choice in ("auto", "true")] == [False, True]


@pytest.mark.parametrize("choice", ["auto", "false"])
def test_files_of_a_killed_preflight_are_removed(scripted, settings, choice):
    stale = Path(settings.run_dir) / ".preflight" / "shared" / "pretrain_detector" / "done.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("{}")
    processes = scripted("", finished=5)
    check.before(dataclasses.replace(settings, preflight=choice), POD)
    assert len(processes) == (choice == "auto")
    assert not (Path(settings.run_dir) / ".preflight").exists()


def test_preflight_of_a_cell_runs_before_pretraining_is_copied(monkeypatch, tmp_path):
    """A run with copied pretraining counts as started."""
    flagfile, calls = tmp_path / "x.flags", []
    flagfile.write_text("")
    monkeypatch.setattr(check, "before", lambda *given, **more: calls.append("preflight"))
    monkeypatch.setattr(runner, "take_pretraining", lambda *given: calls.append("pretraining") or [])
    monkeypatch.setattr(runner, "run_jobs", lambda *given: calls.append("jobs"))
    options = Reproduce(config=str(flagfile), out=str(tmp_path), completion_index=0)
    reproduce._one_cell(options, TABLES["1"], StopSignal())
    assert calls == ["preflight", "pretraining", "jobs"]


def test_child_has_no_tf_config_and_is_killed_first_by_the_kernel(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text('#!/bin/sh\necho "$@" "TF_CONFIG=$TF_CONFIG"; sleep 1; cat /proc/$$/oom_score_adj\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    log = tmp_path / "log"
    check.start(Train(seed=5), {**os.environ, "TF_CONFIG": "others"}, log).wait()
    first, second = log.read_text().splitlines()
    assert first.startswith("-m tf_detectorgan.preflight.child --run_dir=runs/phantom ")
    assert " --seed=5 " in first
    assert first.endswith(" TF_CONFIG=")
    assert second == "1000"


def tensors(directory):
    reader = tf.train.load_checkpoint(str(directory))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_run_with_a_preflight_is_bit_identical_to_the_run_without(
    finished_run, tmp_path, monkeypatch, handlers, capsys
):
    """Compares weights, synthetic images and metrics; uses the real child, which finishes all phases."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the detector in tests/
    run = tmp_path / "run"
    settings = from_json(Train, (finished_run / "config.json").read_text(), "")
    train.main(dataclasses.replace(settings, run_dir=str(run), preflight="true"))
    whole, same = (path / "arms" / "cut_paste" for path in (finished_run, run))
    expected, found = tensors(whole / "final_detector"), tensors(same / "final_detector")
    assert len(expected) > 30
    assert found.keys() == expected.keys()
    assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []
    for file in ("synthetic/synthetic.tfrecord", "evaluation/metrics.json", "evaluation/detections.json"):
        assert (same / file).read_bytes() == (whole / file).read_bytes()
    assert not (run / ".preflight").exists()
    rows = json.loads((run / "preflight.json").read_text())["rows"]
    assert [row["phase"] for row in rows] == [phase.name for phase in plan.phases(settings, 1)]
    assert [row["amount"] for row in rows] == [2, 2, 3, 2, 4 + 2]  # steps; images of `tiny_phantom`
    assert all(row["memory"] > 100 for row in rows)
    assert "cut_paste/synthetic" in capsys.readouterr().out
