"""Trains all networks of a run: python -m tf_detectorgan.train --flagfile=configs/demo.flags.

Phases: pretrain_gan, pretrain_detector, held_out_detectors, then joint, synthesize, final_detector and
evaluate for every --arm; a report at the end. Each phase is saved in checkpoints and skipped when finished.
Run the same command again to resume. Exit codes: 75 interrupted, all finished steps saved; 78 bad input.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW
from tf_detectorgan.errors import EXIT_INTERRUPTED

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported
if __name__ == "__main__":  # the import takes seconds, in which process 1 of a pod would ignore a SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(EXIT_INTERRUPTED))

from tf_detectorgan import checkpoints, command, disk
from tf_detectorgan.cluster import tf_config
from tf_detectorgan.experiments import report
from tf_detectorgan.preflight import check
from tf_detectorgan.training import before_training, run_directory, workers
from tf_detectorgan.training.phases import run_arms
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import Train


def main(settings: Train) -> None:
    """Runs the preflight if it is due, then every unfinished phase, and writes the report."""
    with workers.ending_together(settings.workers):
        chief = tf_config.task_index(os.environ, settings.workers) == 0
        with disk.held(Path(settings.run_dir)) if chief else contextlib.nullcontext():
            if chief:  # the other workers wait in `join`
                check.before(settings)
            run = run_directory.begin(settings, workers.join(settings.workers))
            run.workers.run_on_chief(lambda: before_training.check(run))
            run_arms(run)
            run.workers.run_on_chief(lambda: summarize(run))


def summarize(run: Run) -> None:
    """Writes costs.json and the report; prints the result table and the paths."""
    checkpoints.write_costs(run.layout.path)
    page = report.write_report(run.layout.path)
    print(report.result_table(run.layout.path))
    board = run.layout.tensorboard
    print(f"run: {run.layout.path}; TensorBoard: tensorboard --logdir {board}; report: {page}")


if __name__ == "__main__":
    command.run(Train, main, terminated=EXIT_INTERRUPTED)
