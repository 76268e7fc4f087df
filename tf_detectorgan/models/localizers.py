"""Networks that say where an object is, trained mostly on whether there is one: Tables 2 and 3's baselines.

Both see an image as P x P cells. Letters: N images, H, W, D channels of an image, F features, C classes, K
boxes, M = P * P cells in rows.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import losses
from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.layers import ExactGroupNormalization

LSE_R = 10.0  # Wang et al. 2017, section 4: the best of 0.1 to 12


class Heat(NamedTuple):
    """What a localizer says about images."""

    cells: tf.Tensor  # [N, P, P, C] in [0, 1]
    confidence: tf.Tensor  # [N, C] in [0, 1]: that `cells` shows an object at all


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class LogSumExpPooling(keras.layers.Layer):
    """Wang et al. 2017, eqn 2: [N, P, P, F] to [N, F], between the mean (r to 0) and the maximum."""

    def __init__(self, r: float = LSE_R, **kwargs):
        super().__init__(**kwargs)
        self.r = r

    def call(self, inputs):
        # reduce_logsumexp takes the maximum out first, as their eqn 3 does
        cells = tf.cast(inputs.shape[1] * inputs.shape[2], inputs.dtype)
        return (tf.reduce_logsumexp(self.r * inputs, [1, 2]) - tf.math.log(cells)) / self.r

    def get_config(self):
        return {**super().get_config(), "r": self.r}


class ClassActivation:
    """Wang et al. 2017: an image classifier whose last weights, applied to each cell, are the heat map.

    Args:
      image_shape: H, W, D.
      classes: C.
      grid: P.
      filters: of the first convolution.
    """

    thresholds = (60 / 255, 180 / 255)  # of a map of 0 to 1; section 3.2, for maps of 0 to 255

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, grid: int, filters: int):
        inputs = keras.Input(image_shape)
        features = _features(inputs, grid, filters)
        self._predict = keras.layers.Dense(classes)
        logits = self._predict(LogSumExpPooling()(features))
        self.network = keras.Model(inputs, {"logits": logits, "features": features})

    def loss(self, labelled: Labelled, present):
        """[N] by `present` [N, C] alone; boxes are not looked at."""
        return losses.weighted_cross_entropy(self.network(labelled.images)["logits"], present)

    def heat(self, images) -> Heat:
        """The class activation maps, each stretched to 0 to 1; the confidence is the classifier's."""
        out = self.network(images)
        maps = tf.einsum("npqf,fc->npqc", out["features"], self._predict.kernel)
        low, high = (extreme(maps, [1, 2], keepdims=True) for extreme in (tf.reduce_min, tf.reduce_max))
        return Heat(tf.math.divide_no_nan(maps - low, high - low), tf.sigmoid(out["logits"]))


class PatchGrid:
    """Li et al. 2018: each of P x P patches says whether it holds the object. Arguments as above."""

    thresholds = (0.5,)

    def __init__(self, image_shape: tuple[int, int, int], classes: int, *, grid: int, filters: int):
        inputs = keras.Input(image_shape)
        x = _features(inputs, grid, filters)
        p = keras.layers.Conv2D(classes, 1, activation="sigmoid")(x)
        self.network = keras.Model(inputs, p)
        self._cells = cells(image_shape, grid)

    def loss(self, labelled: Labelled, present):
        """[N] by the boxes where an image has some of a class, else by `present` [N, C]."""
        p = self.network(labelled.images)
        p = tf.reshape(p, [-1, self._cells.shape[0], p.shape[-1]])
        return losses.multiple_instance(p, inside(labelled, self._cells, p.shape[-1]), present)

    def heat(self, images) -> Heat:
        """The patches' probabilities, which need no other confidence."""
        p = self.network(images)
        return Heat(p, tf.ones_like(p[:, 0, 0]))


METHODS: dict[str, type[ClassActivation] | type[PatchGrid]] = {"cam": ClassActivation, "patches": PatchGrid}


def cells(image_shape: tuple[int, int, int], grid: int):
    """The boxes [M, 4] of the cells, row by row."""
    height, width, _ = image_shape
    row, column = np.divmod(np.arange(grid * grid), grid)
    size = np.array([width / grid, height / grid], np.float32)
    corners = np.stack([column, row], -1).astype(np.float32) * size
    return boxes_lib.from_xywh(np.concatenate([corners, np.broadcast_to(size, corners.shape)], -1))


def inside(labelled: Labelled, cell_boxes, classes: int):
    """[N, M, C], 1 where a cell [M, 4] and a box of the class overlap, be it by a part of the cell."""
    overlaps = tf.cast(boxes_lib.intersection(labelled.boxes, cell_boxes) > 0, tf.float32)  # [N, K, M]
    own = tf.one_hot(labelled.labels, classes)  # all 0 for padding, -1
    return tf.reduce_max(overlaps[..., None] * own[:, :, None], 1)


def _features(x, grid: int, filters: int):
    """[N, P, P, F]: halved while that leaves P cells a side or more, then resized as Li et al. do."""
    x = _convolution(x, filters, 1)
    while x.shape[1] // 2 >= grid:
        filters = min(2 * filters, 128)
        x = _convolution(x, filters, 2)
    x = _convolution(x, filters, 1)
    return keras.layers.Resizing(grid, grid)(x) if x.shape[1:3] != (grid, grid) else x


def _convolution(x, filters: int, strides: int):
    x = keras.layers.Conv2D(filters, 3, strides, "same", use_bias=False)(x)
    return keras.layers.ReLU()(ExactGroupNormalization(groups=4)(x))
