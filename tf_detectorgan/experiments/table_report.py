"""Writes the finished cells of a table as an HTML page, a Markdown file and a JSON file with all numbers.

Numbers are means over seeds; intervals and comparisons resample seeds and test groups (decision 0021).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import checkpoints, progress
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import RANGE_NAME, SINGLE, match
from tf_detectorgan.evaluation.statistics import (
    Bootstrap,
    bootstrap_ap,
    exact_interval,
    holm,
    over_seeds,
    percentile_interval,
    seeds_difference,
    seeds_sentence,
)
from tf_detectorgan.experiments import figures
from tf_detectorgan.experiments.evaluation_table import aligned, interval, number
from tf_detectorgan.experiments.report import duration, markdown_text, versions
from tf_detectorgan.experiments.run_results import read_run
from tf_detectorgan.experiments.runner import Cell, metrics_file, run_directory
from tf_detectorgan.experiments.tables import Column, Row, Table
from tf_detectorgan.gallery import environment

RESAMPLES = 1000
PLOTTED = 2  # number of columns that are plotted


class Results(NamedTuple):
    """The finished cells of a table; rows without a finished seed are absent."""

    metrics: dict[str, dict[int, dict]]  # arm -> seed -> metrics
    draws: dict[str, dict[int, Bootstrap]]
    primary_iou: str
    seconds: float  # of all phases of all runs
    config: dict  # of the first run, without the options that differ between runs
    data: list[str]  # distinct fingerprints of the runs' data sets


def read_results(table: Table, seeds: Sequence[int], out: Path, evaluation_set: str = "") -> Results:
    """Reads every finished cell, scored on the runs' own test images or on those of the set `evaluation_set`.

    Raises:
      InputError: no cell is finished, or the runs' primary IoUs differ.
    """
    metrics: dict[str, dict[int, dict]] = {}
    draws: dict[str, dict[int, Bootstrap]] = {}
    seconds: dict[tuple[int, str], float] = {}
    config: dict = {}
    data: set[str] = set()
    cells = [Cell(arm, seed) for arm in table.arms for seed in seeds]
    cells = [cell for cell in cells if metrics_file(out, cell, evaluation_set).exists()]
    for name, seed in progress.bar(cells, desc="intervals", unit="cell", dynamic_ncols=True):
        directory = run_directory(out, seed)
        run = read_run(directory, evaluation_set)
        arm = run.arms[name]
        config = config or {k: v for k, v in run.config.items() if k not in ("arm", "run_dir", "seed")}
        data.add(run.data_card.get("fingerprint", ""))
        seconds |= {(seed, phase): cost["seconds"] for phase, cost in run.costs.items()}
        metrics.setdefault(name, {})[seed] = arm.metrics
        matches = match(run.truth, arm.found, arm.metrics["class_names"])
        draws.setdefault(name, {})[seed] = bootstrap_ap(matches, RESAMPLES, seed=0)
    if not metrics:
        raise InputError(f"{out}: no cell of this table is finished")
    ious = {m["primary_iou"] for by_seed in metrics.values() for m in by_seed.values()}
    if len(ious) > 1:
        raise InputError(f"{out}: runs with different --primary_iou: {sorted(ious)}")
    return Results(metrics, draws, f"{ious.pop():g}", sum(seconds.values()), config, sorted(data - {""}))


def write_table(
    name: str,
    table: Table,
    seeds: Sequence[int],
    out: Path,
    command: str,
    evaluation_set: str = "",
) -> tuple[Path, str]:
    """Writes `table_<name>.html`, `.md` and `.json` to `out`; separate files for each `evaluation_set`.

    Returns:
      The path of the HTML page, and the table as plain text.

    Raises:
      InputError: as `read_results`.
    """
    results = read_results(table, seeds, out, evaluation_set)
    table = table._replace(columns=distinct(table.columns, results.primary_iou))
    numbers = {
        "table": name,
        "title": table.title + (f", scored on {evaluation_set}" if evaluation_set else ""),
        "source": table.source,
        "command": command,
        "seeds": list(seeds),
        "primary_iou": results.primary_iou,
        "rows": [_row(row, table.columns, results) for row in table.rows if row.arm in results.metrics],
        "published": [
            {"title": p.title, "cells": [p.numbers.get(c.title) for c in table.columns], "note": p.note}
            for p in table.published
        ],
        "comparisons": {c.title: comparisons(table, c, results) for c in table.columns if _has_draws(c)},
        "unfinished": [
            f"{arm}:{seed}"
            for arm in table.arms
            for seed in seeds
            if seed not in results.metrics.get(arm, {})
        ],
        "counts": next(iter(next(iter(results.metrics.values())).values()))["counts"],
        "seconds": round(results.seconds, 1),
        "config": results.config,
        "data": results.data,
        "versions": versions(),
    }
    stem = f"table_{name}" + (f"_{evaluation_set}" if evaluation_set else "")
    checkpoints.write_text(out / f"{stem}.json", json.dumps(numbers, indent=1) + "\n")
    return _pages(numbers, table, results.primary_iou, out / f"{stem}.html")


def _pages(numbers: dict[str, Any], table: Table, primary_iou: str, page: Path) -> tuple[Path, str]:
    """Writes the table as HTML and as Markdown; returns the HTML file's path, and the table as plain text."""
    templates = environment()
    templates.filters |= {"md": markdown_text, "duration": duration, "cell": cell, "number": number}
    content = {**numbers, "columns": [column.at(primary_iou).title for column in table.columns]}
    content["comparisons"] = [
        (Column(title, ()).at(primary_iou).title, [found["sentence"] for found in compared])
        for title, compared in numbers["comparisons"].items()
        if compared
    ]
    plots = [
        figures.seeds_and_intervals(title, [{"title": r["title"], **r["cells"][i]} for r in numbers["rows"]])
        for i, title in enumerate(content["columns"][:PLOTTED])
    ]
    checkpoints.write_text(page, templates.get_template("table.html").render(content | {"plots": plots}))
    checkpoints.write_text(page.with_suffix(".md"), templates.get_template("table.md").render(content))
    return page, _text(content)


