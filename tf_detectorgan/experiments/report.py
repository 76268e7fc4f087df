"""Writes the report of a run: comparisons of the arms with intervals, curves, costs and example images."""

from __future__ import annotations

import base64
import itertools
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import tf_detectorgan
from tf_detectorgan import boxes as box_ops
from tf_detectorgan import checkpoints
from tf_detectorgan.evaluation import curves
from tf_detectorgan.evaluation.average_precision import RANGE_NAME, Matches, match
from tf_detectorgan.evaluation.records import Found
from tf_detectorgan.evaluation.statistics import bootstrap_ap, seeds_difference, sentence
from tf_detectorgan.experiments import audit_table, figures, training_curves
from tf_detectorgan.experiments.evaluation_table import KINDS, aligned, interval, number
from tf_detectorgan.experiments.run_results import RunResult, read_run
from tf_detectorgan.experiments.tables import Column
from tf_detectorgan.gallery import environment, image_uri
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training.settings import ARMS

PACKAGES = ("keras", "keras-cv", "numpy", "opencv-python-headless", "pycocotools", "scipy")
EXAMPLES = 8  # number of test images shown
DETECTIONS = 3  # shown per image, those with the highest scores


class FormattedNumber(NamedTuple):
    """A number of the headline table as text."""

    value: str
    interval: str  # "[0.21, 0.40]"
    best: bool


def write_report(run_dir: str | os.PathLike) -> Path:
    """Writes a self-contained `report.html`, `report.md` and `cards.md`; returns the path of the first.

    `cards.md` holds drafts of a model card (Mitchell et al. 2019) and of a card of the synthetic images.

    Raises:
      InputError: no arm has been evaluated.
    """
    run = read_run(run_dir)
    first, primary_iou = run.first, f"{run.first['primary_iou']:g}"
    columns, rows = headline(run)
    found = matched(run)
    audits = {name: arm.audit for name, arm in run.arms.items()}
    content = {
        "title": f"DetectorGAN run: {run.directory.resolve().name}",
        "columns": [column.title for column in columns],
        "rows": rows,
        "missing": run.missing,
        "counts": first["counts"],
        "class_names": first["class_names"],
        "notes": sorted({arm.metrics["note"] for arm in run.arms.values()} - {""}),
        "comparisons": comparisons(run, found),
        "classes": _per_class(run, primary_iou),
        "primary_iou": primary_iou,
        "localization": _localization(run),
        "froc": {name: arm.metrics["froc"]["sensitivity"] for name, arm in run.arms.items()},
        "resamples": run.resamples[0],
        "eqn3_settings": eqn3_settings(run),
        "config": run.config,
        "data_card": run.data_card,
        "costs": _costs(run),
        "total": duration(sum(cost["seconds"] for cost in run.costs.values())),
        "versions": versions(),
        "galleries": [
            (name, arm.contact_sheet, arm.gallery) for name, arm in run.arms.items() if arm.contact_sheet
        ],
        "audit_columns": audit_table.COLUMNS,
        "audits": audit_table.rows(audits),
        "directory": run.directory,
    }
    templates = environment()
    templates.filters |= {"md": markdown_text, "png": _file_uri, "number": number}
    pictures = {
        "plots": _plots(run, found),
        "training": [
            figures.training(title, curves)
            for title, curves in training_curves.read(
                RunLayout(run.directory).tensorboard, run.arms, primary_iou
            )
        ],
        "examples": examples(run),
    }
    page = RunLayout(run.directory).report
    checkpoints.write_text(page, templates.get_template("report.html").render(content | pictures))
    for name in ("report.md", "cards.md"):
        checkpoints.write_text(run.directory / name, templates.get_template(name).render(content))
    return page


