"""Learning-rate schedules."""

from __future__ import annotations

import math

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ConstantThenLinear(keras.optimizers.schedules.LearningRateSchedule):
    """CycleGAN's schedule: `rate` for `constant` steps, then linearly to 0 over `decay` steps."""

    def __init__(self, rate: float, constant: int, decay: int):
        self.rate, self.constant, self.decay = rate, constant, decay

    def __call__(self, step):
        past = tf.cast(step, tf.float32) - self.constant
        return self.rate * tf.clip_by_value(1.0 - past / max(1, self.decay), 0.0, 1.0)

    def get_config(self):
        return {"rate": self.rate, "constant": self.constant, "decay": self.decay}


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class WarmUpThenCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linearly from 0 to `rate` in `warm_up` steps, then a cosine to 0 over `decay` steps.

    Equal to Keras's CosineDecay, whose condition makes the host wait for the device once per variable.
    """

    def __init__(self, rate: float, warm_up: int, decay: int):
        self.rate, self.warm_up, self.decay = rate, warm_up, decay

    def __call__(self, step):
        # Multiplied by a 1 that is not a constant: the graph optimiser would replace divisions by constants
        # with multiplications by their reciprocals, which differ from Keras in the last bit.
        one = tf.cast(step >= 0, tf.float32)
        rate, warm_up, decay = self.rate * one, self.warm_up * one, self.decay * one
        step = tf.minimum(tf.cast(step, tf.float32), warm_up + decay)
        falling = rate * (0.5 * (1.0 + tf.cos(math.pi * ((step - warm_up) / decay))))
        return tf.where(step < warm_up, rate * (step / warm_up), falling)

    def get_config(self):
        return {"rate": self.rate, "warm_up": self.warm_up, "decay": self.decay}
