"""Scores the final detectors of a run: python -m tf_detectorgan.evaluate --run_dir=runs/demo --split=test.

`--data_dir` scores them on another data set made by `prepare`, with the same classes and image size: another
hospital's images, say. Written per arm: metrics and detections, with the truth, so that every number can be
computed again.

`--predictions=results.json --data_dir=data/mine` scores another framework's detections in the images of a
data set made by `prepare`, in COCO's results format, [{"image_id", "category_id", "bbox": [x, y, width,
height], "score"}, ...]. `image_id` is the id in the annotation file that the set was made of, or the file's
name. A number that may be either, of different images, is an error unless --image_ids is given. Only the box
is scored; a "segmentation" is not read.
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
    arm: tuple[str, ...] = option((), "Arms to score; empty: all finished ones.", choices=tuple(ARMS))
    split: str = option("test", "Images to score on.", choices=("test", "validation"))
    data_dir: str = option(
        "", "Another prepared data set, or the present directory of the run's own; empty: the run's."
    )
    predictions: str = option("", "Score this file, COCO's results list, in place of a run's detectors.")
    prediction_pixels: str = option(
        "original",
        "Unit of the boxes: pixels of the original image files, or of the prepared images.",
        PIXELS,
    )
    prediction_categories: str = option(
        "",
        "COCO file with the names of its category_id; empty: 1, 2, ... in the order of the data set's "
        "classes.",
    )
    image_ids: str = option(
        "auto",
        "Meaning of whole numbers in its image_id. id: the data set's, from its COCO file if it was made of "
        "one. name: file names (Ultralytics writes 14 for 000014.png). auto: the meaning that fits all of "
        "them; a result's file_name takes precedence.",
        IMAGE_IDS,
    )
    primary_iou: float = option(
        0.1,
        "IoU from which on FROC counts one of --predictions as correct; a run has its own.",
        choices=SINGLE,
    )


def main(options: Evaluate) -> None:
    """Scores the arms, or --predictions, and prints a table."""
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
    """Scores --predictions, prints the numbers and writes them next to that file."""
    if options.arm:
        raise InputError(f"--arm={','.join(options.arm)}: not with --predictions; leave one of them out")
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
        + (f", numbers in image_id read as {NUMBERS[image_ids]}" if image_ids else "")
    )
    print(evaluation_table({path.stem: metrics}))
    if ignored:
        print(f"{ignored} detections of images of other splits left out")
    print(f"{path}: metrics in {out}")


def finished_arms(run: Run, wanted: tuple[str, ...]) -> list[str]:
    """Returns `wanted`, or all arms with a finished final detector if it is empty.

    Raises:
      InputError: there is no such arm, or one in `wanted` is not finished.
    """
    finished = [arm for arm in ARMS if checkpoints.finished(run.layout.arm(arm).final_detector)]
    missing = [arm for arm in wanted if arm not in finished]
    if missing or not finished:
        raise InputError(
            f"{run.layout.path}: no final detector of {', '.join(missing) or 'any arm'} "
            f"(finished: {', '.join(finished) or 'none'}); run tf_detectorgan.train with this --arm first"
        )
    return list(wanted) or finished


if __name__ == "__main__":
    command.run(Evaluate, main)
