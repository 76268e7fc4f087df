"""Trains the cells of tables in one `train` process per seed, which skips finished phases and resumes others.

The run directory is `<out>/base/seed<k>`. Its arms share pretraining; tables share run directories.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan import checkpoints, disk, progress, run_layout
from tf_detectorgan.errors import EXIT_BAD_INPUT, InputError, Interrupted
from tf_detectorgan.experiments.tables import Table
from tf_detectorgan.run_layout import RunLayout

POLL_SECONDS = 1.0


class Cell(NamedTuple):
    """One arm trained with one seed: a cell of a table before the mean over seeds."""

    arm: str
    seed: int


class Job(NamedTuple):
    """One `train` process: all requested arms of a seed."""

    seed: int
    arms: tuple[str, ...]


def run_directory(out: Path, seed: int) -> Path:
    """Returns the run directory of a seed."""
    return out / "base" / f"seed{seed}"


def metrics_file(out: Path, cell: Cell, evaluation_set: str = "") -> Path:
    """Returns the metrics file of a cell on its test split or on `evaluation_set`; it exists when done."""
    arm = RunLayout(run_directory(out, cell.seed)).arm(cell.arm)
    return run_layout.metrics(arm.evaluation(evaluation_set))


def parse_only(items: Iterable[str], table: Table, seeds: Sequence[int]) -> set[Cell]:
    """Returns the cells of --only, whose items are "arm" or "arm:seed"; all cells if there are no items.

    Raises:
      InputError: no row of the table has this arm, or the seed is not among `seeds`.
    """
    arms = table.arms
    cells: set[Cell] = set()
    for item in items:
        arm, _, seed = item.partition(":")
        if arm not in arms:
            raise InputError(f"--only={item}: the table has the arms {', '.join(sorted(arms))}")
        if seed and seed not in map(str, seeds):
            raise InputError(f"--only={item}: seed {seed} is not among --seeds={','.join(map(str, seeds))}")
        cells |= {Cell(arm, int(s)) for s in ([seed] if seed else seeds)}
    return cells or {Cell(arm, seed) for arm in arms for seed in seeds}


def indexed_cell(index: int, table: Table, seeds: Sequence[int]) -> Cell:
    """Returns cell number `index`: arms in the order of the table, each with all `seeds` in their order.

    Raises:
      InputError: there is no such cell.
    """
    cells = [Cell(arm, seed) for arm in table.arms for seed in seeds]
    if index >= len(cells):
        raise InputError(
            f"--completion_index={index}: the table has {len(cells)} cells, 0 to {len(cells) - 1}"
        )
    return cells[index]


def cell_directory(out: Path, cell: Cell) -> Path:
    """Returns the directory of a cell that trains alone: two processes must not share a run directory."""
    return out / "cells" / f"{cell.arm}-seed{cell.seed}"


def take_pretraining(table: Table, cell: Cell, out: Path) -> list[Path]:
    """Copies finished pretraining phases of another cell with the same seed into a cell that has not started.

    The source is the cell with the most finished phases. The cell does not wait for unfinished phases, but
    trains them itself, to the same weights. Settings and data card are copied last, so that `train` refuses
    pretraining with other flags or data. A drawn data set is copied, too, because two processes write the
    fields of a record in different orders.

    Returns:
      The directories of the copied phases.
    """
    others = [out, *(cell_directory(out, Cell(arm, cell.seed)) for arm in table.arms if arm != cell.arm)]
    target = RunLayout(run_directory(cell_directory(out, cell), cell.seed))
    source = max(
        (RunLayout(run_directory(other, cell.seed)) for other in others), key=lambda r: len(_finished(r))
    )
    names = _finished(source)
    if not names or target.config.exists():
        return []
    for name in names:
        _copy_missing(source.shared / name, target.shared / name)
    if source.phantom.is_dir():
        _copy_missing(source.phantom, target.phantom)
    for copied, copy in ((source.data_card, target.data_card), (source.config, target.config)):
        checkpoints.write_text(copy, copied.read_text(encoding="utf-8"))
    return [target.shared / name for name in names]


def _finished(run: RunLayout) -> list[str]:
    """Returns the names of the finished pretraining phases of a run."""
    return sorted(done.parent.name for done in run.shared.glob(f"*/{run_layout.DONE}"))


def gather(table: Table, seeds: Sequence[int], out: Path) -> None:
    """Moves finished cells from their `cell_directory` to the run directories of the table."""
    for cell in (Cell(arm, seed) for arm in table.arms for seed in seeds):
        apart = cell_directory(out, cell)
        if metrics_file(apart, cell).exists() and not metrics_file(out, cell).exists():
            source, target = (RunLayout(run_directory(parent, cell.seed)) for parent in (apart, out))
            _move_missing(source.path, target.path, but=source.arms.name)
            shutil.rmtree(target.arm(cell.arm).path, ignore_errors=True)
            checkpoints.write_costs(target.path, source.path)
            # The metrics come last: with them the cell counts as done.
            target.arms.mkdir(exist_ok=True)
            source.arm(cell.arm).path.rename(target.arm(cell.arm).path)


def _move_missing(source: Path, target: Path, but: str) -> None:
    """Moves files and folders that `target` lacks; merges tensorboard/ and shared/. `but`: a name to skip."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name == but:
            continue
        if not (target / path.name).exists():
            path.rename(target / path.name)
        elif path in (RunLayout(source).tensorboard, RunLayout(source).shared):
            _move_missing(path, target / path.name, but)


