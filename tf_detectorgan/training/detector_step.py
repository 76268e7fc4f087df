"""One ordinary training step of a detector on labelled images, real or synthetic."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import replicas, update_rules

CLIP_NORM = 10.0  # largest norm of a detector's gradient


def detector_step(
    DET: Detector, optimizer: keras.optimizers.Optimizer, labelled: Labelled, clipnorm: float = CLIP_NORM
) -> dict[str, tf.Tensor]:
    """Trains DET for one step on L_d with gradients clipped by global norm; returns shares of scalars."""
    targets = DET.targets(labelled)
    normalizer = tf.maximum(replicas.total(DET.positives(targets)), 1.0)
    variables = DET.network.trainable_variables
    with tf.GradientTape() as tape:
        L_d = DET.loss(DET.weights, labelled.images, targets, normalizer)
    gradients = tape.gradient(L_d, variables)
    replicas.require_gradients(gradients, [v.path for v in variables], "L_d")
    gradients, norm = tf.clip_by_global_norm(replicas.total(gradients), clipnorm)
    update_rules.apply(optimizer, gradients)
    return {"L_d": L_d, "gradient_norm": norm / replicas.count()}
