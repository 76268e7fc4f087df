"""Trains a table of arms and seeds: python -m tf_detectorgan.reproduce --config=configs/table1.flags.

Each cell, one arm with one seed, is trained by `train` with the flags of --config. Finished phases are
skipped, unfinished ones are resumed, and tables share runs. At the end the table is printed and written to
--out as HTML, Markdown, and JSON with all numbers. Exit codes: 75 interrupted, 78 bad input.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from tf_detectorgan import progress
from tf_detectorgan.environment import TENSORFLOW
from tf_detectorgan.errors import EXIT_INTERRUPTED, InputError

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported
if __name__ == "__main__":  # which takes seconds; without a handler process 1 of a pod ignores SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(EXIT_INTERRUPTED))

from tf_detectorgan import command
from tf_detectorgan.config import NewName, option, parse
from tf_detectorgan.experiments import runner, table_report
from tf_detectorgan.experiments.runner import Cell, Job
from tf_detectorgan.experiments.tables import TABLES, Table
from tf_detectorgan.preflight import check
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training import phases, run_directory
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.settings import Train


@dataclass(frozen=True)
class Reproduce:
    """Options of `reproduce`."""

    RENAMED: ClassVar[Mapping[str, NewName]] = {"workers": NewName("processes")}

    table: str = option(
        "1",
        "; ".join(f"{name}: {t.title.lower()}" for name, t in TABLES.items()) + ".",
        choices=tuple(TABLES),
    )
    config: str = option("", "Flagfile of `train` for all cells.")
    out: str = option("runs/table", "Directory of all runs and tables; repeat the command to resume.")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "Seeds; each arm is trained once with each.")
    only: tuple[str, ...] = option((), "Cells to train now, as arm or arm:seed; empty: all cells.")
    test_data: str = option(
        "", "Another prepared data set to evaluate all runs on, such as one with more test images."
    )
    completion_index: int = option(
        -1,
        "For a pod of an Indexed Job: trains the cell of this number under --out/cells and writes no table. "
        "Copies pretraining that other cells of its seed have finished. Cells are numbered by arm in the "
        "table's order, then by seed. A call without this flag gathers the cells.",
        low=-1,
    )
    processes: int = option(1, "Concurrent training processes, which share the CPU cores.", low=1)


def main(options: Reproduce) -> None:
    """Trains the unfinished cells, then writes and prints the table.

    Raises:
      InputError: the flagfile is missing, or its flags differ from those of runs in --out.
    """
    table, out, flagfile = TABLES[options.table], Path(options.out), Path(options.config)
    if not options.config or not flagfile.is_file():
        raise InputError(f"--config={options.config}: no such file; give a flagfile of train")
    if not options.seeds or len(set(options.seeds)) != len(options.seeds):
        raise InputError(f"--seeds={','.join(map(str, options.seeds))}: give one or more different numbers")
    stop = StopSignal().install()
    if options.completion_index >= 0:
        _one_cell(options, table, stop)
        return
    runner.gather(table, options.seeds, out)
    _require_same_settings(options)
    cells = runner.parse_only(options.only, table, options.seeds)
    jobs = runner.plan(table, options.seeds, cells, out)
    print(f"table {options.table}: {sum(len(job.arms) for job in jobs)} arms to train in {len(jobs)} runs")
    _preflight(options, jobs, out)
    runner.run_jobs(jobs, flagfile, out, options.processes, lambda: stop.received)
    evaluation_set = _score(options, table, stop) if options.test_data else ""
    seeds = ",".join(map(str, options.seeds))
    command = ["python", "-m", "tf_detectorgan.reproduce", f"--table={options.table}", f"--config={flagfile}"]
    command += [f"--out={out}", f"--seeds={seeds}"]
    command += [f"--test_data={options.test_data}"] if options.test_data else []
    page, text = table_report.write_table(
        options.table, table, options.seeds, out, shlex.join(command), evaluation_set
    )
    print(text)
    print(f"table: {page}, {page.with_suffix('.md').name}, {page.with_suffix('.json').name}; runs: {out}")


def _require_same_settings(options: Reproduce) -> None:
    """Raises InputError if a run in --out has other settings than --config: a mean needs equal settings."""
    settings = parse(Train, [f"--flagfile={options.config}"])
    for seed in options.seeds:
        file = RunLayout(runner.run_directory(Path(options.out), seed)).config
        run_directory.same_settings(file, replace(settings, seed=seed), run_directory.FREE, "--out")


def _preflight(options: Reproduce, jobs: Sequence[Job], out: Path) -> None:
    """Runs one preflight for all jobs, with the first of them, if --preflight of the flagfile requires it."""
    for job in jobs[:1]:
        settings = parse(Train, [f"--flagfile={options.config}"])
        run_dir = str(runner.run_directory(out, job.seed))
        settings = replace(settings, run_dir=run_dir, seed=job.seed, arm=job.arms)
        environment = runner.environment(options.processes)
        check.before(settings, environment, runs=len(jobs), processes=min(options.processes, len(jobs)))


def _score(options: Reproduce, table: Table, stop: StopSignal) -> str:
    """Evaluates each finished cell on --test_data, unless done. Returns the evaluation set's name."""
    out, evaluation_set = Path(options.out), ""
    for seed in progress.bar(
        options.seeds, desc=f"evaluating on {options.test_data}", unit="run", dynamic_ncols=True
    ):
        arms = [arm for arm in table.arms if runner.metrics_file(out, Cell(arm, seed)).exists()]
        if arms:
            run = run_directory.reopen(str(runner.run_directory(out, seed)), options.test_data)
            run.stop, evaluation_set = stop, run.evaluation_set
            for arm in arms:
                phases.evaluate(run, arm, "test")
    return evaluation_set


def _one_cell(options: Reproduce, table: Table, stop: StopSignal) -> None:
    """Trains the cell of --completion_index in a directory of its own."""
    if options.only:
        raise InputError("--only and --completion_index both select cells; give only one of them")
    out = Path(options.out)
    cell = runner.indexed_cell(options.completion_index, table, options.seeds)
    parent = runner.cell_directory(out, cell)
    if runner.plan(table, options.seeds, {cell}, out):  # otherwise it was gathered before
        jobs = runner.plan(table, options.seeds, {cell}, parent)
        _preflight(options, jobs, parent)
        for phase in runner.take_pretraining(table, cell, out):
            print(f"{phase}: copied from another cell", flush=True)
        runner.run_jobs(jobs, Path(options.config), parent, options.processes, lambda: stop.received)
    print(f"cell {options.completion_index}: {cell.arm}, seed {cell.seed}: done; runs: {parent}")


if __name__ == "__main__":
    command.run(Reproduce, main, terminated=EXIT_INTERRUPTED)
