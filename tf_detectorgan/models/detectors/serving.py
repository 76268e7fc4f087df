"""A detector as one Keras model from stored pixels to boxes, for use outside of this project."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan.models import detectors


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ServedDetector(keras.Model):
    """Maps images [N, H, W, C], unsigned integers, to a dictionary of the best D detections.

    boxes [N, D, 4] float32 as in `boxes.py`; scores [N, D] float32, best first; classes [N, D] int32, index
    into the class names; num_detections [N] int32. Entries beyond num_detections are 0, with class -1.

    Args:
      detector: its name in DETECTORS, or package.module:function.
      image_shape: (H, W, C).
      classes: number of classes.
      bit_depth: of the images, 8 or 16.
      options: further arguments of `detectors.build`.
    """

    def __init__(self, detector: str, image_shape, classes: int, bit_depth: int, options: dict, **kwargs):
        super().__init__(**kwargs)
        self._arguments = {
            "detector": detector,
            "image_shape": list(image_shape),
            "classes": classes,
            "bit_depth": bit_depth,
            "options": {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        }
        self._image_shape = tuple(image_shape)
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        self._detector = detectors.build(detector, self._image_shape, classes, **given)
        self.network = self._detector.network  # tracked: its weights are the model's
        self._top = 2**bit_depth - 1
        self.built = True

    @property
    def signature(self) -> tf.TensorSpec:
        """Returns the specification of the model's input, for any number of images."""
        kind = tf.uint8 if self._top == 255 else tf.uint16
        return tf.TensorSpec([None, *self._image_shape], kind, name="images")

    def call(self, images) -> dict[str, tf.Tensor]:
        # As `data.records.to_float`, so that the range is that of the training images.
        found = self._detector.detect(tf.cast(images, tf.float32) * (2.0 / self._top) - 1.0)
        return {
            "boxes": found.boxes,
            "scores": found.scores,
            "classes": found.labels,
            "num_detections": tf.reduce_sum(tf.cast(found.labels >= 0, tf.int32), axis=1),
        }

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), **self._arguments}
