"""The networks of the joint step as in `train`, and batches of noise with boxes."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import numpy as np
import tensorflow as tf

from tf_detectorgan.batch import Batch, Insertion, Labelled
from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.training import build
from tf_detectorgan.training.joint_step import JointModels
from tf_detectorgan.training.settings import Train

CLASSES = ("object",)


def prepare(threads: int) -> None:
    """Sets the threads per op, and deterministic ops as in `train`. Call it before TensorFlow runs any op."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.experimental.enable_op_determinism()


def settings(detector: str, batch: int, filters: int, **changes: Any) -> Train:
    """Returns the defaults of `train` with low learning rates, so that the weights hardly change."""
    common: dict[str, Any] = {
        "detector": detector,
        "gan_batch": batch,
        "generator_filters": filters,
        "discriminator_filters": filters,
        "gan_learning_rate": 1e-6,
    }
    return Train(**(common | changes))


def wide(image_shape: tuple[int, int, int], classes: int) -> retinanet.RetinaNet:
    """retinanet_small at twice its width: four times its weights. --detector=joint_models:wide."""
    return retinanet.small(image_shape, classes, width=64)


def joint_models(s: Train, size: int) -> JointModels:
    """Returns CycleGAN and DET with its optimizer for grey images of `size` pixels."""
    dataset: Any = types.SimpleNamespace(image_shape=(size, size, 1), class_names=CLASSES)
    here = tf.distribute.get_strategy()
    DET = build.detector(s, dataset, here)
    return JointModels(build.cyclegan(s, dataset, here), DET, build.joint_detector_optimizer(s, DET, here))


def without_detector(p: JointModels) -> JointModels:
    return dataclasses.replace(p, DET=None, detector_optimizer=None)


def batch(size: int, count: int, later: int = 0, seed: int = 0) -> Batch:
    """Returns `count` images per stream, with a box of at least 1/8 of the side, and `later` of y_later."""
    rng = np.random.default_rng(seed)

    def images():
        return tf.constant(rng.uniform(-1, 1, (count, size, size, 1)), tf.float32)

    def labelled():
        corner = rng.integers(2, size // 2, (count, 1, 2))
        extent = rng.integers(size // 8, size // 4, (count, 1, 2))
        boxes = tf.constant(np.concatenate([corner, corner + extent], -1), tf.float32)
        return Labelled(images(), boxes, tf.zeros([count, 1], tf.int32))

    y, where = labelled(), labelled()
    whole = tf.constant([[0.0, 0.0, size, size]] * count)
    insertion = Insertion(where.boxes[:, 0], where.labels[:, 0], where.images, whole)
    draws = tuple(labelled() for _ in range(later))
    return Batch(images(), insertion, y, whole, y.boxes[:, 0], images(), labelled(), draws)
