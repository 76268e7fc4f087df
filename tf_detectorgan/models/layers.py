"""Layers that Keras lacks, or whose second derivative is wrong in Keras; and the dtypes of layers.

Letters: N images, H, W, C channels, G groups.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf


@contextlib.contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Layers that are made in this context have Keras's dtype policy `name`, for example "mixed_bfloat16"."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def weights_dtype() -> str:
    """Returns the dtype of new layers' weights; a network's last layers compute in it under every policy.

    bfloat16's 8 bits are too few for a logit or a pixel: losses, boxes and images are float32.
    """
    return keras.config.dtype_policy().variable_dtype


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ExactGroupNormalization(keras.layers.Layer):
    """Group normalisation (Wu & He 2018) whose derivatives of first and second order are exact.

    Keras's normalisation layers use `tf.nn.moments`, which stops the gradient at the mean. That is right for
    a first derivative, but silently wrong for Eqn 3, which differentiates a gradient. Here both derivatives
    are written out (`_normalized`). The layer computes in the weights' dtype under every dtype policy.

    Args:
      groups: G, divides C; -1 for one channel a group (instance normalisation).
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
        """Normalises inputs [N, H, W, C] per image and group to mean 0, variance 1; applies gamma, beta."""
        x = tf.cast(inputs, self.variable_dtype)
        size = 1 if self.groups == -1 else x.shape[-1] // self.groups
        return tf.cast(_normalized(x, size, self.epsilon) * self.gamma + self.beta, inputs.dtype)


def _normalized(x, size: int, epsilon: float):
    """Returns x^ = r (x - mean) [N, H, W, C], r = (variance + epsilon)^-1/2 per image and `size` channels.

    With the projection P(v) = v - mean(v) - x^ mean(x^ v), the gradient along u is r P(u). P is self-adjoint,
    so of the product of that gradient with w the derivative to u is r P(w), and the one to x is
    -r^2 (x^ mean(w P(u)) + mean(x^ u) P(w) + mean(x^ w) P(u)). Written out, they have half
    the ops of the derivatives that TensorFlow computes (decision 0135).
    """
    pixels, by_group = tf.constant([1, 2]), tf.constant([-1, size])
    by_channel = tf.constant([-1, 1, 1, x.shape[-1]])
    # A product: `tf.repeat` is 30 nodes of a graph (decision 0048).
    sharing = tf.fill([size, size], tf.constant(1 / size, x.dtype))

    def mean(v):
        """[N, 1, 1, C]. Pixels first, then a group's channels: reducing both at once is slow on CPUs."""
        if size == 1:
            return tf.reduce_mean(v, pixels, keepdims=True)
        shared = tf.matmul(tf.reshape(tf.reduce_mean(v, pixels), by_group), sharing)
        return tf.reshape(shared, by_channel)

    def P(v, x_hat):
        along = mean(x_hat * v)
        return v - mean(v) - x_hat * along, along

    # Values of an outer function are passed as arguments: TensorFlow searches the graph of a custom gradient
    # for variables, from its results back to its arguments.
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
    """Returns a gradient that raises: otherwise a part of a higher derivative would be missing silently."""

    def refuse(*_):
        raise RuntimeError(f"{layer} has no {order} derivative")

    return refuse


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class ReflectionPadding(keras.layers.Layer):
    """Mirrors `size` pixels at each edge: [N, H, W, C] to [N, H + 2 size, W + 2 size, C]."""

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = size

    def call(self, inputs):
        border = [self.size, self.size]
        return tf.pad(inputs, [[0, 0], border, border, [0, 0]], mode="REFLECT")


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class Doubling(keras.layers.Layer):
    """Repeats each pixel 2 x 2 times: [N, H, W, C] to [N, 2H, 2W, C], H, W and C known.

    It equals Keras's `UpSampling2D(2)`, whose second derivative tiles tensors of rank 8, which costs Eqn 3
    on CPUs as much as several convolutions (decision 0077). Here every derivative is a copy or a sum of two.
    """

    def call(self, inputs):
        height, width, channels = inputs.shape[1:]
        rows = tf.concat([inputs, inputs], -1)  # a pixel's copy follows it
        rows = tf.reshape(rows, [-1, height, 2 * width * channels])
        return tf.reshape(tf.concat([rows, rows], -1), [-1, 2 * height, 2 * width, channels])


@keras.saving.register_keras_serializable(package="tf_detectorgan")
class InstanceNormalization(ExactGroupNormalization):
    """Instance normalisation by TensorFlow's fused batch normalisation of each image alone.

    The forward and the backward pass are one op each; `ExactGroupNormalization` has 10 and 25. It is two to
    five times as fast on CPUs from 64 pixels on, and one kernel each on GPUs (decision 0135). It has no
    second derivative, which generators and discriminators do not need.
    """

    def __init__(self, epsilon: float = 1e-5, **kwargs):
        super().__init__(groups=-1, epsilon=epsilon, **kwargs)

    def call(self, inputs):
        """Normalises inputs [N, H, W, C] per image and channel to mean 0, variance 1; applies gamma, beta."""
        if self.variable_dtype != "float32":  # the fused op has statistics of no other dtype
            return super().call(inputs)
        normal = _normalized_alone(tf.cast(inputs, tf.float32), self.gamma, self.beta, self.epsilon)
        return tf.cast(normal, inputs.dtype)


def _normalized_alone(x, gamma, beta, epsilon: float):
    """Normalises each image of x [N, H, W, C] alone by the fused op: images become channels."""
    count, height, width, channels = tf.unstack(tf.shape(x)) if None in x.shape[:3] else x.shape
    options = {"epsilon": epsilon, "is_training": True}

    def as_channels(v):
        return tf.reshape(tf.transpose(v, [1, 2, 0, 3]), [1, height, width, count * channels])

    def as_images(v):
        return tf.transpose(tf.reshape(v, [height, width, count, channels]), [2, 0, 1, 3])

    def of_each(v):
        return tf.tile(v, [count])

    @tf.custom_gradient
    def forward(x, gamma, beta):
        mixed, scale = as_channels(x), of_each(gamma)
        y, *_, mean, variance, workspace = tf.raw_ops.FusedBatchNormV3(
            x=mixed, scale=scale, offset=of_each(beta), mean=[], variance=[], **options
        )
        return as_images(y), lambda upstream: gradient(upstream, mixed, scale, mean, variance, workspace)

    @tf.custom_gradient
    def gradient(upstream, mixed, scale, mean, variance, workspace):  # its arguments: as in `_normalized`
        d = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=as_channels(upstream), x=mixed, scale=scale, reserve_space_1=mean,
            reserve_space_2=variance, reserve_space_3=workspace, **options,
        )  # fmt: skip
        weights = (tf.reduce_sum(tf.reshape(v, [-1, channels]), 0) for v in d[1:3])
        return (as_images(d.x_backprop), *weights), _refuse_derivative("InstanceNormalization", "second")

    return forward(x, tf.convert_to_tensor(gamma), tf.convert_to_tensor(beta))
