"""Checks of a run's settings against its data and networks, before any step: of `train` and of the child."""

from __future__ import annotations

from tf_detectorgan.data.object_layers import object_layers
from tf_detectorgan.errors import InputError
from tf_detectorgan.training import build, second_order
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS

WANTED_SIGNAL = 0.4


def layer_report(run: Run) -> None:
    """Prints for arms that use it how well objects stand out from their predicted backgrounds.

    Raises:
      InputError: the data set has no clean images, or no labelled objects.
    """
    if not any(build.placement(run.settings, ARMS[arm]).layer for arm in run.settings.arm):
        return
    for name, share in zip(run.dataset.class_names, object_layers(run.dataset).signal, strict=True):
        print(f"object layers: {share:.0%} of what is left of a {name} without its background is no error")
        if share < WANTED_SIGNAL:
            print(
                f"warning: below {WANTED_SIGNAL:.0%}. What is behind this class cannot be predicted from "
                "around its boxes, often because they are large; --exemplar=image cuts objects out instead"
            )


def refuse_kinks(run: Run) -> None:
    """Refuses --unroll=finite_difference for a detector whose gradients jump, where it is far off.

    Raises:
      InputError: naming some of the ops whose derivative jumps; --force_finite_difference lets them be.
    """
    s = run.settings
    looks_ahead = any(ARMS[arm].real_sign for arm in s.arm)
    if not looks_ahead or s.unroll != "finite_difference" or s.force_finite_difference:
        return
    if kinks := second_order.kinks(run.detector, run.dataset.image_shape):
        raise InputError(
            f"--unroll=finite_difference: derivatives of {len(kinks)} ops of --detector={s.detector} jump "
            f"({', '.join(kinks[:3])}, ...); use --unroll=exact, or --force_finite_difference to see how far "
            "off it is"
        )
