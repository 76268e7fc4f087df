"""Faster equivalents of two Keras convolutions, by sub-pixel convolution (decision 0077).

A block of phases x phases output pixels is computed as one pixel with phases^2 times as many channels, which
`tf.nn.depth_to_space` rearranges. Letters: N images, H, W, C channels, F filters, k the kernels' side.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

# [phase, row of the 2 x 2 kernel, row of the 3 x 3 kernel], and the same for columns. Three rows of doubled
# pixels are two input rows: either the first or the second occurs twice.
DOUBLED = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class DoublingConv2D(keras.layers.Conv2D):
    """`UpSampling2D(2)` followed by `Conv2D(filters, 3, padding="same")`: [N, H, W, C] to [N, 2H, 2W, F].

    A 3 x 3 window over doubled pixels contains 2 x 2 different ones. Therefore one 2 x 2 kernel per phase
    gives the same result with 4 / 9 of the arithmetic. The weights are the `Conv2D`'s. H and W must be known.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(filters, **{**kwargs, "kernel_size": 3, "padding": "same"})

    def convolution_op(self, inputs, kernel):
        _, height, width, _ = inputs.shape
        border = [[0, 0], [1, 1], [1, 1], [0, 0]]
        phases = tf.nn.conv2d(inputs, _by_phases(kernel, DOUBLED), 1, border)  # [N, H + 1, W + 1, 4F]
        # The grid has one extra row or column at each edge. Slicing by index has a slow derivative on CPUs.
        return tf.slice(
            tf.nn.depth_to_space(phases, 2), [0, 1, 1, 0], [-1, 2 * height, 2 * width, self.filters]
        )

    def compute_output_shape(self, input_shape):
        n, h, w, _ = input_shape
        return n, 2 * h, 2 * w, self.filters


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class NarrowConv2D(keras.layers.Conv2D):
    """A `Conv2D` without padding and stride for few filters: [N, H, W, C] to [N, H - k + 1, W - k + 1, F].

    One to three output channels use vector units badly. Therefore wider kernels with stride 4 (or 2) compute
    16 (or 4F) channels at once: more arithmetic in less time. Sides of the output must be known and divisible
    by 4 (or 2).

    Raises:
      ValueError: they are not divisible.
    """

    def convolution_op(self, inputs, kernel):
        count, side = 4 if self.filters == 1 else 2, kernel.shape[0]
        _, height, width, _ = self.compute_output_shape(inputs.shape)
        if height % count or width % count:
            raise ValueError(f"{self.name}: output sides {height}x{width} must be divisible by {count}")
        shifted = np.stack([np.eye(side + count - 1, side, -phase) for phase in range(count)])
        phases = tf.nn.conv2d(inputs, _by_phases(kernel, shifted), count, "VALID")
        return tf.nn.depth_to_space(phases, count)


def _by_phases(kernel, rows: np.ndarray):
    """Returns [q, q, C, phases^2 F] of a kernel [k, k, C, F] and each phase's map of rows, [phases, q, k]."""
    phases, side, _ = rows.shape
    kernel = tf.convert_to_tensor(kernel)
    rows = tf.constant(rows, kernel.dtype)
    channels, filters = kernel.shape[2:]
    by_phases = tf.einsum("apk,bql,klcf->pqcabf", rows, rows, kernel)
    return tf.reshape(by_phases, [side, side, channels, phases**2 * filters])
