"""Tests of the planning and running of a table's jobs. Small scripts stand in for `train`."""

import base64
import dataclasses
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tf_detectorgan import reproduce
from tf_detectorgan.errors import InputError, Interrupted
from tf_detectorgan.experiments import figures, runner
from tf_detectorgan.experiments.runner import Cell, Job, parse_only, plan
from tf_detectorgan.experiments.table_report import distinct, write_table
from tf_detectorgan.experiments.tables import TABLES, Column, Row, Table
from tf_detectorgan.reproduce import Reproduce
from tf_detectorgan.training.settings import ARMS

ROOT = Path(__file__).resolve().parents[2]

TABLE = Table("t", "s", (Row("a"), Row("b")), (Column("AP", ("ap", "main")),))


def finish(out, seed, *arms):
    for arm in arms:
        file = runner.metrics_file(out, Cell(arm, seed))
        file.parent.mkdir(parents=True)
        file.write_text("{}")


def test_parse_only_selects_cells_by_arm_and_seed():
    assert parse_only(["b", "a:1"], TABLE, [0, 1]) == {Cell("b", 0), Cell("b", 1), Cell("a", 1)}
    assert parse_only([], TABLE, [5]) == {Cell("a", 5), Cell("b", 5)}
    with pytest.raises(InputError, match="--only=c: the table has the arms a, b"):
        parse_only(["c"], TABLE, [0])
    with pytest.raises(InputError, match="seed 7 is not among --seeds=0,1"):
        parse_only(["a:7"], TABLE, [0, 1])


def test_completion_indexes_enumerate_all_cells():
    cells = [runner.indexed_cell(index, TABLE, [3, 1]) for index in range(4)]
    assert cells == [Cell("a", 3), Cell("a", 1), Cell("b", 3), Cell("b", 1)]
    with pytest.raises(InputError, match="--completion_index=4: the table has 4 cells, 0 to 3"):
        runner.indexed_cell(4, TABLE, [3, 1])


def test_cells_are_gathered_with_their_costs_and_curves(tmp_path):
    for arm, seconds in (("a", 5), ("b", 7)):
        parent = runner.cell_directory(tmp_path, Cell(arm, 0))
        finish(parent, 0, arm)
        run = runner.run_directory(parent, 0)
        for phase, cost in ((f"arms/{arm}/joint", seconds), ("shared/x", 1)):
            (run / phase).mkdir(parents=True)
            (run / phase / "done.json").write_text(json.dumps({"seconds": cost}))
        (run / "truth.json").write_text(arm)
        for folder in ("tensorboard", "shared"):
            (run / folder / arm).mkdir(parents=True)
    (runner.run_directory(runner.cell_directory(tmp_path, Cell("a", 1)), 1) / "arms/a").mkdir(parents=True)
    runner.gather(TABLE, [0, 1], tmp_path)
    target = runner.run_directory(tmp_path, 0)
    costs = {"shared/x": {"seconds": 1}, "arms/a/joint": {"seconds": 5}, "arms/b/joint": {"seconds": 7}}
    assert json.loads((target / "costs.json").read_text()) == costs
    assert (target / "truth.json").read_text() == "a"
    for folder, names in (("tensorboard", ["a", "b"]), ("shared", ["a", "b", "x"])):
        assert sorted(path.name for path in (target / folder).iterdir()) == names
    assert not runner.run_directory(tmp_path, 1).exists()  # it is not finished
    assert plan(TABLE, [0], parse_only([], TABLE, [0]), tmp_path) == []
    runner.gather(TABLE, [0, 1], tmp_path)
    assert json.loads((target / "costs.json").read_text()) == costs


