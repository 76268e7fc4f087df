"""Checks of the settings against the data, printed before the first step."""

from __future__ import annotations

import tensorflow as tf

from tf_detectorgan.data.object_residuals import object_residuals
from tf_detectorgan.training import build
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS

MIN_COVERAGE = 0.95
MIN_SIGNAL = 0.4
ON_CPUS = {
    "mixed_bfloat16": "bfloat16 is faster than float32 only with AVX512_BF16, otherwise far slower",
    "mixed_float16": "float16 is far slower than float32",
}


def check(run: Run) -> None:
    """Prints all checks, with warnings.

    Raises:
      InputError: as `residual_report`.
    """
    if run.settings.precision in ON_CPUS and not build.gpus():
        print(f"warning: --precision={run.settings.precision}: on CPUs {ON_CPUS[run.settings.precision]}")
    coverage_report(run)
    exposure_report(run)
    residual_report(run)


def coverage_report(run: Run) -> None:
    """Prints the fraction of training boxes that the detector covers; warns if it is low."""
    decoded = run.dataset.serialized("train_labelled").map(run.dataset.decode)
    boxes = tf.concat([record.boxes for record in decoded], 0)
    covered, rule = run.DET.coverage(boxes)
    share = float(covered.mean())
    print(f"detector: {share:.0%} of {len(covered)} training boxes {rule}")
    if share < MIN_COVERAGE:
        print(
            f"warning: below {MIN_COVERAGE:.0%}. The others are learnt slowly or not at all: set "
            "--anchor_sizes and --anchor_ratios if the detector has anchors, or prepare larger images"
        )


def exposure_report(run: Run) -> None:
    """Prints the epochs of the final detector over the labelled images.

    They have a larger effect on AP than synthetic images have (docs/experiments/tiles.md).
    """
    s, labelled = run.settings, run.dataset.count("train_labelled")
    synthetic = round(s.synthetic_fraction * s.detector_batch)
    epochs = s.final_detector_steps / labelled
    alone, mixed = (epochs * n for n in (s.detector_batch, s.detector_batch - synthetic))
    print(
        f"final_detector: {s.final_detector_steps} steps are {alone:.3g} epochs over {labelled} labelled "
        f"images, {mixed:.3g} in arms with synthetic images in each batch"
    )


def residual_report(run: Run) -> None:
    """Prints the share of signal in the object residuals, if an arm uses them; warns if it is low.

    Raises:
      InputError: the data set has no clean images, or no labelled objects.
    """
    arms = [ARMS[name] for name in run.settings.arm]
    if not any(build.placement(run.settings, arm.images, arm.gan).residual for arm in arms):
        return
    for name, share in zip(run.dataset.class_names, object_residuals(run.dataset).signal_share, strict=True):
        print(f"object residuals: {share:.0%} of the variance of the residuals of {name} is signal")
        if share < MIN_SIGNAL:
            print(
                f"warning: below {MIN_SIGNAL:.0%}. The background of these objects cannot be predicted from "
                "their surroundings, often because the boxes are large; use --object_source=crop"
            )
