"""Layers that Keras lacks, or that have wrong second derivatives in Keras; and dtype policies.

Letters: N images, H, W, C channels, G groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Sets Keras's dtype policy `name`, such as "mixed_bfloat16", for layers that are made in the context."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def weights_dtype() -> str:
    """Returns the current policy's dtype of weights, in which the last layers of networks compute.

    bfloat16 has only 8 significant bits, too few for logits and pixels: losses, boxes and images are float32.
    """
    return keras.config.dtype_policy().variable_dtype


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ExactGroupNormalization(keras.layers.Layer):
    """Group normalisation (Wu & He 2018) whose derivatives of first and second order are exact.

    Keras's normalisation layers use `tf.nn.moments`, which stops the gradient at the mean. The first
    derivative is correct, but the second, which Eqn 3 needs, is silently wrong. Here both derivatives are
    explicit (`_normalized`). The layer computes in the weights' dtype, also under a mixed-precision policy.

    Args:
      groups: G, divides C; -1: one channel per group (instance normalisation).
      epsilon: added to the variance.
    """

    def __init__(self, groups: int = 8, epsilon: float = 1e-5, **kwargs):
        super().__init__(**kwargs)
        self.groups = groups
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1]
        if self.groups != -1 and channels % self.groups:
            raise ValueError(f"groups={self.groups} does not divide {channels} channels")
        self.gamma = self.add_weight(shape=(channels,), initializer="ones", name="gamma", autocast=False)
        self.beta = self.add_weight(shape=(channels,), initializer="zeros", name="beta", autocast=False)

    def call(self, inputs):
        """Maps [N, H, W, C] to the same shape; each (image, group) has mean 0, variance 1 before gamma."""
        x = tf.cast(inputs, self.variable_dtype)
        size = 1 if self.groups == -1 else x.shape[-1] // self.groups
        return tf.cast(_normalized(x, size, self.epsilon) * self.gamma + self.beta, inputs.dtype)


def _normalized(x, size: int, epsilon: float):
    """Returns x^ = r (x - mean) [N, H, W, C], r = (variance + epsilon)^-1/2 per image and `size` channels.

    With the projection P(v) = v - mean(v) - x^ mean(x^ v), the gradient for upstream gradient u is r P(u). P
    is self-adjoint. Hence the product of that gradient with w has the derivative r P(w) with respect to u,
    and -r^2 (x^ mean(w P(u)) + mean(x^ u) P(w) + mean(x^ w) P(u)) with respect to x. These formulas need half
    as many ops as TensorFlow's automatic derivatives (decision 0135).
    """
    pixels, by_group = tf.constant([1, 2]), tf.constant([-1, size])
    by_channel = tf.constant([-1, 1, 1, x.shape[-1]])
    # A matrix product, because `tf.repeat` adds 30 nodes to the graph (decision 0048).
    sharing = tf.fill([size, size], tf.constant(1 / size, x.dtype))

    def mean(v):
        """Returns [N, 1, 1, C]. Reducing pixels first, then channels, is faster on CPUs than both at once."""
        if size == 1:
            return tf.reduce_mean(v, pixels, keepdims=True)
        shared = tf.matmul(tf.reshape(tf.reduce_mean(v, pixels), by_group), sharing)
        return tf.reshape(shared, by_channel)

    def P(v, x_hat):
        along = mean(x_hat * v)
        return v - mean(v) - x_hat * along, along

    # Values of an earlier function are passed as arguments, because TensorFlow searches the graph of a custom
    # gradient for variables, from its results back to its arguments.
    @tf.custom_gradient
    def forward(x):
        deviation = x - mean(x)
        r = tf.math.rsqrt(mean(deviation * deviation) + epsilon)
        x_hat = deviation * r
        return x_hat, lambda u: gradient(x, u, x_hat, r)

    @tf.custom_gradient
    def gradient(x, u, x_hat, r):
        P_u, along_u = P(u, x_hat)
        return r * P_u, lambda w: (*derivatives(w, x_hat, r, P_u, along_u), None, None)

    @tf.custom_gradient
    def derivatives(w, x_hat, r, P_u, along_u):
        P_w, along_w = P(w, x_hat)
        to_x = -r * r * (x_hat * mean(w * P_u) + along_u * P_w + along_w * P_u)
        return (to_x, r * P_w), _refuse_derivative("ExactGroupNormalization", "third")

    return forward(x)


def _refuse_derivative(layer: str, order: str) -> Callable:
    """Returns a gradient function that raises, because the next derivative would silently lack a part."""

    def refuse(*_):
        raise RuntimeError(f"{layer} has no {order} derivative")

    return refuse


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ReflectionPadding(keras.layers.Layer):
    """Pads by mirroring `size` pixels at each edge: [N, H, W, C] to [N, H + 2 size, W + 2 size, C]."""

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        border = [self.size, self.size]
        return tf.pad(inputs, [[0, 0], border, border, [0, 0]], mode="REFLECT")


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class Doubling(keras.layers.Layer):
    """Nearest-neighbour upsampling by 2: [N, H, W, C] to [N, 2H, 2W, C]; H, W and C must be known.

    The second derivative of Keras's `UpSampling2D(2)` tiles tensors of rank 8, which takes as long on CPUs in
    Eqn 3 as several convolutions (decision 0077). Here every derivative is a copy or a sum of two values.
    """

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        rows = tf.concat([inputs, inputs], -1)  # each pixel's copy follows it
        rows = tf.reshape(rows, [-1, height, 2 * width * channels])
        return tf.reshape(tf.concat([rows, rows], -1), [-1, 2 * height, 2 * width, channels])


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class InstanceNormalization(ExactGroupNormalization):
    """Instance normalisation by TensorFlow's fused batch normalisation of each image separately.

    Forward and backward pass are one op each, instead of 10 and 25 ops in `ExactGroupNormalization`: 2 to 5
    times as fast on CPUs from 64 pixels on, and one kernel each on GPUs (decision 0135). It has no second
    derivative, so it is only for generators and discriminators, which are differentiated once.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(groups=-1, epsilon=epsilon, **kwargs)

    def call(self, inputs):
        """Maps [N, H, W, C] to the same shape; each (image, channel) has mean 0, variance 1 before gamma."""
        if self.variable_dtype != "float32":  # the fused op's statistics are always float32
            return super().call(inputs)
        normalized = _fused(tf.cast(inputs, tf.float32), self.gamma, self.beta, self.epsilon)
        return tf.cast(normalized, inputs.dtype)


