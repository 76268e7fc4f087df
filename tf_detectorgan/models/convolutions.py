"""Convolutions that equal Keras's and are faster: neighbouring pixels become channels (decision 0077).

phases x phases output pixels are computed as one pixel with phases^2 times the channels, and
`tf.nn.depth_to_space` rearranges them. Letters: N images, H, W, C channels, F filters, k the kernels' side.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

# [phase, row of the kernel that is used, row of the 3 x 3 kernel], and so for columns: three rows of doubled
# pixels are two pixels, the first of them twice or the second.
DOUBLED = np.array([[[1, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1]]], np.float32)


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class DoublingConv2D(keras.layers.Conv2D):
    """`UpSampling2D(2)` and a `Conv2D(filters, 3, padding="same")`: [N, H, W, C] to [N, 2H, 2W, F].

    A 3 x 3 window over doubled pixels has only 2 x 2 different ones. So one 2 x 2 kernel per phase gives the
    same result with 4 / 9 of the arithmetic, without the doubled image. The weights are those of the
    `Conv2D`. H and W must be known.
    """

    def __init__(self, filters: int, **kwargs):
        super().__init__(filters, **{**kwargs, "kernel_size": 3, "padding": "same"})

    def convolution_op(self, inputs, kernel):
        _, height, width, _ = inputs.shape
        border = [[0, 0], [1, 1], [1, 1], [0, 0]]
        phases = tf.nn.conv2d(inputs, _by_phases(kernel, DOUBLED), 1, border)  # [N, H + 1, W + 1, 4F]
        # The grid has a row or column too many at each edge. Not an index, whose derivative is slow on CPUs.
        return tf.slice(
            tf.nn.depth_to_space(phases, 2), [0, 1, 1, 0], [-1, 2 * height, 2 * width, self.filters]
        )

    def compute_output_shape(self, input_shape):
        n, h, w, _ = input_shape
        return n, 2 * h, 2 * w, self.filters


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class NarrowConv2D(keras.layers.Conv2D):
    """A `Conv2D` without padding and stride for few filters: [N, H, W, C] to [N, H - k + 1, W - k + 1, F].

    One to three output channels do not fill a CPU's vector units. Wider kernels that step over 4 (or 2)
    pixels compute 16 (or 4F) channels at once: more arithmetic in less time. The sides of the output must be
    known and divisible by 4 (or 2).

    Raises:
      ValueError: a side is not.
    """

    def convolution_op(self, inputs, kernel):
        count, side = 4 if self.filters == 1 else 2, kernel.shape[0]
        _, height, width, _ = self.compute_output_shape(inputs.shape)
        if height % count or width % count:
            raise ValueError(f"{self.name}: an output of {height}x{width} is not divisible by {count}")
        shifted = np.stack([np.eye(side + count - 1, side, -phase) for phase in range(count)])
        phases = tf.nn.conv2d(inputs, _by_phases(kernel, shifted), count, "VALID")
        return tf.nn.depth_to_space(phases, count)


def _by_phases(kernel, of_phase: np.ndarray):
    """[q, q, C, phases^2 F] of a kernel [k, k, C, F] and what each phase takes of it, [phases, q, k]."""
    phases, side, _ = of_phase.shape
    kernel = tf.convert_to_tensor(kernel)
    taken = tf.constant(of_phase, kernel.dtype)
    channels, filters = kernel.shape[2:]
    by_phases = tf.einsum("apk,bql,klcf->pqcabf", taken, taken, kernel)
    return tf.reshape(by_phases, [side, side, channels, phases**2 * filters])
