"""What TensorBoard shows of a run's training, as curves for its report."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator

MOST = 1000  # points of a curve that are kept, evenly drawn


class Curve(NamedTuple):
    """One scalar of one arm."""

    steps: np.ndarray  # [P] int
    values: np.ndarray  # [P] float


# Title, and name of the scalar; {iou} is the primary IoU.
SHOWN = (
    ("Final detector: loss L_d", "final_detector/L_d"),
    ("Final detector: validation AP@{iou}", "final_detector/validation_ap@{iou}"),
    ("Joint phase: BboxLoss", "joint/L_bbox"),
    ("Joint phase: L_real of DET", "joint/L_real"),
)


def read(directory: Path, arms: Iterable[str], iou: str) -> list[tuple[str, dict[str, Curve]]]:
    """(title, arm -> curve) of each of SHOWN that an arm under `directory`, a run's tensorboard/, has."""
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
    """Every scalar of an arm's event files; of steps taken twice, after an interruption, the last."""
    events = EventAccumulator(str(directory), size_guidance={TENSORS: MOST}).Reload()
    curves = {}
    for tag in events.Tags()[TENSORS]:
        if events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars":
            # By time: the names of two files of one second do not sort as they were written.
            written = sorted(events.Tensors(tag), key=lambda event: event.wall_time)
            points = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in written}
            steps = sorted(points)
            curves[tag] = Curve(np.array(steps), np.array([points[step] for step in steps]))
    return curves