def eqn3_settings(run: RunResult) -> list[str]:
    """Returns a sentence for each arm with Eqn 3: the number of unrolled steps and the optimizer of DET."""
    steps, optimizer = (run.config.get(key) for key in ("unroll_steps", "joint_detector_optimizer"))
    names = [name for name in run.arms if name in ARMS and ARMS[name].real_sign and steps is not None]
    how = f"Eqn 3 with {steps} unrolled {'step' if steps == 1 else 'steps'} of {optimizer}, exact gradient"
    without = f"no Eqn 3 (--unroll_steps=0); DET is updated by {optimizer}"
    return [f"{name}: {how if steps else without}." for name in names]


def result_table(run_dir: str | os.PathLike) -> str:
    """Returns the headline table as plain text for a terminal; `*` marks the highest value of a column."""
    run = read_run(run_dir)
    columns, rows = headline(run)
    lines = [["arm", *(column.title for column in columns)]]
    for name, cells in rows:
        lines.append([name, *(f"{c.value}{'*' if c.best else ''} {c.interval}".strip() for c in cells)])
    text = [aligned(lines)]
    counts = run.first["counts"]
    text.append(
        f"{counts['images']} test images of {counts['groups']} groups, {counts['boxes']} objects; "
        "[95 % interval over test groups; one training per arm]; * highest value of the column"
    )
    if run.missing:
        text.append(f"not evaluated: {', '.join(run.missing)}")
    return "\n".join(text)


def headline(run: RunResult) -> tuple[list[Column], list[tuple[str, list[FormattedNumber]]]]:
    """Returns the columns and each arm's cells; the highest value of a column is marked, also if tied."""
    main = f"{run.first['primary_iou']:g}"
    columns = [
        *(Column(f"AP@{iou}", ("ap", iou)) for iou in dict.fromkeys([main, "0.1", "0.5", RANGE_NAME])),
        Column(f"recall@{main}", ("recall", main)),
        Column(f"localization T(IoU) {main}", ("localization", "iou", main)),
    ]
    values = {name: [column.of(arm.metrics) for column in columns] for name, arm in run.arms.items()}
    tops = [
        max((v["value"] for v in column if v["value"] is not None), default=None)
        for column in zip(*values.values(), strict=True)
    ]
    rows = [
        (name, [_cell(entry, top, len(values) > 1) for entry, top in zip(entries, tops, strict=True)])
        for name, entries in values.items()
    ]
    return columns, rows


def matched(run: RunResult) -> dict[str, Matches]:
    """Returns each arm's detections, matched to the true boxes at every IoU threshold of the report."""
    ious = [*map(float, run.first["precision_recall"]), run.first["primary_iou"], 0.5]
    return {
        name: match(run.truth, arm.found, run.first["class_names"], tuple(dict.fromkeys(ious)))
        for name, arm in run.arms.items()
    }


def comparisons(run: RunResult, found: dict[str, Matches]) -> list[tuple[str, list[str]]]:
    """Returns, per IoU threshold of AP, a sentence for each pair of arms: the later arm minus the earlier."""
    if len(found) < 2:
        return []
    ious = tuple(dict.fromkeys([run.first["primary_iou"], 0.5]))
    draws = {name: [bootstrap_ap(matches, *run.resamples)] for name, matches in found.items()}
    pairs = list(itertools.combinations(reversed(found), 2))
    return [
        (
            f"AP@{iou:g}",
            [sentence(a, b, seeds_difference(draws[a], draws[b], "ap", f"{iou:g}")) for a, b in pairs],
        )
        for iou in ious
    ]


def _plots(run: RunResult, found: dict[str, Matches]) -> list[str]:
    """Returns the curves of all arms; with bands if the test set has objects."""
    metrics = {name: arm.metrics for name, arm in run.arms.items()}
    main, resamples = run.first["primary_iou"], run.resamples
    banded = found if run.first["counts"]["boxes"] else {}
    plots = []
    for iou in map(float, run.first["precision_recall"]):
        bands = {name: curves.precision_band(one, iou, *resamples) for name, one in banded.items()}
        plots.append(figures.precision_recall(metrics, f"{iou:g}", bands))
    bands = {
        name: curves.sensitivity_band(one, main, figures.RATES, *resamples) for name, one in banded.items()
    }
    return [*plots, figures.free_response(metrics, bands)]


