r"""Trains a weakly supervised localizer and writes what it finds: baselines for Tables 2 and 3.

python -m tf_detectorgan.localize --data_dir=data/mine --method=cam --run_dir=runs/cam
python -m tf_detectorgan.evaluate --data_dir=data/mine --predictions=runs/cam/test.json \
  --prediction_pixels=prepared --image_ids=id

cam (Wang et al. 2017) learns from labelled, unboxed and clean images without looking at a box; patches (Li et
al. 2018) uses the boxes that there are. Small networks, trained from scratch; resumable. The file is COCO's
results list in pixels of the prepared images: regions, and the boxes around them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import keras
import tensorflow as tf

from tf_detectorgan import checkpoints, config, door
from tf_detectorgan import evaluation as ev
from tf_detectorgan.config import option
from tf_detectorgan.data import pipeline, records
from tf_detectorgan.data.augmentation import Augmentation
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.regions import localize_split
from tf_detectorgan.models.localizers import METHODS
from tf_detectorgan.training import run_directory, summaries
from tf_detectorgan.training.loop import Every, StopSignal, run_phase


@dataclass(frozen=True)
class Localize:
    """Options of `python -m tf_detectorgan.localize`."""

    data_dir: str = option("data/phantom", "A data set made by tf_detectorgan.prepare.")
    method: str = option("cam", "Class activation maps, or patches with boxes.", choices=tuple(METHODS))
    run_dir: str = option("", "Where all of it goes; the same command goes on there. Empty: runs/<method>.")
    split: str = option("test", "Images to look at, of any after training.", choices=("test", "validation"))
    grid: int = option(16, "Cells a side that an image is seen as.", low=2)
    filters: int = option(16, "Of the first convolution; doubled with each halving, up to 128.", low=4)
    steps: int = option(1000, "Training steps.", low=1)
    batch_size: int = option(16, "Images a step, half of them clean.", low=2)
    learning_rate: float = option(1e-3, "Of Adam.", low=0.0)
    seed: int = option(0, "Of the first weights, the order of images and their augmentation.", low=0)


EVERY = Every(log=25, checkpoint=100, inspect=100)


def main(options: Localize) -> None:
    """Trains, looks at every image of the split, writes the file."""
    dataset = records.open_dataset(options.data_dir)
    check(options, dataset)
    path = Path(options.run_dir or f"runs/{options.method}").expanduser()
    run_directory.same_settings(path / "config.json", options, {"run_dir", "split"})
    run_directory.same_data(path / "data_card.json", dataset)
    checkpoints.write_text(path / "config.json", config.to_json(options) + "\n")
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(options.seed)
    model = METHODS[options.method](
        dataset.image_shape, len(dataset.class_names), grid=options.grid, filters=options.filters
    )
    train(model, options, dataset, path)
    found = localize_split(
        tf.function(model.heat), model.thresholds, dataset, options.split, options.batch_size
    )
    out = path / f"{options.split}.json"
    ev.write_json(out, ev.to_coco_results(found))
    print(
        f"{options.method}: {sum(len(f.labels) for f in found)} regions in {len(found)} images of the "
        f"{options.split} split, in {out}; score them by\n  python -m tf_detectorgan.evaluate "
        f"--data_dir={options.data_dir} --split={options.split} --predictions={out} "
        "--prediction_pixels=prepared --image_ids=id"
    )


def check(options: Localize, dataset: records.Dataset) -> None:
    """Everything that can be known before training.

    Raises:
      InputError: --grid or --filters does not fit, or there is nothing to look at.
    """
    if options.grid > min(dataset.image_shape[:2]):
        raise InputError(
            f"--grid={options.grid}: the images have {dataset.image_shape[0]} pixels a side only"
        )
    if options.filters % 4:
        raise InputError(
            f"--filters={options.filters}: must be divisible by 4, the groups of a normalisation"
        )
    if not any(dataset.count(f"{options.split}_{stream}") for stream in ("labelled", "clean")):
        raise InputError(f"{dataset.directory} has no {options.split} split")


def train(model, options: Localize, dataset: records.Dataset, path: Path) -> None:
    """Adam on the model's mean loss over each batch."""
    optimizer = keras.optimizers.Adam(options.learning_rate)
    variables = model.network.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(labelled, present):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.loss(labelled, present))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    def batches(start_step: int):
        return iter(
            pipeline.presence_batches(
                dataset,
                batch_size=options.batch_size,
                seed=options.seed,
                start_step=start_step,
                steps=options.steps,
                augment=Augmentation(),
            )
        )

    run_phase(
        "localizer",
        directory=path / "localizer",
        parts={"network": model.network, "optimizer": optimizer},
        steps=options.steps,
        step=lambda batch, _: {"loss": step(*batch)},
        batches=batches,
        scalars=summaries.Writer(path / "tensorboard", "localizer").scalars,
        every=EVERY,
        stop=StopSignal().install(),
    )


if __name__ == "__main__":
    door.run(Localize, main)
