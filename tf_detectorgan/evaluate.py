"""Scores the final detectors of a run: python -m tf_detectorgan.evaluate --run_dir=runs/demo --split=test.

`--data_dir` scores them on another data set made by `prepare`, with the same classes and image size: another
hospital's images, say. Written per arm: metrics and detections, with the truth, so that every number can be
computed again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

from tf_detectorgan import checkpoints, door
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments.evaluation_table import evaluation_table
from tf_detectorgan.training import phases, run_directory
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS


@dataclass(frozen=True)
class Evaluate:
    """Options of `python -m tf_detectorgan.evaluate`."""

    run_dir: str = option("runs/phantom", "A run of tf_detectorgan.train.")
    arm: tuple[str, ...] = option((), "Arms to score; empty: all that are finished.", choices=tuple(ARMS))
    split: str = option("test", "Images to score on.", choices=("test", "validation"))
    data_dir: str = option(
        "", "Another prepared data set, or where the run's own lies now; empty: the run's."
    )


def main(options: Evaluate) -> None:
    """Scores the arms and prints their numbers side by side."""
    run = run_directory.reopen(options.run_dir, options.data_dir)
    arms = finished_arms(run, options.arm)
    if not any(run.dataset.count(f"{options.split}_{stream}") for stream in ("labelled", "clean")):
        raise InputError(f"{run.dataset.directory} has no {options.split} split")
    metrics = {arm: phases.evaluate(run, arm, options.split) for arm in arms}
    print(f"{options.split} split of {run.dataset.directory}")
    print(evaluation_table(metrics))
    for arm in arms:
        print(f"{arm}: metrics and detections in {run.evaluation_path(arm)}")


def finished_arms(run: Run, wanted: tuple[str, ...]) -> list[str]:
    """`wanted`, or all arms with a final detector when it is empty.

    Raises:
      InputError: there is none, or a wanted one is not finished.
    """
    finished = [arm for arm in ARMS if checkpoints.finished(run.arm_path(arm) / "final_detector")]
    missing = [arm for arm in wanted if arm not in finished]
    if missing or not finished:
        raise InputError(
            f"{run.path}: no final detector of {', '.join(missing) or 'any arm'} "
            f"(finished: {', '.join(finished) or 'none'}); run tf_detectorgan.train with that --arm first"
        )
    return list(wanted) or finished


if __name__ == "__main__":
    door.run(Evaluate, main)