def examples(run: RunResult) -> list[dict]:
    """Returns test images with true boxes and each arm's best detections; images with objects come first."""
    by_id = {t.image_id: t for t in run.truth}
    shown = sorted(run.samples, key=lambda i: (len(by_id[i].labels) == 0, i))
    shown = [*shown[: EXAMPLES - 1], *shown[EXAMPLES - 1 :][-1:]]  # the last one is clean if any is
    found = {name: {f.image_id: f for f in arm.found} for name, arm in run.arms.items()}
    return [
        {
            "image_id": image_id,
            "uri": image_uri(run.samples[image_id]),
            "size": run.samples[image_id].shape[:2],
            "truth": box_ops.to_xywh(by_id[image_id].boxes).numpy().tolist(),
            "arms": {name: _best_detections(per_image[image_id]) for name, per_image in found.items()},
        }
        for image_id in shown
    ]


def _best_detections(found: Found) -> list[tuple[list[float], float]]:
    best = np.argsort(-found.scores, kind="stable")[:DETECTIONS]
    boxes = box_ops.to_xywh(found.boxes).numpy()
    return list(zip(boxes[best].tolist(), found.scores[best].tolist(), strict=True))


def _localization(run: RunResult) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Returns (title, threshold, [(share, "k of n") per arm]) for every T(IoU) and T(IoBB)."""
    kinds = run.first["localization"]
    rows = []
    for kind, threshold in [(k, t) for k, thresholds in kinds.items() for t in thresholds]:
        shares = [arm.metrics["localization"][kind][threshold] for arm in run.arms.values()]
        counted = [(number(share["value"]), f"{share['k']} of {share['n']}") for share in shares]
        rows.append((KINDS[kind], threshold, counted))
    return rows


def _per_class(run: RunResult, iou: str) -> list[tuple[str, int, list[str]]]:
    """Returns (class, number of its boxes, AP per arm) per class, if there are several classes."""
    arms = [arm.metrics["per_class"] for arm in run.arms.values()]
    names = run.first["class_names"]
    return [
        (name, arms[0][name]["boxes"], [number(arm[name]["ap"][iou]["value"]) for arm in arms])
        for name in (names if len(names) > 1 else [])
    ]


def _costs(run: RunResult) -> list[tuple[str, str, str, str, str]]:
    """Returns (phase, time, steps, steps per second, memory); synthesis and evaluation have no steps."""
    rows = []
    for phase, cost in run.costs.items():
        steps = cost.get("steps", 0)
        rate = f"{steps / cost['seconds']:.1f}" if steps and cost["seconds"] else "–"
        memory = f"{cost['peak_memory_mib'] / 1024:.1f} GiB" if "peak_memory_mib" in cost else "–"
        if "gpu_peak_memory_mib" in cost:
            memory += f", GPU {cost['gpu_peak_memory_mib'] / 1024:.1f} GiB"
        rows.append((phase, duration(cost["seconds"]), str(steps or "–"), rate, memory))
    return rows


def versions() -> dict[str, str]:
    """Returns the versions of the packages in use while the report is written."""
    result = {
        "tf_detectorgan": tf_detectorgan.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,  # its distribution has several names
    }
    for package in PACKAGES:
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            result[package] = "not installed"
    return result


def duration(seconds: float) -> str:
    """Returns a duration as text: 47 s, 12 min 05 s or 3 h 20 min."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def markdown_text(text: object) -> str:
    """Returns `text` escaped for Markdown, also inside a table."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", " ".join(str(text).split()))


def _cell(entry: dict, top: float | None, several: bool) -> FormattedNumber:
    best = several and top is not None and entry["value"] == top
    return FormattedNumber(number(entry["value"]), interval(entry), best)


def _file_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