def _fused(x, gamma, beta, epsilon: float):
    """Returns instance normalisation of x [N, H, W, C] by fused batch normalisation of N C channels."""
    count, height, width, channels = tf.unstack(tf.shape(x)) if None in x.shape[:3] else x.shape
    options = {"epsilon": epsilon, "is_training": True}

    def as_channels(v):
        return tf.reshape(tf.transpose(v, [1, 2, 0, 3]), [1, height, width, count * channels])

    def as_images(v):
        return tf.transpose(tf.reshape(v, [height, width, count, channels]), [2, 0, 1, 3])

    def for_each(v):
        return tf.tile(v, [count])

    @tf.custom_gradient
    def forward(x, gamma, beta):
        channelled, scale = as_channels(x), for_each(gamma)
        y, *_, mean, variance, workspace = tf.raw_ops.FusedBatchNormV3(
            x=channelled, scale=scale, offset=for_each(beta), mean=[], variance=[], **options
        )
        return as_images(y), lambda upstream: gradient(upstream, channelled, scale, mean, variance, workspace)

    @tf.custom_gradient
    def gradient(upstream, channelled, scale, mean, variance, workspace):  # arguments: as in `_normalized`
        d = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=as_channels(upstream), x=channelled, scale=scale, reserve_space_1=mean,
            reserve_space_2=variance, reserve_space_3=workspace, **options,
        )  # fmt: skip
        weights = (tf.reduce_sum(tf.reshape(v, [-1, channels]), 0) for v in d[1:3])
        return (as_images(d.x_backprop), *weights), _refuse_derivative("InstanceNormalization", "second")

    return forward(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
