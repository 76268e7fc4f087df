"""The times of steps and images, by a fake clock."""

import pytest

from tf_detectorgan.training import step_clock
from tf_detectorgan.training.step_clock import StepClock, seconds_per_image


def test_first_step_is_recorded_separately(monkeypatch):
    times = iter([0.0, 50.0, 60.0, 62.0, 70.0, 74.0])  # 50 s, then 2 s and 4 s
    monkeypatch.setattr(step_clock.time, "monotonic", lambda: next(times))
    clock = StepClock()
    assert clock.record() == {}
    for steps, expected in (
        (1, {"first_step_seconds": 50.0}),
        (2, {"first_step_seconds": 50.0, "step_seconds": 3.0}),
    ):
        for _ in range(steps):
            clock.start()
            clock.stop()
        assert clock.record() == expected


def test_seconds_per_image_excludes_the_first_of_several_batches():
    # Batches of 30 s, 6 s and 8 s with 4 images each: 7 s / 4.
    assert seconds_per_image([10.0, 40.0, 46.0, 54.0], 12) == pytest.approx(7 / 4)
    assert seconds_per_image([10.0, 40.0], 4) == pytest.approx(30 / 4)
