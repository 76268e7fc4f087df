"""Measures the time per step and per image; the first step, in which graphs are traced, is separate."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np


class StepClock:
    """Measures the steps of a phase, including the batch and, if values are logged, the wait for them."""

    def __init__(self):
        self._seconds: list[float] = []
        self._began = 0.0

    def start(self) -> None:
        """Starts a step."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Ends the step."""
        self._seconds.append(time.monotonic() - self._began)

    def record(self) -> dict[str, float]:
        """Returns the seconds of the first step and the mean of the others, if there are any."""
        first, others = self._seconds[:1], self._seconds[1:]
        record = {"first_step_seconds": round(first[0], 3)} if first else {}
        return record | ({"step_seconds": round(float(np.mean(others)), 5)} if others else {})


def seconds_per_image(began: Sequence[float], images: int) -> float:
    """Returns the mean seconds per image, without the first batch if there are others.

    `images`: number of images in all batches. `began`: start times of the batches, and the last one's end.
    """
    batches = np.diff(began)
    return round(float(np.mean(batches[1:] if len(batches) > 1 else batches)) * len(batches) / images, 5)
