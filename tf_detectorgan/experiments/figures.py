"""Draws curves and intervals of several arms as SVG, returned as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#000000", "#e69f00", "#009e73", "#0072b2", "#cc79a7", "#d55e00", "#56b4e9")  # Okabe and Ito 2008
STYLES = (":", "--", "-.", "-")
FEWEST_FP = 0.1  # false positives per image at the left edge: the axis is logarithmic


RATES = np.geomspace(FEWEST_FP, 10, 60)  # false positives per image at which the FROC bands are computed
Bands = Mapping[str, tuple[np.ndarray, np.ndarray]]  # arm -> lower and upper end


def precision_recall(arms: Mapping[str, dict], iou: str, bands: Bands) -> str:
    """Plots interpolated precision (mean over classes) against recall.

    `arms`: metrics from `evaluation.evaluate`. `bands`: may lack arms; at recall 0, 0.01 .. 1.
    """
    figure, axes = _axes(f"Precision and recall, IoU ≥ {iou}", "recall", "precision")
    for n, (name, metrics) in enumerate(arms.items()):
        curves = list(metrics["precision_recall"][iou].values())
        if curves:
            precision = np.mean(curves, axis=0)
            recall = np.linspace(0, 1, len(precision))
            axes.plot(recall, precision, label=_label(name), **_line(n))
            if name in bands:
                axes.fill_between(recall, *bands[name], **_shade(n))
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, legend=bool(axes.lines))


def free_response(arms: Mapping[str, dict], bands: Bands) -> str:
    """Plots sensitivity against false positives per image; `bands` are computed at RATES."""
    iou = next(iter(arms.values()))["froc"]["iou"]
    figure, axes = _axes(f"FROC, IoU ≥ {iou:g}", "false positives per image", "sensitivity")
    for n, (name, metrics) in enumerate(arms.items()):
        curve = metrics["froc"]["curve"]
        false = np.maximum([0.0, *curve["fp_per_image"], 1e3], FEWEST_FP / 10)
        sensitivity = np.array([0.0, *curve["sensitivity"]])
        axes.step(
            false, np.append(sensitivity, sensitivity[-1]), where="post", label=_label(name), **_line(n)
        )
        if name in bands:
            axes.fill_between(RATES, *bands[name], **_shade(n))
    ticks = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1, "2": 2, "4": 4, "8": 8}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.set(xlim=(FEWEST_FP, 10), ylim=(0, 1.02))
    return _svg(figure, legend=bool(axes.lines))


def training(title: str, arms: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Plots the training curve of each arm, given as steps and values [P]."""
    figure, axes = _axes(title, "step", "")
    for n, (name, (steps, values)) in enumerate(arms.items()):
        axes.plot(steps, values, label=_label(name), **_line(n))
    return _svg(figure, legend=True)


def seeds_and_intervals(title: str, rows: Sequence[Mapping]) -> str:
    """Plots for each row of a table its mean with the 95 % interval, and a small dot for each seed.

    Args:
      title: name of the metric.
      rows: the rows, each with "title", and "mean", "low", "high", "by_seed" (values or None).
    """
    figure, axes = _axes("", title, "")
    axes.grid(axis="y", visible=False)
    for n, row in enumerate(rows):
        seeds = [value for value in row["by_seed"].values() if value is not None]
        axes.plot(seeds, [n + 0.22] * len(seeds), ".", color="#7a868f", markersize=5)
        if row["low"] is not None:
            axes.plot([row["low"], row["high"]], [n, n], color=COLORS[0], linewidth=1.2)
        if row["mean"] is not None:
            axes.plot(row["mean"], n, "o", color=COLORS[0], markersize=5)
    axes.set_yticks(range(len(rows)), [_label(row["title"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first row on top
    return _svg(figure)


def box_sizes(sizes: Mapping[str, np.ndarray], train: np.ndarray, covered: np.ndarray | None) -> str:
    """Plots a histogram of box sizes per split, and per bin the share of training boxes a detector covers.

    Args:
      sizes: split -> square root of the area of its boxes, in pixels.
      train, covered: size of each training box, and whether it is covered; None: unknown.
    """
    all_sizes = np.maximum(np.concatenate(list(sizes.values())), 0.5)
    low, high = np.log2(all_sizes.min()), np.log2(all_sizes.max())
    edges = 2 ** np.linspace(low - 0.05, high + 0.05, 16)
    figure, axes = _axes("", "square root of the area, pixels", "boxes")
    for n, (name, values) in enumerate(sizes.items()):
        color, label = COLORS[n % len(COLORS)], name.replace("_", ", ")
        axes.hist(
            np.maximum(values, 0.5), edges.tolist(), histtype="step", linewidth=1.8, color=color, label=label
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    if covered is not None:
        count, good = (np.histogram(np.maximum(part, 0.5), edges)[0] for part in (train, train[covered]))
        held = count > 0
        right = axes.twinx()
        middle, share = np.sqrt(edges[:-1] * edges[1:])[held], good[held] / count[held]
        right.plot(middle, share, "o", color="#5b6670", markersize=4, label="share covered")
        right.set(ylim=(-0.03, 1.06), ylabel="share of training boxes that are covered")
        right.spines["top"].set_visible(False)
    return _svg(figure, legend=True)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.8, 3.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(n: int) -> dict:
    return {"color": COLORS[n % len(COLORS)], "linestyle": STYLES[n % len(STYLES)], "linewidth": 1.8}


def _shade(n: int) -> dict:
    return {"color": COLORS[n % len(COLORS)], "alpha": 0.1, "linewidth": 0}


def _label(name: str) -> str:
    """Escapes a name for matplotlib: `$` starts a formula, a leading `_` hides it from the legend."""
    return ("\N{ZERO WIDTH SPACE}" + name if name.startswith("_") else name).replace("$", r"\$")


def _svg(figure: Figure, legend: bool = False) -> str:
    if legend:
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")  # hides no curve
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "detectorgan"}):  # equal curves give equal files
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue().encode()).decode()