def test_cell_copies_finished_pretraining_of_another_cell_with_its_seed(tmp_path):
    """From the cell with most finished phases, with settings and data; no unfinished phase, no other seed."""
    arms = Table("t", "s", tuple(Row(arm) for arm in "abc"), ())

    def write(cell, **phases):
        run = runner.run_directory(runner.cell_directory(tmp_path, cell), cell.seed)
        files = [f"shared/{phase}/{file}" for phase, written in phases.items() for file in written.split()]
        for file in (*files, "phantom/records", "config.json", "data_card.json", "truth.json"):
            (run / file).parent.mkdir(parents=True, exist_ok=True)
            (run / file).write_text(f"{cell.arm} {cell.seed}")
        return run

    write(Cell("a", 0), gan="done.json ckpt-1.data", detector="done.json", audit="ckpt-1.data")
    write(Cell("b", 0), gan="done.json", audit="ckpt-1.data")
    write(Cell("b", 1), gan="done.json", detector="done.json", audit="done.json")
    own = runner.run_directory(runner.cell_directory(tmp_path, Cell("c", 0)), 0)
    taken = runner.take_pretraining(arms, Cell("c", 0), tmp_path)
    assert taken == [own / "shared/detector", own / "shared/gan"]
    found = {str(path.relative_to(own)): path.read_text() for path in own.rglob("*") if path.is_file()}
    wanted = ["shared/detector/done.json", "shared/gan/done.json", "shared/gan/ckpt-1.data"]
    assert found == dict.fromkeys([*wanted, "phantom/records", "config.json", "data_card.json"], "a 0")
    write(Cell("b", 0), detector="done.json", audit="done.json")
    assert runner.take_pretraining(arms, Cell("c", 0), tmp_path) == []  # it has started


def test_plan_has_the_requested_unfinished_cells(tmp_path):
    everything = parse_only([], TABLE, [0, 1])
    assert plan(TABLE, [0, 1], everything, tmp_path) == [Job(0, ("a", "b")), Job(1, ("a", "b"))]
    assert plan(TABLE, [0, 1], {Cell("b", 1)}, tmp_path) == [Job(1, ("b",))]
    finish(tmp_path, 0, "a", "b")
    finish(tmp_path, 1, "b")
    assert plan(TABLE, [0, 1], everything, tmp_path) == [Job(1, ("a",))]


def test_every_table_is_consistent():
    for table in TABLES.values():
        assert len(set(table.arms)) == len(table.arms)
        assert set(table.arms) <= set(ARMS)
        assert {arm for pair in table.comparisons for arm in pair} <= set(table.arms)
        assert all(set(row.paper) <= {column.title for column in table.columns} for row in table.rows)


