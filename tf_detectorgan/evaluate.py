"""Scores the final detectors of a run: python -m tf_detectorgan.evaluate --run_dir=runs/demo --split=test.

`--data_dir` scores them on another data set made by `prepare`, with the same classes and image size, such as
another hospital's images. The output for each arm is metrics, detections and truth, from which all numbers
can be recomputed.

`--predictions=results.json --data_dir=data/mine` scores detections of another framework in the images of a
data set made by `prepare`. The file has COCO's results format, [{"image_id", "category_id", "bbox": [x, y,
width, height], "score"}, ...]. `image_id` is the id in the annotation file of the data set, or the file's
name; --image_ids decides if a number can be both. Boxes are scored; "segmentation" is ignored.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

from tf_detectorgan import checkpoints, command
from tf_detectorgan.config import option
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import SINGLE
from tf_detectorgan.evaluation.detect import truth_of_split
from tf_detectorgan.evaluation.metrics import evaluate as score
from tf_detectorgan.evaluation.predictions import IMAGE_IDS, PIXELS, read_predictions
from tf_detectorgan.evaluation.records import write_json
from tf_detectorgan.experiments.evaluation_table import evaluation_table
from tf_detectorgan.training import phases, run_directory
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS

NUMBERS = {"id": "ids", "name": "file names"}


@dataclass(frozen=True)
class Evaluate:
    """Options of `python -m tf_detectorgan.evaluate`."""

    run_dir: str = option("runs/phantom", "A run of tf_detectorgan.train.")
    arm: tuple[str, ...] = option((), "Arms to score; empty: all finished arms.", choices=tuple(ARMS))
    split: str = option("test", "Split to score.", choices=("test", "validation"))
    data_dir: str = option(
        "", "Another prepared data set, or the new location of the run's; empty: the run's."
    )
    predictions: str = option("", "Score this file in COCO's results format instead of a run's detectors.")
    prediction_pixels: str = option(
        "original", "Whether its boxes are in pixels of the image files or of the prepared images.", PIXELS
    )
    prediction_categories: str = option(
        "",
        "COCO file with the name of each category_id; empty: they are 1, 2, ... in the order of the data "
        "set's classes.",
    )
    image_ids: str = option(
        "auto",
        "Interpretation of an integer image_id. id: the data set's id (that of its COCO file, if any). name: "
        "a file name (Ultralytics writes 14 for 000014.png). auto: the result's file_name if any, otherwise "
        "the interpretation that fits all integers.",
        IMAGE_IDS,
    )
    primary_iou: float = option(
        0.1, "IoU at which FROC counts a prediction as correct, with --predictions only.", choices=SINGLE
    )


def main(options: Evaluate) -> None:
    """Scores the arms or --predictions, and prints the metrics as a table."""
    if options.predictions:
        return score_predictions(options)
    run = run_directory.reopen(options.run_dir, options.data_dir)
    arms = finished_arms(run, options.arm)
    if not any(run.dataset.count(f"{options.split}_{stream}") for stream in ("labelled", "clean")):
        raise InputError(f"{run.dataset.directory} has no {options.split} split")
    metrics = {arm: phases.evaluate(run, arm, options.split) for arm in arms}
    print(f"{options.split} split of {run.dataset.directory}")
    print(evaluation_table(metrics))
    for arm in arms:
        print(f"{arm}: metrics and detections in {run.layout.arm(arm).evaluation(run.evaluation_set)}")


def score_predictions(options: Evaluate) -> None:
    """Scores --predictions, prints the metrics and writes them to that file's directory."""
    if options.arm:
        raise InputError(f"--arm={','.join(options.arm)}: not with --predictions; omit one of these flags")
    if options.data_dir:
        dataset = records.open_dataset(options.data_dir)
    else:
        dataset = run_directory.reopen(options.run_dir).dataset
    path = Path(options.predictions).expanduser()
    found, ignored, image_ids = read_predictions(
        path,
        dataset,
        options.split,
        pixels=options.prediction_pixels,
        categories=options.prediction_categories,
        image_ids=options.image_ids,
    )
    metrics = score(
        truth_of_split(dataset, options.split), found, dataset.class_names, primary_iou=options.primary_iou
    )
    out = path.with_suffix(f".{options.split}_metrics.json")
    write_json(out, metrics)
    print(
        f"{options.split} split of {dataset.directory}, boxes in pixels of the "
        f"{options.prediction_pixels} images"
        + (f", integers in image_id read as {NUMBERS[image_ids]}" if image_ids else "")
    )
    print(evaluation_table({path.stem: metrics}))
    if ignored:
        print(f"{ignored} detections in images of other splits ignored")
    print(f"{path}: metrics in {out}")


def finished_arms(run: Run, arms: tuple[str, ...]) -> list[str]:
    """Returns `arms`, or all arms with a final detector if it is empty.

    Raises:
      InputError: there are none, or one of `arms` has no final detector.
    """
    finished = [arm for arm in ARMS if checkpoints.finished(run.layout.arm(arm).final_detector)]
    missing = [arm for arm in arms if arm not in finished]
    if missing or not finished:
        raise InputError(
            f"{run.layout.path}: no final detector of {', '.join(missing) or 'any arm'} "
            f"(finished: {', '.join(finished) or 'none'}); run tf_detectorgan.train with this --arm first"
        )
    return list(arms) or finished


if __name__ == "__main__":
    command.run(Evaluate, main)
