"""Makes more synthetic images with a trained arm, with exact boxes.

python -m tf_detectorgan.synthesize --run_dir=runs/demo --arm=detectorgan --count=1000 --out=synthetic

Backgrounds and matched objects come from the training split. The output is a TFRecord file in the data set's
schema, PNGs with a COCO file (--export: also Pascal VOC, YOLO, NODE21), and a gallery page.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

from tf_detectorgan import checkpoints, command, run_layout
from tf_detectorgan.config import option
from tf_detectorgan.data.formats import export
from tf_detectorgan.data.placement import MODES
from tf_detectorgan.errors import InputError
from tf_detectorgan.synthesis import Screening, synthesize
from tf_detectorgan.training import build, phases, run_directory
from tf_detectorgan.training.run import Run, build_detector_training
from tf_detectorgan.training.settings import ARMS


@dataclass(frozen=True)
class Synthesize:
    """Options of `python -m tf_detectorgan.synthesize`."""

    run_dir: str = option("runs/phantom", "A run of tf_detectorgan.train.")
    arm: str = option(
        "detectorgan", "Arm of the generator.", choices=[a for a in ARMS if ARMS[a].images != "none"]
    )
    count: int = option(1000, "Number of images to make.", low=1)
    out: str = option("", "Directory to write; empty: arms/<arm>/more in the run.")
    overwrite: bool = option(False, "Replace --out if it contains synthetic images.")
    seed: int = option(
        -1, "Random seed; -1: the run's seed + 1, for images other than the run's own.", low=-1
    )
    placement: str = option("run", "As in `train`; run: as in training.", ("run", "auto", *MODES))
    residual_scale: tuple[float, ...] = option(
        (), "Range of the factor on what the generator adds: low,high; 1,1: no scaling; empty: as in the run."
    )
    objects: int = option(0, "Objects per image, fewer if they would overlap; 0: as in the run.", low=0)
    min_audit: float = option(
        0.0,
        "Leave out objects that a held-out detector scores lower than this share of the real objects, and "
        "images without other objects.",
        low=0.0,
        high=1.0,
    )
    export: tuple[str, ...] = option(
        (),
        "Additional formats of the images: voc, yolo, node21 (comma-separated), in folders of these names. "
        "COCO is always written.",
    )
    data_dir: str = option(
        "", "Another prepared data set, or the new location of the run's; empty: the run's."
    )


def main(options: Synthesize) -> None:
    """Loads the generator, writes the images, and prints their directory."""
    run = run_directory.reopen(options.run_dir, options.data_dir)
    _check_finished(run, options.arm)
    out = Path(options.out).expanduser() if options.out else run.layout.arm(options.arm).path / "more"
    if (out / run_layout.SYNTHETIC).is_file() and checkpoints.finished(out):
        raise InputError(f"--out={out}: a run was trained on these images; choose another directory")
    command.check_target(out, run_layout.SYNTHETIC, "synthetic images", options.overwrite)
    export.check(options.export, run.dataset.class_names, run.dataset.image_shape[-1])
    settings = run.settings
    if options.placement != "run":
        settings = dataclasses.replace(settings, placement=options.placement)
    if options.residual_scale:
        settings = dataclasses.replace(settings, residual_scale=options.residual_scale)
    if options.objects:
        settings = dataclasses.replace(settings, synthetic_objects=options.objects)
    arm = ARMS[options.arm]
    placement = build.placement(settings, arm.images, arm.gan)
    held_out = None
    if not run.evaluation_set:  # they were trained on the run's own objects
        training = build_detector_training(run, settings.pretrain_detector_steps)
        held_out = phases.train_held_out_detectors(run, training)
    if options.min_audit and held_out is None:
        raise InputError(
            f"--min_audit={options.min_audit}: needs a run with --crossfit_folds, and its own --data_dir"
        )
    gan = build.gan(settings, arm.gan, run.dataset, run.strategy) if arm.gan else None
    inserter = phases.inserter_of(run, options.arm, gan)._replace(placement=placement)
    kept = synthesize(
        inserter,
        run.dataset,
        out.absolute(),
        count=options.count,
        seed=settings.seed + 1 if options.seed < 0 else options.seed,
        screening=Screening(held_out, options.min_audit),
    )
    for kind in options.export:
        export.write(kind, out)
    weights = f" (weights {inserter.checkpoint})" if inserter.checkpoint else ""
    dropped = f", {options.count - kept} without an object above --min_audit" if options.min_audit else ""
    print(
        f"{kept} images of {options.arm}{weights}{dropped} in {out}: "
        + ", ".join(["synthetic.tfrecord, annotations.json (COCO) of images/, gallery.html", *options.export])
    )


def _check_finished(run: Run, arm: str) -> None:
    if ARMS[arm].images == "generator" and not checkpoints.finished(run.layout.arm(arm).joint):
        raise InputError(
            f"{run.layout.path}: the training of the generator of {arm} is not finished; "
            f"run tf_detectorgan.train --arm={arm} first"
        )


if __name__ == "__main__":
    command.run(Synthesize, main)
