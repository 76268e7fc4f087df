"""Reads the training curves of a run from its TensorBoard files, for the report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

MAX_POINTS = 1000  # kept per curve, sampled evenly


class Curve(NamedTuple):
    """One scalar of one arm."""

    steps: np.ndarray  # [P] int
    values: np.ndarray  # [P] float


# (title, name of the scalar); {iou} is the primary IoU.
SHOWN = (
    ("Final detector: loss L_d", "final_detector/L_d"),
    ("Final detector: validation AP@{iou}", "final_detector/validation_ap@{iou}"),
    ("Joint phase: BboxLoss", "joint/L_bbox"),
    ("Joint phase: L_real of DET", "joint/L_real"),
)


def read(directory: Path, arms: Iterable[str], iou: str) -> list[tuple[str, dict[str, Curve]]]:
    """Returns (title, arm -> curve) for each of SHOWN in `directory`, a run's tensorboard/."""
    scalars = {arm: _scalars(directory / arm) for arm in arms if (directory / arm).is_dir()}
    found = []
    for title, tag in SHOWN:
        curves = {
            arm: known[name] for arm, known in scalars.items() if (name := tag.format(iou=iou)) in known
        }
        if curves:
            found.append((title.format(iou=iou), curves))
    return found


def _scalars(directory: Path) -> dict[str, Curve]:
    """Returns all scalars of an arm. If a step was repeated after an interruption, the last value counts."""
    events = EventAccumulator(str(directory), size_guidance={TENSORS: MAX_POINTS}).Reload()
    curves = {}
    for tag in events.Tags()[TENSORS]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            # By time: files written in the same second need not be in order by name.
            written = sorted(events.Tensors(tag), key=lambda event: event.wall_time)
            points = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in written}
            steps = sorted(points)
            curves[tag] = Curve(np.array(steps), np.array([points[step] for step in steps]))
    return curves
