"""Writes an arm's final detector for use outside of this project, as a Keras file and as a SavedModel.

python -m tf_detectorgan.export_detector --run_dir=runs/demo --arm=detectorgan --out=exported

The output is detector.keras (for keras.saving.load_model, after `import
tf_detectorgan.models.detectors.serving`), saved_model/1 (TensorFlow Serving's layout; does not need this
package) and detector.json, a description of input and output.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import keras

from tf_detectorgan import checkpoints, command, disk
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.models.detectors.serving import ServedDetector
from tf_detectorgan.training import run_directory
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS


@dataclass(frozen=True)
class Export:
    """Options of `python -m tf_detectorgan.export_detector`."""

    run_dir: str = option("runs/phantom", "A run of tf_detectorgan.train.")
    arm: str = option("detectorgan", "The arm whose final detector is exported.", choices=tuple(ARMS))
    out: str = option("", "Directory to write; empty: arms/<arm>/exported in the run.")
    overwrite: bool = option(False, "Replace --out if it contains an exported detector.")
    data_dir: str = option("", "New location of the run's data set; empty: unchanged.")


def main(options: Export) -> None:
    """Loads the detector, writes it in both formats, and prints the directory."""
    run = run_directory.reopen(options.run_dir, options.data_dir)
    arm = run.layout.arm(options.arm)
    weights = arm.final_detector
    if not checkpoints.finished(weights):
        raise InputError(
            f"{run.layout.path}: no final detector of {options.arm}; "
            f"run tf_detectorgan.train --arm={options.arm} first"
        )
    out = Path(options.out).expanduser() if options.out else arm.path / "exported"
    command.check_target(out, "detector.json", "exported detector", options.overwrite)
    model = served(run)
    checkpoints.load(weights, {"DET": model.network})
    with disk.whole_directory(out) as partial:
        model.save(partial / "detector.keras")
        write_saved_model(model, partial / "saved_model" / "1")
        card = description(run, options.arm, checkpoints.fingerprint(weights))
        (partial / "detector.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    print(f"final detector of {options.arm} in {out}: detector.keras, saved_model/1, detector.json")


def served(run: Run) -> ServedDetector:
    """Returns the run's detector with initial weights; its input are stored pixels."""
    return ServedDetector(
        run.settings.detector,
        run.dataset.image_shape,
        len(run.dataset.class_names),
        run.dataset.bit_depth,
        run.settings.detector_options,
    )


def write_saved_model(model: ServedDetector, directory: Path) -> None:
    """Writes a SavedModel whose signature `serving_default` is the model's call."""
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", model.call, input_signature=[model.signature])
    archive.write_out(str(directory), verbose=False)


def description(run: Run, arm: str, weights: str) -> dict[str, Any]:
    """Returns the content of `detector.json`: input, output, class names, origin."""
    height, width, channels = run.dataset.image_shape
    return {
        "input": {
            "name": "images",
            "dtype": f"uint{run.dataset.bit_depth}",
            "shape": [None, height, width, channels],
            "preparation": "resize the longer side to that of the prepared images, by area averaging if it "
            f"shrinks; pad with black at the right and the bottom to {width} x {height}. The model scales "
            "the grey levels.",
        },
        "output": {
            "boxes": "[N, D, 4] float32: x0, y0, x1, y1 in pixels of the input, origin at its top left",
            "scores": "[N, D] float32 in [0, 1], best first",
            "classes": "[N, D] int32: index into class_names; -1 beyond num_detections",
            "num_detections": "[N] int32",
        },
        "class_names": list(run.dataset.class_names),
        "detector": run.settings.detector,
        "arm": arm,
        "weights": weights,
    }


if __name__ == "__main__":
    command.run(Export, main)
