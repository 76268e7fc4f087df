"""The outer training loop: restore, get a batch, step, log, save. It does not depend on the networks."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_detectorgan import checkpoints, progress
from tf_detectorgan.checkpoints import PhaseDirectory
from tf_detectorgan.errors import Interrupted
from tf_detectorgan.training import peak_memory
from tf_detectorgan.training.step_clock import StepClock
from tf_detectorgan.training.workers import Workers


class StopSignal:
    """Records SIGTERM and SIGINT, so that the current step is finished and saved before the process ends."""

    def __init__(self):
        self.received: str | None = None

    def install(self) -> StopSignal:
        """Installs the handler of both signals; a second signal ends the process at once."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        return self

    def check(self, name: str) -> None:
        """Raises Interrupted if a signal was received, in work that cannot be saved before it is finished."""
        if self.received:
            raise Interrupted(f"{self.received} in {name}: it is not saved; run the command again")

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)


@dataclasses.dataclass
class Every:
    """Steps between log entries, between checkpoints, and between calls of `inspect`."""

    log: int
    checkpoint: int
    inspect: int


@dataclasses.dataclass(frozen=True)
class Phase:
    """A number of training steps, with all the state that they change.

    Attributes:
      name: text on the progress bar.
      directory: the directory of its checkpoints.
      parts: everything trainable or stateful, by name.
      steps: number of steps of the whole phase.
      step: (batch, step number) -> scalars.
      batches: start step -> iterator over batches from that step on.
      scalars: called on the chief with (finished steps, values).
      inspect: called on the chief with (finished steps, batch), for pictures and validation.
    """

    name: str
    directory: Path
    parts: dict[str, Any]
    steps: int
    step: Callable[[Any, int], dict[str, tf.Tensor]]
    batches: Callable[[int], Iterator]
    scalars: Callable[[int, dict[str, float]], None]
    inspect: Callable[[int, Any], None] = lambda done, batch: None


def run_phase(phase: Phase, every: Every, stop: StopSignal, workers: Workers | None = None) -> None:
    """Runs a phase from its newest checkpoint to its last step, then marks it as finished.

    Args:
      phase: the phase to run.
      every: the steps after which values are logged, checkpoints saved, and `inspect` called.
      stop: checked after every step.
      workers: the processes that train together; None: only this process.

    Raises:
      Interrupted: a signal was received; the finished steps are saved.
      FloatingPointError: a scalar is not finite; the steps since the last checkpoint are not saved.
    """
    peak_memory.reset()
    saved, workers, steps = PhaseDirectory(phase.directory, phase.parts), workers or Workers(), phase.steps
    start, began = workers.restore(saved, phase.parts), time.monotonic()
    source = iter(phase.batches(start)) if start < steps else None
    hidden, clock = not workers.chief, StepClock()
    with progress.bar(
        total=steps, initial=start, desc=phase.name, unit="step", dynamic_ncols=True, disable=hidden
    ) as bar:
        for done in range(start + 1, steps + 1):
            clock.start()
            batch = next(source)  # type: ignore[arg-type]
            values = phase.step(batch, done - 1)
            bar.update()
            stopped = workers.total(bool(stop.received))  # on any worker: all stop after the same step
            saving = done % every.checkpoint == 0 or done == steps or stopped
            if saving or done % every.log == 0:
                row = _finite(values, phase.name, done)
                if workers.chief:
                    rate = (done - start) / (time.monotonic() - began)
                    phase.scalars(done, row | {"steps_per_second": rate})
                bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in _SHOWN}, refresh=False)
            clock.stop()  # if values were logged, the device has finished the step
            if workers.chief and (done % every.inspect == 0 or done == steps):
                phase.inspect(done, batch)
            if saving:
                workers.save(saved, phase.parts, done)
            if stopped and done < steps:
                raise Interrupted(
                    f"{stop.received or 'another worker'} in {phase.name}: {done} of {steps} steps are saved"
                )
    if steps == 0:
        workers.save(saved, phase.parts, 0)
    record = {"steps": steps, "resumed_at": start} | clock.record() | peak_memory.read()
    workers.run_on_chief(lambda: saved.finish(record))


_SHOWN = ("L_d", "L_real", "L_syn", "L_real_unrolled", "L_localX", "L_bbox")


def _finite(values: dict[str, tf.Tensor], name: str, step: int) -> dict[str, float]:
    row = {key: float(value) for key, value in values.items()}
    for key, value in row.items():
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{name}: {key} is {value} at step {step}, after the last checkpoint; "
                "start again with a lower learning rate or lambda and a new --run_dir"
            )
    return row


def skip_finished(name: str, directory: Path) -> bool:
    """Returns whether a phase is finished, and prints one line if it is."""
    record = checkpoints.finished(directory)
    if record is not None:
        print(f"{name}: already finished ({record.get('steps', record.get('count'))})")
    return record is not None
