"""Trains everything: python -m tf_detectorgan.train --flagfile=configs/demo.flags.

Phases, each checkpointed and skipped when done: pretrain_gan, pretrain_detector, audit_detectors, then for
every --arm joint, synthetic images, final_detector, evaluate; a report at the end. Run the same command again
to resume. Exit codes: 75 interrupted, all finished steps saved; 78 bad input.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW
from tf_detectorgan.errors import EXIT_INTERRUPTED

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported
if __name__ == "__main__":  # and that takes seconds, in which process 1 of a pod would not hear a SIGTERM
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(EXIT_INTERRUPTED))

import tensorflow as tf

from tf_detectorgan import checkpoints, disk, door
from tf_detectorgan.cluster import tf_config
from tf_detectorgan.experiments import report
from tf_detectorgan.preflight import check
from tf_detectorgan.preflight.run_checks import layer_report, refuse_kinks
from tf_detectorgan.training import run_directory, workers
from tf_detectorgan.training.phases import run_arms
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import Train

WANTED_COVERAGE = 0.95
ON_CPUS = {
    "mixed_bfloat16": "bfloat16 is faster than float32 where they have AVX512_BF16, else far slower",
    "mixed_float16": "float16 is far slower than float32",
}


def main(settings: Train) -> None:
    """Runs the preflight if it is due, every phase that is not done yet, then writes the report."""
    with workers.ending_together(settings.workers):
        chief = tf_config.task_index(os.environ, settings.workers) == 0
        with disk.held(Path(settings.run_dir)) if chief else contextlib.nullcontext():
            if chief:  # the others wait in `join`
                check.before(settings)
            run = run_directory.begin(settings, workers.join(settings.workers))
            _ = run.detector  # made by all workers together
            run.workers.of_chief(lambda: first_words(run))
            run_arms(run)
            run.workers.of_chief(lambda: last_words(run))


def first_words(run: Run) -> None:
    """What the data say about the settings, before the work begins."""
    if run.settings.precision in ON_CPUS and not tf.config.list_logical_devices("GPU"):
        print(f"warning: --precision={run.settings.precision}: on CPUs {ON_CPUS[run.settings.precision]}")
    coverage_report(run)
    looks_report(run)
    layer_report(run)
    refuse_kinks(run)


def last_words(run: Run) -> None:
    """Costs, report, result table."""
    checkpoints.write_costs(run.path)
    page = report.write_report(run.path)
    print(report.result_table(run.path))
    print(f"run: {run.path}; TensorBoard: tensorboard --logdir {run.path / 'tensorboard'}; report: {page}")


def coverage_report(run: Run) -> None:
    """Says what share of the training boxes the detector can learn well; warns when it is low."""
    decoded = run.dataset.serialized("train_labelled").map(run.dataset.decode)
    boxes = tf.concat([record.boxes for record in decoded], 0)
    covered, rule = run.detector.coverage(boxes)
    share = float(covered.mean())
    print(f"detector: {share:.0%} of {len(covered)} training boxes {rule}")
    if share < WANTED_COVERAGE:
        print(
            f"warning: below {WANTED_COVERAGE:.0%}. The others are learnt slowly or not at all: set "
            "--anchor_sizes, --anchor_ratios if the detector has anchors, or prepare larger images"
        )


def looks_report(run: Run) -> None:
    """Says how often the final detector sees each labelled image: more counts for more than synthetic images.

    Source: decision 0124.
    """
    s, labelled = run.settings, run.dataset.count("train_labelled")
    synthetic = round(s.synthetic_fraction * s.detector_batch)
    alone, beside = (s.final_steps * n / labelled for n in (s.detector_batch, s.detector_batch - synthetic))
    print(
        f"final_detector: {s.final_steps} steps show it each of {labelled} labelled images "
        f"{alone:.3g} times, {beside:.3g} beside synthetic images"
    )


if __name__ == "__main__":
    door.run(Train, main, terminated=EXIT_INTERRUPTED)