def _text(content: Mapping[str, Any]) -> str:
    """Returns rows, published rows and the sentences of the comparisons as plain text for a terminal."""
    lines = [["", *content["columns"], "seeds"]]
    for row in content["rows"]:
        lines.append([row["title"], *(cell(c) for c in row["cells"]), str(row["seeds"])])
    for row in content["published"]:
        lines.append([f"{row['title']}, published", *(number(value, 3) for value in row["cells"]), ""])
    sentences = [s for _, group in content["comparisons"] for s in group]
    return "\n".join([aligned(lines), *sentences])


def comparisons(table: Table, column: Column, results: Results) -> list[dict[str, Any]]:
    """Returns the table's comparisons for a column of AP or recall, with p-values corrected by Holm."""
    measure, iou = column.at(results.primary_iou).path
    found = []
    for first, second in table.comparisons:
        a, b = results.draws.get(first, {}), results.draws.get(second, {})
        common = sorted(a.keys() & b.keys())
        if common:
            difference = seeds_difference([a[s] for s in common], [b[s] for s in common], measure, iou)
            found.append((first, second, difference))
    known = [d.p for _, _, d in found if d.p is not None]
    corrected = iter(holm(known))
    result = []
    for first, second, difference in found:
        p = None if difference.p is None else next(corrected)
        result.append(
            {
                "first": first,
                "second": second,
                **difference.interval._asdict(),
                "p": difference.p,
                "p_holm": p,
                "seeds": difference.seeds,
                "sentence": seeds_sentence(first, second, difference, p),
            }
        )
    return result


def cell(entry: dict) -> str:
    """Returns "0.340 ± 0.012 [0.29, 0.39] (paper 0.236)": mean, SD over seeds, interval, published number."""
    if entry["mean"] is None:
        return number(None)
    sd = "" if entry["sd"] is None else f"± {number(entry['sd'], 3)}"
    paper = "" if entry["paper"] is None else f"(paper {number(entry['paper'], 3)})"
    return " ".join(filter(None, (number(entry["mean"], 3), sd, interval(entry), paper)))


def _row(row: Row, columns: Sequence[Column], results: Results) -> dict[str, Any]:
    by_seed = results.metrics[row.arm]
    cells = []
    for column in columns:
        shown = column.at(results.primary_iou)
        entries = [shown.of(metrics) for metrics in by_seed.values()]
        values = [entry["value"] for entry in entries]
        known = [v for v in values if v is not None]
        if not _has_draws(column):  # k of n images; the n images are the same for each seed
            _, low, high = exact_interval(round(np.mean([e["k"] for e in entries])), entries[0]["n"])
        else:
            runs = list(results.draws[row.arm].values())
            drawn = over_seeds(runs, *shown.path)
            _, low, high = percentile_interval(drawn)
        cells.append(
            {
                "mean": float(np.mean(known)) if known else None,
                "sd": float(np.std(known, ddof=1)) if len(known) > 1 else None,
                "low": low,
                "high": high,
                "by_seed": dict(zip(by_seed, values, strict=True)),
                "counts": [[e["k"], e["n"]] for e in entries] if "k" in entries[0] else None,
                "paper": row.paper.get(column.title),
            }
        )
    return {
        "title": row.arm,
        "arm": row.arm,
        "seeds": len(by_seed),
        "cells": cells,
    }


def _has_draws(column: Column) -> bool:
    return column.path[0] in ("ap", "recall") and column.path[1] in ("main", RANGE_NAME, *map(str, SINGLE))


def distinct(columns: Sequence[Column], primary_iou: str) -> tuple[Column, ...]:
    """Returns the columns without repetitions, such as AP@0.5 if the primary IoU is 0.5."""
    return tuple({column.at(primary_iou).title: column for column in reversed(columns)}.values())[::-1]
