"""Curves of several arms as SVG inside a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#000000", "#e69f00", "#009e73", "#0072b2", "#cc79a7", "#d55e00", "#56b4e9")  # Okabe and Ito 2008
STYLES = (":", "--", "-.", "-")
FEWEST_FP = 0.1  # false positives per image at the left edge: the axis is logarithmic


def precision_recall(arms: Mapping[str, dict], iou: str) -> str:
    """Interpolated precision (mean over classes) against recall; `arms`: metrics of `evaluation.evaluate`."""
    figure, axes = _axes(f"Precision and recall, IoU ≥ {iou}", "recall", "precision")
    for n, (name, metrics) in enumerate(arms.items()):
        curves = list(metrics["precision_recall"][iou].values())
        if curves:
            precision = np.mean(curves, axis=0)
            axes.plot(np.linspace(0, 1, len(precision)), precision, label=_label(name), **_line(n))
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    return _svg(figure, axes)


def free_response(arms: Mapping[str, dict]) -> str:
    """Sensitivity against false positives per image."""
    iou = next(iter(arms.values()))["froc"]["iou"]
    figure, axes = _axes(f"FROC, IoU ≥ {iou:g}", "false positives per image", "sensitivity")
    for n, (name, metrics) in enumerate(arms.items()):
        curve = metrics["froc"]["curve"]
        false = np.maximum([0.0, *curve["fp_per_image"], 1e3], FEWEST_FP / 10)
        sensitivity = np.array([0.0, *curve["sensitivity"]])
        axes.step(
            false, np.append(sensitivity, sensitivity[-1]), where="post", label=_label(name), **_line(n)
        )
    ticks = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1, "2": 2, "4": 4, "8": 8}
    axes.set_xscale("log")
    axes.set_xticks(list(ticks.values()), list(ticks))
    axes.minorticks_off()
    axes.set(xlim=(FEWEST_FP, 10), ylim=(0, 1.02))
    return _svg(figure, axes)


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.8, 3.7), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(color="#e4e8eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _line(n: int) -> dict:
    return {"color": COLORS[n % len(COLORS)], "linestyle": STYLES[n % len(STYLES)], "linewidth": 1.8}


def _label(name: str) -> str:
    """A name as plain text: a `$` is no formula, and a leading `_` does not hide it from the legend."""
    return ("\N{ZERO WIDTH SPACE}" + name if name.startswith("_") else name).replace("$", r"\$")


def _svg(figure: Figure, axes: Axes) -> str:
    if axes.lines:
        figure.legend(frameon=False, fontsize=9, loc="outside right upper")  # covers no curve
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "detectorgan"}):  # the same curve is the same file
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue().encode()).decode()
