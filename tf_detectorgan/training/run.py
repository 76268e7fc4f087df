"""One run: its settings, data, devices, and the networks and steps that phases share, each traced once."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_detectorgan import checkpoints
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import build, prefetch, summaries
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import ALONE, SQUARED, Objective, Players, joint_step
from tf_detectorgan.training.loop import Every, StopSignal, skip_finished
from tf_detectorgan.training.loss_scale import LossScale
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


@dataclasses.dataclass
class Run:
    """One run directory, and what its phases share: data, devices, and networks that are traced once."""

    settings: Train
    dataset: Dataset
    stop: StopSignal
    workers: Workers = dataclasses.field(default_factory=Workers)
    elsewhere: str = ""  # names a data set that is not the one the run was trained on
    initial_weights: list[np.ndarray] = dataclasses.field(init=False, default_factory=list)
    functions: dict[str, Callable] = dataclasses.field(init=False, default_factory=dict)  # of phases that ran
    _players: dict[str, Players] = dataclasses.field(init=False, default_factory=dict)
    _gan_steps: dict[str, Callable] = dataclasses.field(init=False, default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.settings.run_dir)

    def arm_path(self, arm: str) -> Path:
        return self.path / "arms" / arm

    def evaluation_path(self, arm: str) -> Path:
        """Where the arm's metrics go; other data than the run's own have a folder of their own."""
        return self.arm_path(arm) / "evaluation" / self.elsewhere

    @functools.cached_property
    def strategy(self) -> tf.distribute.Strategy:
        return build.strategy(self.settings, self.workers.strategy)

    def players(self, kind: str) -> Players:
        """The base GAN of a kind of settings.GANS, without a detector; each is built once."""
        if kind not in self._players:
            gan = build.gan(self.settings, kind, self.dataset, self.strategy)
            self._players[kind] = Players(gan, loss_scale=build.loss_scale(self.settings, self.strategy))
        return self._players[kind]

    @functools.cached_property
    def detector(self) -> Detector:
        """The one detector network: every phase that uses it first loads or resets its weights."""
        DET = build.detector(self.settings, self.dataset, self.strategy)
        self.initial_weights = [w.numpy() for w in DET.weights]
        return DET

    def reset_detector(self, optimizer) -> None:
        """Gives the detector its first weights and its optimizer zeros: nobody starts from another's."""
        weights = self.detector.weights  # builds it, and remembers its first weights, when nobody has yet
        for w, value in zip(weights, self.initial_weights, strict=True):
            w.assign(value)
        for variable in optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        if self.loss_scale is not None:
            self.loss_scale.reset()

    @functools.cached_property
    def loss_scale(self) -> LossScale | None:
        """Of detectors that are trained alone."""
        return build.loss_scale(self.settings, self.strategy)

    @functools.cached_property
    def detect(self) -> Callable:
        """`Detector.detect` as a graph, for batches of any size."""
        return tf.function(self.detector.detect, autograph=False, reduce_retracing=True)

    def gan_step(self, kind: str) -> Callable:
        """The joint step of a base GAN without a detector."""
        if kind not in self._gan_steps:
            self._gan_steps[kind] = joint_function(self, self.players(kind), ALONE)
        return self._gan_steps[kind]

    @functools.cached_property
    def alone(self) -> dict[int, tuple[Any, Callable]]:
        """Optimizer and step of a detector trained alone, by number of steps, each traced once."""
        s = self.settings
        optimizers = {
            steps: build.alone_detector_optimizer(s, self.detector, steps, self.strategy)
            for steps in {s.pretrain_detector_steps, s.final_steps}
        }
        return {steps: (one, detector_function(self, one)) for steps, one in optimizers.items()}

    @functools.cached_property
    def every(self) -> Every:
        s = self.settings
        return Every(s.log_every, s.checkpoint_every, math.gcd(s.image_every, s.validate_every))

    def writer(self, arm: str, phase: str) -> summaries.Writer:
        return summaries.Writer(self.path / "tensorboard" / arm, phase)

    def skips(self, name: str, directory: Path) -> bool:
        """`skip_finished` as the chief sees it, on all workers."""
        return bool(self.workers.of_chief(lambda: skip_finished(name, directory)))

    def load(self, directory: Path, parts: dict[str, Any]) -> None:
        """`parts` of a finished phase, read by the chief, on all workers."""
        self.workers.of_chief(lambda: checkpoints.load(directory, parts))
        self.workers.spread(parts)

    def distributed(self, batches: tf.data.Dataset) -> Iterator:
        """The batches in their order, each replica's part on its device where that is a GPU."""
        if self.workers.strategy:
            return self.workers.rows(batches)
        replicas = self.strategy.num_replicas_in_sync
        gpu = prefetch.target([d.name for d in tf.config.list_logical_devices("GPU")], replicas)
        if gpu:
            return prefetch.ahead(batches, gpu)
        return iter(batches if replicas == 1 else self.strategy.experimental_distribute_dataset(batches))


def joint_function(run: Run, players: Players, objective: Objective) -> Callable:
    """`joint_step` as one graph over all replicas; squared norms become norms after they are summed."""

    @tf.function(autograph=False)
    def function(batch: Batch, seed):
        shares = run.strategy.run(joint_step, args=(players, objective, batch, seed))
        values = {k: run.strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}
        rates = {
            "learning_rate/generators": players.gan.generator_optimizer.learning_rate,
            "learning_rate/discriminators": players.gan.discriminator_optimizer.learning_rate,
        }
        if players.detector_optimizer is not None:
            rates["learning_rate/DET"] = players.detector_optimizer.learning_rate
        norms = {
            k.replace(SQUARED, "gradient_at_x_syn/"): tf.sqrt(v)
            for k, v in values.items()
            if k.startswith(SQUARED)
        }
        losses = {k: v for k, v in values.items() if not k.startswith(SQUARED)}
        rates |= players.loss_scale.scalars() if players.loss_scale else {}
        return losses | norms | {k: tf.convert_to_tensor(v) for k, v in rates.items()}

    return function


def detector_function(run: Run, optimizer) -> Callable:
    """`detector_step` as one graph over all replicas."""

    @tf.function(autograph=False)
    def function(labelled: Labelled):
        shares = run.strategy.run(
            detector_step, args=(run.detector, optimizer, labelled, run.settings.clipnorm, run.loss_scale)
        )
        values = {k: run.strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}
        values |= run.loss_scale.scalars() if run.loss_scale else {}
        return values | {"learning_rate": tf.convert_to_tensor(optimizer.learning_rate)}

    return function
