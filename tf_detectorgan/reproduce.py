"""Trains a table of arms and seeds: python -m tf_detectorgan.reproduce --config=configs/table1.flags.

Every cell is a run of `train` with the flags of --config. What is done is skipped, what is half done resumes;
tables share runs. At the end the table is printed and written to --out: HTML, Markdown, and JSON with every
number. Exit codes: 75 interrupted, 78 bad input.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tf_detectorgan import door
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import runner, table_report
from tf_detectorgan.experiments.tables import TABLES
from tf_detectorgan.training.loop import StopSignal


@dataclass(frozen=True)
class Reproduce:
    """Options of `reproduce`."""

    table: str = option(
        "1",
        "; ".join(f"{name}: {t.title.lower()}" for name, t in TABLES.items()) + ".",
        choices=tuple(TABLES),
    )
    config: str = option("", "Flagfile of `train` that all cells share.")
    out: str = option("runs/table", "Where all runs and the tables are written; call again to resume.")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "One training of every arm for each.")
    only: tuple[str, ...] = option((), "Cells to train now, as arm or arm:seed; empty: all.")
    workers: int = option(1, "Training processes at a time; each gets its share of the cores.", low=1)


def main(options: Reproduce) -> None:
    """Trains what is not done, then writes and prints the table.

    Raises:
      InputError: the flagfile is missing, or names data where the table changes the drawn data.
    """
    table, out, flagfile = TABLES[options.table], Path(options.out), Path(options.config)
    if not options.config or not flagfile.is_file():
        raise InputError(f"--config={options.config}: no such file; name a flagfile of train")
    if not options.seeds or len(set(options.seeds)) != len(options.seeds):
        raise InputError(f"--seeds={','.join(map(str, options.seeds))}: one or more different numbers wanted")
    if table.phantom_only and "--data_dir=" in flagfile.read_text(encoding="utf-8"):
        raise InputError(f"{flagfile}: names --data_dir, but table {options.table} draws its own data")
    stop = StopSignal().install()
    cells = runner.parse_only(options.only, table, options.seeds)
    jobs = runner.plan(table, options.seeds, cells, out)
    print(f"table {options.table}: {sum(len(job.arms) for job in jobs)} trainings to do in {len(jobs)} runs")
    runner.run_jobs(jobs, flagfile, out, options.workers, lambda: stop.received)
    seeds = ",".join(map(str, options.seeds))
    command = ["python", "-m", "tf_detectorgan.reproduce", f"--table={options.table}", f"--config={flagfile}"]
    page, text = table_report.write_table(
        options.table, table, options.seeds, out, shlex.join([*command, f"--out={out}", f"--seeds={seeds}"])
    )
    print(text)
    print(f"table: {page}, {page.with_suffix('.md').name}, {page.with_suffix('.json').name}; runs: {out}")


if __name__ == "__main__":
    door.run(Reproduce, main)
