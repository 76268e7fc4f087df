r"""Trains a weakly supervised localizer and writes what it finds: baselines for Tables 2 and 3.

python -m tf_detectorgan.localize --data_dir=data/mine --method=cam --out=cam.json
python -m tf_detectorgan.evaluate --data_dir=data/mine --predictions=cam.json --prediction_pixels=prepared

cam (Wang et al. 2017) learns from labelled, unboxed and clean images without looking at a box; patches (Li et
al. 2018) uses the boxes that there are. Small networks, trained from scratch in one go: an interrupted
training begins again. The file is COCO's results list, boxes in pixels of the prepared images.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import keras
import tensorflow as tf
from tqdm import tqdm

from tf_detectorgan import door
from tf_detectorgan import evaluation as ev
from tf_detectorgan.config import option
from tf_detectorgan.data import pipeline, records
from tf_detectorgan.data.augmentation import Augmentation
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.regions import localize_split
from tf_detectorgan.models.localizers import METHODS


@dataclass(frozen=True)
class Localize:
    """Options of `python -m tf_detectorgan.localize`."""

    data_dir: str = option("data/phantom", "A data set made by tf_detectorgan.prepare.")
    method: str = option("cam", "Class activation maps, or patches with boxes.", choices=tuple(METHODS))
    out: str = option("", "JSON file to write; empty: <method>_<split>.json.")
    overwrite: bool = option(False, "Replace --out if it exists.")
    split: str = option("test", "Images to look at.", choices=("test", "validation"))
    grid: int = option(16, "Cells a side that an image is seen as.", low=2)
    filters: int = option(16, "Of the first convolution; doubled with each halving, up to 128.", low=4)
    steps: int = option(1000, "Training steps.", low=1)
    batch_size: int = option(16, "Images a step, half of them clean.", low=2)
    learning_rate: float = option(1e-3, "Of Adam.", low=0.0)
    seed: int = option(0, "Of the first weights, the order of images and their augmentation.", low=0)


def main(options: Localize) -> None:
    """Trains, looks at every image of the split, writes the file."""
    dataset = records.open_dataset(options.data_dir)
    out = Path(options.out or f"{options.method}_{options.split}.json").expanduser()
    check(options, dataset, out)
    keras.utils.set_random_seed(options.seed)
    model = METHODS[options.method](
        dataset.image_shape, len(dataset.class_names), grid=options.grid, filters=options.filters
    )
    batches = pipeline.presence_batches(
        dataset,
        batch_size=options.batch_size,
        seed=options.seed,
        steps=options.steps,
        augment=Augmentation(),
    )
    train(model, batches, options.steps, options.learning_rate)
    found = localize_split(
        tf.function(model.heat), model.thresholds, dataset, options.split, options.batch_size
    )
    ev.write_json(out, ev.to_coco_results(found))
    print(
        f"{options.method}: {sum(len(f.labels) for f in found)} regions in {len(found)} images of the "
        f"{options.split} split, in {out}; score them by\n  python -m tf_detectorgan.evaluate "
        f"--data_dir={options.data_dir} --split={options.split} --predictions={out} "
        "--prediction_pixels=prepared"
    )


def check(options: Localize, dataset: records.Dataset, out: Path) -> None:
    """Everything that can be known before training.

    Raises:
      InputError: --out exists, --grid or --filters does not fit, or there is nothing to look at.
    """
    if out.exists() and not options.overwrite:
        raise InputError(f"--out={out}: exists; use --overwrite to replace it")
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


def train(model, batches: tf.data.Dataset, steps: int, learning_rate: float) -> None:
    """Adam on the model's mean loss over each batch.

    Raises:
      InputError: the loss is not finite.
    """
    optimizer = keras.optimizers.Adam(learning_rate)
    variables = model.network.trainable_variables
    optimizer.build(variables)

    @tf.function
    def step(labelled, present):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model.loss(labelled, present))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    with tqdm(total=steps, desc="localizer", unit="step", dynamic_ncols=True) as bar:
        for number, batch in enumerate(batches, 1):
            loss = float(step(*batch))
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} at step {number}; lower --learning_rate")
            bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
            bar.update()


if __name__ == "__main__":
    door.run(Localize, main)