def scripted(monkeypatch, script):
    """Replaces `train` by `script`, whose arguments are the arms' evaluation folders."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.05)
    started = []

    def start(job, flagfile, out, processes):
        started.append((job, time.monotonic()))
        folders = [str(runner.metrics_file(out, Cell(a, job.seed)).parent) for a in job.arms]
        runner._log(job, out).parent.mkdir(parents=True, exist_ok=True)
        with open(runner._log(job, out), "ab") as log:
            return subprocess.Popen([sys.executable, "-c", script, *folders], stdout=log, stderr=log)

    monkeypatch.setattr(runner, "_start", start)
    return started


WORK = """
import pathlib, sys
for folder in map(pathlib.Path, sys.argv[1:]):
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
"""


def run(jobs, out, processes=2, stopped=lambda: None):
    runner.run_jobs(jobs, Path("x.flags"), out, processes, stopped)


def test_failed_run_is_reported_after_the_others_have_finished(monkeypatch, tmp_path):
    scripted(monkeypatch, "import sys; 'seed1' in sys.argv[1] and sys.exit('out of memory')" + WORK)
    with pytest.raises(RuntimeError, match="1 of 2 runs failed .*out of memory"):
        run([Job(1, ("a",)), Job(0, ("a", "b"))], tmp_path, processes=1)
    assert plan(TABLE, [0, 1], {Cell("b", 0), Cell("a", 1)}, tmp_path) == [Job(1, ("a",))]


def test_bad_input_of_one_run_ends_all_processes(monkeypatch, tmp_path):
    script = "import sys, time; print('error: --x is bad'); "
    script += "sys.exit(78) if 'seed1' in sys.argv[1] else time.sleep(60)"
    scripted(monkeypatch, script)
    before = time.monotonic()
    with pytest.raises(InputError, match="^base/seed1: --x is bad$"):
        run([Job(0, ("a",)), Job(1, ("a",))], tmp_path)
    assert time.monotonic() - before < 30  # the sleeping process was ended


def test_signal_ends_the_processes(monkeypatch, tmp_path):
    scripted(monkeypatch, "import time; time.sleep(60)")
    stop = iter([None, None, None])
    with pytest.raises(Interrupted, match=r"SIGTERM: 0 of 1 arms are finished"):
        run([Job(0, ("a",))], tmp_path, stopped=lambda: next(stop, "SIGTERM"))


def test_preflight_runs_for_the_first_job_only(monkeypatch, tmp_path):
    flagfile = tmp_path / "tiny.flags"
    flagfile.write_text(FLAGS + "--preflight=true\n")
    calls, commands = [], []
    monkeypatch.setattr(
        reproduce.check, "before", lambda settings, *given, **more: calls.append((settings, more))
    )
    options = Reproduce(config=str(flagfile), processes=3)
    jobs = [Job(5, ("real_only",)), Job(0, ("superpose",))]
    reproduce._preflight(options, jobs, tmp_path)
    reproduce._preflight(options, [], tmp_path)
    ((first, more),) = calls
    assert more == {"runs": 2, "processes": 2}
    assert (first.run_dir, first.seed, first.arm) == (str(tmp_path / "base/seed5"), 5, ("real_only",))
    assert (first.pretrain_gan_steps, first.preflight) == (1, "true")  # the flagfile's
    monkeypatch.setattr(runner.subprocess, "Popen", lambda command, **options: commands.append(command))
    runner._start(jobs[0], flagfile, tmp_path, 3)
    assert commands[0][-1] == "--preflight=false"  # overrides the flagfile


def test_error_in_the_parent_ends_the_processes(monkeypatch, tmp_path):
    scripted(monkeypatch, "import time; time.sleep(60)")
    processes, start = [], runner._start
    monkeypatch.setattr(runner, "_start", lambda *given: processes.append(start(*given)) or processes[-1])
    with pytest.raises(OSError, match="the disk is gone"):
        run([Job(0, ("a",))], tmp_path, stopped=fail)
    assert [process.poll() is None for process in processes] == [False]


def fail():
    raise OSError("the disk is gone")


FLAGS = """
--detector=tests.own_detector:tiny
--generator_filters=4
--generator_blocks=1
--discriminator_filters=4
--gan_batch=2
--detector_batch=2
--pretrain_detector_steps=1
--pretrain_gan_steps=1
--joint_steps=1
--final_detector_steps=2
--synthetic_count=3
--crossfit_folds=0
"""


def command(options, *flags):
    """Runs `reproduce` in a process of its own; returns its standard output."""
    words = [f"--config={options.config}", f"--out={options.out}"]
    words += [f"--seeds={','.join(map(str, options.seeds))}", f"--only={','.join(options.only)}", *flags]
    done = subprocess.run(
        [sys.executable, "-m", "tf_detectorgan.reproduce", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_reproduce_trains_a_table_and_skips_it_when_called_again(tmp_path, tiny_phantom, handlers, capsys):
    flagfile, out = tmp_path / "tiny.flags", tmp_path / "out"
    flagfile.write_text(FLAGS + f"--data_dir={tiny_phantom('table')}\n")
    everything = Reproduce(config=str(flagfile), out=str(out), seeds=(0, 1))
    options = dataclasses.replace(everything, only=("real_only", "cut_paste:1"))
    first = command(options, "--processes=2")
    numbers = json.loads((out / "table_1.json").read_text())
    assert [(row["title"], row["seeds"]) for row in numbers["rows"]] == [("real_only", 2), ("cut_paste", 1)]
    for seed in (0, 1):
        own = out / "base" / f"seed{seed}" / "arms" / "real_only" / "evaluation" / "metrics.json"
        value = json.loads(own.read_text())["ap"]["0.1"]["value"]
        assert numbers["rows"][0]["cells"][0]["by_seed"][str(seed)] == value
    assert "3 arms to train in 2 runs" in first
    assert "cut_paste − real_only" in (out / "table_1.md").read_text()
    assert "cut_paste:0" in numbers["unfinished"]
    assert (out / "table_1.html").read_text().count('src="data:image/svg') == 2
    reproduce.main(options)
    assert "0 arms to train" in capsys.readouterr().out
    other = tiny_phantom("more", seed=9, test_images=3)
    reproduce.main(dataclasses.replace(options, test_data=str(other)))
    (more,) = out.glob("table_1_more-*.json")
    counts = json.loads(more.read_text())["counts"]
    assert (counts["images"], numbers["counts"]["images"]) == (3 + 2, 4 + 2)
    assert json.loads((out / "table_1.json").read_text()) == numbers
    reproduce.main(dataclasses.replace(everything, completion_index=3))
    assert "cut_paste, seed 1: done" in capsys.readouterr().out
    assert not (out / "cells").exists()
    flagfile.write_text(flagfile.read_text() + "--final_detector_steps=3\n")
    with pytest.raises(
        InputError, match="other settings .--final_detector_steps was 2, is 3.; use a new --out"
    ):
        reproduce.main(options)


@pytest.mark.slow
def test_cell_trained_by_completion_index_is_gathered_into_the_table(
    tmp_path, tiny_phantom, handlers, capsys
):
    flagfile, out = tmp_path / "tiny.flags", tmp_path / "out"
    flagfile.write_text(FLAGS + f"--data_dir={tiny_phantom('cell')}\n")
    options = Reproduce(config=str(flagfile), out=str(out), seeds=(0,))
    reproduce.main(dataclasses.replace(options, completion_index=1))
    assert "cell 1: cut_paste, seed 0: done" in capsys.readouterr().out
    assert not (out / "table_1.json").exists()
    reproduce.main(dataclasses.replace(options, only=("cut_paste",)))
    assert "0 arms to train" in capsys.readouterr().out
    assert [row["title"] for row in json.loads((out / "table_1.json").read_text())["rows"]] == ["cut_paste"]
    metrics = out / "base" / "seed0" / "arms" / "cut_paste" / "evaluation" / "metrics.json"
    page, text = write_table("3", TABLES["3"], [0], out, command="")
    (row,), found = json.loads((out / "table_3.json").read_text())["rows"], json.loads(metrics.read_text())
    first, share = row["cells"][0], found["localization"]["iobb"]["0.1"]
    assert (first["low"], first["high"], first["counts"]) == (
        share["low"],
        share["high"],
        [[share["k"], share["n"]]],
    )
    (published,) = [
        line.split("  ") for line in text.splitlines() if line.startswith("Wang et al. 2017, pub")
    ]
    assert [cell.strip() for cell in published if cell][1:] == ["0.165", "0.051", *["0.013"] * 3]
    for file in (page, page.with_suffix(".md")):
        assert "Wang et al. 2017, published: their Table 4, class Nodule" in file.read_text("utf-8")


def test_column_of_the_primary_iou_is_shown_once():
    titles = {iou: [c.title for c in distinct(TABLES["1"].columns, iou)] for iou in ("0.1", "0.5")}
    assert titles["0.1"] == ["AP@main", "AP@0.5", "AP@0.5:0.95", "recall@main"]
    assert titles["0.5"] == ["AP@main", "AP@0.5:0.95", "recall@main"]


def test_plot_of_a_table_has_all_row_titles():
    """Compares texts of the SVG."""
    one = {"mean": 0.3, "low": 0.2, "high": None, "by_seed": {0: 0.3, 1: None}}
    nothing = {"mean": None, "low": None, "high": None, "by_seed": {0: None}}
    rows = [{**one, "title": "cut_paste", "high": 0.4}, {**nothing, "title": "real_only"}]
    assert {"cut_paste", "real_only", "AP@0.1"} <= words(figures.seeds_and_intervals("AP@0.1", rows))


def words(uri):
    """Returns the texts of an SVG; matplotlib draws them as outlines and keeps each in a comment."""
    picture = base64.b64decode(uri.split(",", 1)[1]).decode()
    return {text.strip() for text in re.findall("<!-- (.*?) -->", picture)}
