"""How long a step and an image take; the first, in which graphs are traced, is timed apart."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np


class StepClock:
    """Times the steps of a phase: the batch, the step, and where values are logged the wait for them."""

    def __init__(self):
        self._seconds: list[float] = []
        self._began = 0.0

    def start(self) -> None:
        """Begins a step."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Ends it."""
        self._seconds.append(time.monotonic() - self._began)

    def record(self) -> dict[str, float]:
        """Seconds of the first step and the mean of the others, where there are any."""
        first, others = self._seconds[:1], self._seconds[1:]
        found = {"first_step_seconds": round(first[0], 3)} if first else {}
        return found | ({"step_seconds": round(float(np.mean(others)), 5)} if others else {})


def seconds_per_image(began: Sequence[float], images: int) -> float:
    """Of batches that hold `images` in all, without the first one's time if there are others.

    `began`: when each batch began, and when the last one ended, in seconds.
    """
    batches = np.diff(began)
    return round(float(np.mean(batches[1:] if len(batches) > 1 else batches)) * len(batches) / images, 5)
