"""A run's settings, data, devices and DET, and the training steps as graphs over all replicas."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import checkpoints
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training import build, prefetch
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import GAN_ONLY, SQUARED, JointModels, Objective, joint_step
from tf_detectorgan.training.loop import Every, StopSignal
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


@dataclasses.dataclass
class Run:
    """The state that the phases of a run share.

    Attributes:
      DET: the only detector network (decision 0050). Every phase that uses it loads or resets its weights.
      first_weights: DET's initial weights.
      detect: `DET.detect` as a graph, for batches of any size.
      evaluation_set: the name of the data set if it is not the run's training data set, otherwise "".
      functions: the graph functions of the phases that ran, by their directories' names.
    """

    settings: Train
    dataset: Dataset
    stop: StopSignal
    workers: Workers
    evaluation_set: str
    strategy: tf.distribute.Strategy
    DET: Detector
    first_weights: list[np.ndarray]
    detect: Callable
    functions: dict[str, Callable] = dataclasses.field(default_factory=dict)

    @property
    def layout(self) -> RunLayout:
        return RunLayout(Path(self.settings.run_dir))

    @property
    def every(self) -> Every:
        s = self.settings
        return Every(s.log_every, s.checkpoint_every, math.gcd(s.checkpoint_every, s.validate_every))

    def reset_detector(self, optimizer) -> None:
        """Sets DET to its initial weights and its optimizer's variables to 0."""
        for w, value in zip(self.DET.weights, self.first_weights, strict=True):
            w.assign(value)
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))

    def load(self, directory: Path, parts: dict[str, Any]) -> None:
        """Loads `parts` of a finished phase on the chief and copies them to all workers."""
        self.workers.run_on_chief(lambda: checkpoints.load(directory, parts))
        self.workers.broadcast(parts)

    def distributed(self, batches: tf.data.Dataset) -> Iterator:
        """Returns an iterator over `batches`; each replica's part is copied to its GPU in advance, if any."""
        if self.workers.strategy:
            return self.workers.rows(batches)
        if self.strategy.num_replicas_in_sync > 1:  # prefetches to its devices (tf.distribute.InputOptions)
            return iter(self.strategy.experimental_distribute_dataset(batches))
        gpus = build.gpus()
        return prefetch.prefetch_to_device(batches, gpus[0]) if gpus else iter(batches)


def build_run(
    settings: Train, dataset: Dataset, stop: StopSignal, workers: Workers, evaluation_set: str = ""
) -> Run:
    """Returns a run with its devices chosen and DET built. All workers must call this together."""
    strategy = build.strategy(settings, workers.strategy)
    DET = build.detector(settings, dataset, strategy)
    detect = tf.function(DET.detect, autograph=False, reduce_retracing=True)
    first_weights = [w.numpy() for w in DET.weights]
    return Run(settings, dataset, stop, workers, evaluation_set, strategy, DET, first_weights, detect)


class GANTraining(NamedTuple):
    """A base GAN, the placement of its objects, and the joint step that trains it, traced once."""

    joint_models: JointModels
    placement: Placement
    step: Callable


class DetectorTraining(NamedTuple):
    """The training of DET alone: optimizer, number of steps, and the step, traced once."""

    optimizer: Any
    steps: int
    step: Callable


def build_gan_training(run: Run, kind: str) -> GANTraining:
    """Returns the training of a base GAN without a detector; `kind`: one of settings.GANS."""
    s = run.settings
    gan = build.gan(s, kind, run.dataset, run.strategy)
    joint_models = JointModels(gan, loss_scale=build.loss_scale(s, run.strategy))
    placement = build.placement(s, "generator", kind)
    return GANTraining(joint_models, placement, joint_function(run, joint_models, GAN_ONLY))


def with_detector(run: Run, gan: GANTraining, objective: Objective) -> GANTraining:
    """Returns the joint training of the same GAN and DET, with a new optimizer for DET."""
    optimizer = build.joint_detector_optimizer(run.settings, run.DET, run.strategy)
    joint_models = dataclasses.replace(gan.joint_models, DET=run.DET, detector_optimizer=optimizer)
    return GANTraining(joint_models, gan.placement, joint_function(run, joint_models, objective))


def build_detector_training(run: Run, steps: int) -> DetectorTraining:
    """Returns the training of DET alone with AdamW, whose learning rate falls to 0 within `steps`."""
    optimizer = build.alone_detector_optimizer(run.settings, run.DET, steps, run.strategy)
    return DetectorTraining(optimizer, steps, detector_function(run, optimizer))


def joint_function(run: Run, joint_models: JointModels, objective: Objective) -> Callable:
    """Returns `joint_step` as one graph over all replicas, with norms from the sums of squared norms."""

    @tf.function(autograph=False)
    def function(batch: Batch, seed):
        shares = run.strategy.run(joint_step, args=(joint_models, objective, batch, seed))
        values = {k: run.strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}
        rates = {
            "learning_rate/generators": joint_models.gan.generator_optimizer.learning_rate,
            "learning_rate/discriminators": joint_models.gan.discriminator_optimizer.learning_rate,
        }
        if joint_models.detector_optimizer is not None:
            rates["learning_rate/DET"] = joint_models.detector_optimizer.learning_rate
        norms = {
            k.replace(SQUARED, "gradient_at_x_syn/"): tf.sqrt(v)
            for k, v in values.items()
            if k.startswith(SQUARED)
        }
        losses = {k: v for k, v in values.items() if not k.startswith(SQUARED)}
        rates |= joint_models.loss_scale.scalars() if joint_models.loss_scale else {}
        return losses | norms | {k: tf.convert_to_tensor(v) for k, v in rates.items()}

    return function


def detector_function(run: Run, optimizer) -> Callable:
    """Returns `detector_step` as one graph over all replicas."""

    @tf.function(autograph=False)
    def function(labelled: Labelled):
        shares = run.strategy.run(detector_step, args=(run.DET, optimizer, labelled))
        values = {k: run.strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}
        return values | {"learning_rate": tf.convert_to_tensor(optimizer.learning_rate)}

    return function