def plan(table: Table, seeds: Sequence[int], cells: set[Cell], out: Path) -> list[Job]:
    """Returns the jobs with the unfinished arms among `cells`."""
    requested = [Job(seed, tuple(a for a in table.arms if Cell(a, seed) in cells)) for seed in seeds]
    jobs = [job._replace(arms=tuple(_open_arms(job, out))) for job in requested]
    return [job for job in jobs if job.arms]


def run_jobs(
    jobs: Sequence[Job], flagfile: Path, out: Path, processes: int, stopped: Callable[[], str | None]
) -> None:
    """Runs `jobs`, `processes` at a time, and divides the CPU cores among them; logs to `<run>/train.log`.

    Args:
      jobs: from `plan`.
      flagfile: the flagfile of `train`.
      out: parent of the run directories.
      processes: number of concurrent processes.
      stopped: returns the name of a received signal, else None; the processes then save and end.

    Raises:
      InputError: a process reported bad flags or data.
      Interrupted: a signal was received; finished phases are kept.
      RuntimeError: a process failed; the others were completed first.
    """
    waiting, failed = list(jobs), list[Job]()
    running: dict[Job, subprocess.Popen] = {}
    total = sum(len(job.arms) for job in jobs)
    bar = progress.bar(total=total, desc="reproduce", unit="arm", dynamic_ncols=True, smoothing=0)
    with contextlib.ExitStack() as left, bar:
        left.callback(lambda: _end(running.values()))  # however the block is left, no process is left running
        while waiting or running:
            while waiting and len(running) < processes:
                job = waiting.pop(0)
                running[job] = _start(job, flagfile, out, processes)
                bar.set_postfix_str(", ".join(_name(job) for job in running))
            time.sleep(POLL_SECONDS)
            done = total - sum(len(_open_arms(job, out)) for job in [*waiting, *running, *failed])
            bar.update(done - bar.n)
            for job in [j for j, process in running.items() if process.poll() is not None]:
                if running.pop(job).returncode == EXIT_BAD_INPUT:
                    raise InputError(f"{_name(job)}: {_last_line(_log(job, out))}")
                if _open_arms(job, out) and not stopped():
                    failed.append(job)
            if stopped():
                raise Interrupted(f"{stopped()}: {done} of {total} arms are finished")
    if failed:
        logs = "; ".join(f"{_log(job, out)}: {_last_line(_log(job, out))}" for job in failed)
        raise RuntimeError(f"{len(failed)} of {len(jobs)} runs failed ({logs})")


def _start(job: Job, flagfile: Path, out: Path, processes: int) -> subprocess.Popen:
    directory = run_directory(out, job.seed)
    directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tf_detectorgan.train", f"--flagfile={flagfile}"]
    command += [f"--run_dir={directory}", f"--seed={job.seed}", f"--arm={','.join(job.arms)}"]
    command += ["--preflight=false"]  # `reproduce` has already run it
    with open(_log(job, out), "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(processes), start_new_session=True
        )


def environment(processes: int) -> dict[str, str]:
    """Returns the environment of one of `processes` concurrent processes, with its share of the CPU cores."""
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    shares = {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads}
    # Seconds between lines of a progress bar that goes to a file.
    return os.environ | shares | {"TQDM_MININTERVAL": "30"}


def _copy_missing(source: Path, target: Path) -> None:
    """Copies a folder atomically, unless `target` exists."""
    if not target.exists():
        with disk.whole_directory(target) as partial:
            shutil.copytree(source, partial, dirs_exist_ok=True)


def _open_arms(job: Job, out: Path) -> list[str]:
    return [arm for arm in job.arms if not metrics_file(out, Cell(arm, job.seed)).exists()]


def _end(processes: Iterable[subprocess.Popen]) -> None:
    """Terminates the processes, which finish their step and save, and waits until they have ended."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def _name(job: Job) -> str:
    return f"base/seed{job.seed}"


def _log(job: Job, out: Path) -> Path:
    return RunLayout(run_directory(out, job.seed)).log


def _last_line(log: Path) -> str:
    lines = progress.lines(log.read_text(encoding="utf-8", errors="replace")) or ["no output"]
    return lines[-1].removeprefix("error: ")
