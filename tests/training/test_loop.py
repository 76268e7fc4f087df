"""The outer training loop, without a model: its only trainable part is a counter."""

import os
import signal

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import checkpoints
from tf_detectorgan.errors import Interrupted
from tf_detectorgan.training import loop
from tf_detectorgan.training.loop import Every, Phase, StopSignal, run_phase


class Counted:
    """A phase of `steps` steps whose batch t is the number t; records its calls."""

    def __init__(self, directory, steps, *, log=100, checkpoint=100, inspect=100, stop_at=None, nan_at=None):
        self.directory, self.steps = directory, steps
        self.every = Every(log, checkpoint, inspect)
        self.total = tf.Variable(0, dtype=tf.int64)  # the sum of all batches
        self.stop = StopSignal()
        self.stop_at, self.nan_at = stop_at, nan_at
        self.seen, self.logged, self.inspected = [], [], []

    def step(self, batch, number):
        assert batch == number
        self.seen.append(number)
        self.total.assign_add(batch)
        if number + 1 == self.stop_at:
            self.stop.received = "SIGTERM"
        value = float("nan") if self.nan_at and number + 1 >= self.nan_at else float(number)
        return {"L_good": tf.constant(1.0), "L_bad": tf.constant(value)}

    def run(self):
        phase = Phase(
            "counting",
            self.directory,
            {"total": self.total},
            self.steps,
            self.step,
            batches=lambda start: iter(range(start, self.steps)),
            scalars=lambda done, row: self.logged.append((done, row)),
            inspect=lambda done, batch: self.inspected.append((done, batch)),
        )
        run_phase(phase, self.every, self.stop)
        return self

    def log_steps(self):
        return [done for done, _ in self.logged]


def saved_steps(directory):
    return sorted(int(file.stem.split("-")[1]) for file in directory.glob("*.index"))


def test_logs_checkpoints_and_inspections_are_at_their_steps(tmp_path):
    phase = Counted(tmp_path, 10, log=4, checkpoint=5, inspect=3).run()
    assert phase.seen == list(range(10))
    assert phase.log_steps() == [4, 5, 8, 10]  # also at every checkpoint, so that none has a NaN
    assert phase.inspected == [(3, 2), (6, 5), (9, 8), (10, 9)]  # (finished steps, batch of the last one)
    assert saved_steps(tmp_path) == [5, 10]
    assert checkpoints.finished(tmp_path)["steps"] == 10
    row = dict(phase.logged)[8]
    assert row["L_bad"] == 7
    assert row["steps_per_second"] > 0


def test_only_the_two_newest_checkpoints_are_kept(tmp_path):
    Counted(tmp_path, 10, checkpoint=2).run()
    assert saved_steps(tmp_path) == [8, 10]


def test_resume_after_a_crash_starts_at_the_saved_step(tmp_path):
    """A crash in batch 7, after a checkpoint of 6 steps: batch 6 is repeated."""
    first = Counted(tmp_path, 10, checkpoint=3)
    plain_step = first.step

    def crash(batch, number):
        if number == 7:
            raise OSError("power cut")
        return plain_step(batch, number)

    first.step = crash
    with pytest.raises(OSError, match="power cut"):
        first.run()
    assert saved_steps(tmp_path) == [3, 6]
    assert checkpoints.finished(tmp_path) is None
    second = Counted(tmp_path, 10, checkpoint=3).run()
    assert second.seen == [6, 7, 8, 9]
    assert int(second.total) == sum(range(10))
    assert checkpoints.finished(tmp_path)["resumed_at"] == 6


def test_finished_phase_restores_its_result_and_takes_no_step(tmp_path):
    Counted(tmp_path, 4).run()
    again = Counted(tmp_path, 4).run()
    assert again.seen == []
    assert int(again.total) == 0 + 1 + 2 + 3


def test_phase_of_0_steps_saves_a_checkpoint(tmp_path):
    Counted(tmp_path, 0).run()
    assert saved_steps(tmp_path) == [0]
    checkpoints.load(tmp_path, {"total": tf.Variable(5, dtype=tf.int64)})


def test_signal_saves_the_finished_steps(tmp_path):
    phase = Counted(tmp_path, 10, stop_at=4)
    with pytest.raises(Interrupted, match="SIGTERM in counting: 4 of 10 steps are saved"):
        phase.run()
    assert phase.seen == [0, 1, 2, 3]
    assert saved_steps(tmp_path) == [4]
    assert Counted(tmp_path, 10).run().seen == [4, 5, 6, 7, 8, 9]


def test_signal_at_the_last_step_is_ignored(tmp_path):
    Counted(tmp_path, 5, stop_at=5).run()
    assert checkpoints.finished(tmp_path)["steps"] == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_recorded_and_a_second_one_ends_the_process(number, handlers):
    stop = StopSignal().install()
    assert stop.received is None
    os.kill(os.getpid(), number)
    assert stop.received == signal.Signals(number).name
    assert signal.getsignal(number) == signal.SIG_DFL


def test_nan_raises_with_loss_and_step_and_saves_nothing(tmp_path):
    phase = Counted(tmp_path, 10, checkpoint=3, nan_at=6)
    with pytest.raises(FloatingPointError, match=r"counting: L_bad is nan at step 6"):
        phase.run()
    assert saved_steps(tmp_path) == [3]
    assert [step for step in phase.log_steps() if step >= 6] == []


def test_nan_raises_at_the_next_log_entry(tmp_path):
    """Scalars are read only when they are logged or saved, so that no other step waits for the device."""
    with pytest.raises(FloatingPointError, match="step 8"):
        Counted(tmp_path, 10, log=4, nan_at=6).run()
    assert saved_steps(tmp_path) == []


def test_skip_finished_returns_true_and_prints_only_for_a_finished_phase(tmp_path, capsys):
    assert not loop.skip_finished("joint", tmp_path)
    assert capsys.readouterr().out == ""
    Counted(tmp_path, 3).run()
    assert loop.skip_finished("joint", tmp_path)
    assert capsys.readouterr().out == "joint: already finished (3)\n"


def test_infinite_and_nan_scalars_raise():
    for value in (np.inf, -np.inf, np.nan):
        with pytest.raises(FloatingPointError):
            loop._finite({"a": 0.0, "b": float(value)}, "x", 1)
    assert loop._finite({"a": 1e30}, "x", 1) == {"a": 1e30}


def test_record_of_a_finished_phase_has_step_times_and_peak_memory(tmp_path):
    Counted(tmp_path / "three", 3).run()
    record = checkpoints.finished(tmp_path / "three")
    assert record["first_step_seconds"] >= 0
    assert record["step_seconds"] >= 0
    assert record["peak_memory_mib"] > 0
    Counted(tmp_path / "one", 1).run()
    assert "step_seconds" not in checkpoints.finished(tmp_path / "one")  # its only step includes tracing
