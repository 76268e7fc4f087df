"""The files of a phase: numbered checkpoints while it runs, `done.json` when it is finished."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import tensorflow as tf

from tf_detectorgan import disk
from tf_detectorgan.run_layout import DONE, RunLayout


def write_text(path: Path, text: str) -> None:
    """Writes `text` to a temporary file, then renames it: readers get either the old or the new file."""
    with disk.whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


class PhaseDirectory:
    """The checkpoints and the time of one phase. `parts`: trackable objects (networks, pools) by name."""

    def __init__(self, path: Path, parts: dict[str, Any]):
        self.path = path
        self._began = time.monotonic()  # minus the time of earlier calls, after `restore`
        self._clock = path / "seconds.json"  # not in the checkpoint, which is equal in equal runs
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False, name="phase_step")
        self._checkpoint = tf.train.Checkpoint(step=self.step, **parts)
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(path), max_to_keep=2)

    def restore(self) -> int:
        """Loads the newest checkpoint, if any; returns the number of finished steps."""
        if self._manager.latest_checkpoint:
            status = self._checkpoint.restore(self._manager.latest_checkpoint)
            status.assert_existing_objects_matched()
            if self._clock.exists():
                self._began -= json.loads(self._clock.read_text(encoding="utf-8"))
        return int(self.step)

    @property
    def seconds(self) -> float:
        """The time of the phase in this call, and in earlier calls up to their last checkpoints."""
        return time.monotonic() - self._began

    def save(self, step: int) -> None:
        """Saves a checkpoint after `step` finished steps. If this fails, only older checkpoints remain."""
        self.step.assign(step)
        before = set(self.path.glob("*"))
        try:
            self._manager.save(checkpoint_number=step)
        except Exception:
            for partial in set(self.path.glob("*")) - before:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            raise
        write_text(self._clock, json.dumps(self.seconds))

    def finish(self, record: dict[str, Any]) -> None:
        """Marks the phase as finished, with its time in seconds."""
        finish(self.path, record | {"seconds": round(self.seconds, 1)})
        self._clock.unlink(missing_ok=True)


def finish(path: Path, record: dict[str, Any]) -> None:
    """Marks the work in a directory as finished."""
    write_text(path / DONE, json.dumps(record, indent=2, sort_keys=True))


def finished(path: Path) -> dict[str, Any] | None:
    """Returns the record of a finished phase, or None."""
    file = path / DONE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def write_costs(run: Path, *joining: Path) -> None:
    """Writes costs.json of a run directory: the time and memory of each phase, from the phases' records.

    `joining`: run directories whose arms will be moved to `run`; a phase in both counts once.
    """
    costs = {}
    for home in (*joining, run):
        for file in sorted(home.glob(f"*/**/{DONE}")):
            record = finished(file.parent) or {}
            if "seconds" in record:
                costs[str(file.parent.relative_to(home))] = record
    write_text(RunLayout(run).costs, json.dumps(costs, indent=1))


def load(path: Path, parts: dict[str, Any]) -> None:
    """Loads `parts` from the newest checkpoint of a finished phase; its other parts are ignored."""
    newest = tf.train.latest_checkpoint(str(path))
    if newest is None:
        raise FileNotFoundError(f"{path} has no checkpoint")
    tf.train.Checkpoint(**parts).restore(newest).assert_existing_objects_matched().expect_partial()


def fingerprint(path: Path) -> str:
    """Returns the SHA-256 of the newest checkpoint's files, 16 hex digits: provenance of synthetic images."""
    newest = tf.train.latest_checkpoint(str(path))
    digest = hashlib.sha256()
    for file in sorted(Path(newest).parent.glob(Path(newest).name + ".*")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]
