"""Checks in about five minutes how this machine's GPU trains: python -m tf_detectorgan.gpu_check.

Every phase of `detectorgan` runs for a few steps on drawn images: twice with one seed, whose results must
be the same bits; without determinism and in bfloat16, for their time. Eqn 3 is checked in float64, as
tf_detectorgan.gradcheck does. Prints a table in Markdown for the report of a fault. Exit codes: 0 all that
was checked held; 1 not; 78 bad input.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import tensorflow as tf

from tf_detectorgan import config, disk, door, progress
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import gpu_table
from tf_detectorgan.training.settings import Train

_running: set[subprocess.Popen] = set()

# Runs by name, and how they differ: each is a process, as determinism and peaks of memory are a process's.
RUNS = {
    gpu_table.FIRST: [],
    gpu_table.AGAIN: [],
    gpu_table.FREE: ["--deterministic=false"],
    gpu_table.BFLOAT16: ["--precision=mixed_bfloat16"],
}
# Small enough that most of the time goes into tracing.
SMALL = (
    "--arm=detectorgan --phantom_train_images=8 --generator_filters=4 --generator_blocks=1 "
    "--discriminator_filters=4 --crop_size=16 --pool_size=4 --gan_batch=2 --detector_batch=2 "
    "--synthetic_count=4 --audit_folds=0 --distribution=one --log_every=1"
).split()


@dataclass(frozen=True)
class GpuCheck:
    """Options of `python -m tf_detectorgan.gpu_check`."""

    detector: str = option("retinanet_small", "DET, as --detector of tf_detectorgan.train.")
    size: int = option(64, "Side of the drawn images.", low=32, high=1024)
    steps: int = option(8, "Steps of each training phase; the first two are not timed.", low=4)
    out: str = option("", "File for the table (Markdown); empty: it is only printed.")


def main(options: GpuCheck) -> None:
    """Runs all processes, prints and writes the table; exit code 1 if a check did not hold."""
    out = _checked(options.out)
    words = _words(options)
    config.parse(Train, words)  # what is wrong with the flags is said before anything runs
    gpus = len(tf.config.list_physical_devices("GPU"))  # counts them; the children's processes use them
    print(gpu_table.first_line(gpus), flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        # One at a time on a GPU, whose memory one process takes; on a CPU two, as one thread traces.
        records = run_all(words, Path(folder), at_a_time=1 if gpus else 2)
    text = gpu_table.table(gpus, _described(options), records)
    print(text)
    if out:
        with disk.whole_file(out) as partial:
            partial.write_text(text, encoding="utf-8")
    broken = gpu_table.failures(records)
    print(gpu_table.last_line(broken, options.out))
    if broken:
        sys.exit(1)


def run_all(words: Sequence[str], folder: Path, at_a_time: int) -> dict[str, dict[str, Any]]:
    """The record of each of RUNS and of gradcheck, by name; `words` are flags of `train`.

    What ends this process, a signal for one, ends the others with it.
    """
    with (
        progress.bar(total=len(RUNS) + 1, desc="gpu_check", unit="process", dynamic_ncols=True) as bar,
        ThreadPoolExecutor(at_a_time) as threads,
        _ending_all(threads),
    ):
        waiting = {
            name: threads.submit(trial, [*words, *more], folder / str(number))
            for number, (name, more) in enumerate(RUNS.items())
        }
        first = waiting[gpu_table.FIRST]  # draws images, which gradcheck takes as well
        waiting[gpu_table.GRADCHECK] = threads.submit(
            lambda: (
                {"error": "not run: no images"}
                if "error" in first.result()
                else gradcheck(words, folder / "0")
            )
        )
        for future in waiting.values():
            future.add_done_callback(lambda _: bar.update())
        return {name: future.result() for name, future in waiting.items()}


@contextlib.contextmanager
def _ending_all(threads: ThreadPoolExecutor) -> Iterator[None]:
    """After an exception no process is left, and none begins."""
    try:
        yield
    except BaseException:
        threads.shutdown(wait=False, cancel_futures=True)
        for process in list(_running):
            process.kill()
        raise


def trial(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """The record that `training.trial` writes, or why not: {"error"}, or {"refused"} by the settings."""
    folder.mkdir()
    try:
        config.parse(Train, words)
    except InputError as error:
        return {"refused": str(error)}
    file = folder / "record.json"
    done = _run(
        "training.trial", str(file), *words, f"--run_dir={folder / 'run'}", f"--data_dir={folder / 'data'}"
    )
    if done.returncode:
        return {"error": gpu_table.failed(done.returncode, done.stderr)}
    return json.loads(file.read_text(encoding="utf-8"))


def gradcheck(words: Sequence[str], folder: Path) -> dict[str, Any]:
    """{"exact": bool, "relative error", "said"} of tf_detectorgan.gradcheck, or {"error": why it failed}."""
    done = _run("gradcheck", *words, f"--run_dir={folder / 'gradcheck'}", f"--data_dir={folder / 'data'}")
    lines = done.stdout.splitlines()
    errors = [line.split()[1] for line in lines if line.startswith("exact ")]
    if done.returncode not in (0, 1) or not errors:
        said = done.stderr if done.returncode > 1 or not lines else done.stdout
        return {"error": gpu_table.failed(done.returncode, said)}
    return {"exact": done.returncode == 0, "relative error": errors[0], "said": lines[-1]}


def _run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A module of this package in a process of its own."""
    command = [sys.executable, "-m", f"tf_detectorgan.{module}", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        _running.add(process)
        try:
            out, errors = process.communicate()
        finally:
            _running.discard(process)
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def _words(options: GpuCheck) -> list[str]:
    """The flags of `train` that all processes get."""
    phases = ("gan_steps", "joint_steps", "pretrain_detector_steps", "final_steps")
    steps = [f"--{name}={options.steps}" for name in phases]
    return [*SMALL, *steps, f"--detector={options.detector}", f"--phantom_size={options.size}"]


def _described(options: GpuCheck) -> str:
    return f"--detector={options.detector} --size={options.size} --steps={options.steps}"


def _checked(out: str) -> Path | None:
    """--out as a path.

    Raises:
      InputError: no file can be written there.
    """
    if not out:
        return None
    path = Path(out).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--out={out}: not a file in a directory that exists; name one")
    return path


if __name__ == "__main__":
    door.run(GpuCheck, main)
