"""The losses of the paper, one function each, as functions of tensors.

Letters: N images, A anchors or points, C classes, H, W, D channels of an image. Each function returns
one value per image, [N]; the caller divides by the number of images of *all* replicas.
"""

from __future__ import annotations

import tensorflow as tf

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017, table 1
BACKGROUND, IGNORED = -1, -2


def positive(classes, dtype=tf.float32):
    """Returns [N, A] of `dtype`: 1 where `classes` [N, A] int32 is a class, otherwise 0."""
    # Compared as floats, because TensorFlow compares int32 on the host.
    return tf.cast(tf.cast(classes, tf.float32) >= 0, dtype)


def focal(logits, classes):
    """Returns the focal loss (Lin et al. 2017, eqn 5), summed over anchors and classes.

    Args:
      logits: [N, A, C].
      classes: [N, A] int32 class of each anchor, BACKGROUND or IGNORED.
    """
    target = tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    p = tf.sigmoid(logits)
    one_minus_p_t = target * (1 - p) + (1 - target) * p
    alpha = target * FOCAL_ALPHA + (1 - target) * (1 - FOCAL_ALPHA)
    counted = tf.cast(tf.cast(classes, tf.float32) != IGNORED, logits.dtype)[..., None]
    return tf.reduce_sum(counted * alpha * one_minus_p_t**FOCAL_GAMMA * cross_entropy, [1, 2])


def smooth_l1(predicted, target, classes):
    """Returns smooth L1 (Girshick 2015, eqn 3) of offsets [N, A, 4], summed over positive classes [N, A]."""
    error = tf.abs(predicted - target)
    loss = tf.where(error < 1.0, 0.5 * error * error, error - 0.5)
    return tf.reduce_sum(positive(classes, loss.dtype) * tf.reduce_sum(loss, -1), -1)


def giou(predicted, target, classes):
    """Returns 1 - GIoU (Rezatofighi et al. 2019) of boxes around points, summed over points with a class.

    Args:
      predicted, target: [N, A, 4] distances from the point to the left, top, right and bottom side, > 0.
      classes: [N, A] int32.
    """
    intersection, enclosing = _area(tf.minimum(predicted, target)), _area(tf.maximum(predicted, target))
    union = _area(predicted) + _area(target) - intersection
    loss = 1.0 - intersection / union + (enclosing - union) / enclosing
    return tf.reduce_sum(positive(classes, loss.dtype) * loss, -1)


def _area(distances):
    """Returns the areas [N, A] of boxes whose left, top, right and bottom distances are [N, A, 4]."""
    left, top, right, bottom = tf.unstack(distances, axis=-1)
    return (left + right) * (top + bottom)


def centerness(logits, target, classes):
    """Returns the centre-ness loss (Tian et al. 2019, 3.2) of [N, A], summed over points with a class."""
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    return tf.reduce_sum(positive(classes, loss.dtype) * loss, -1)


def adversarial_real(logits, kind: str):
    """Returns a discriminator's loss on logits [N, h, w, 1] of real images. kind: log (Eqn 4) or lsgan."""
    return _per_image({"log": lambda: tf.nn.softplus(-logits), "lsgan": lambda: (logits - 1.0) ** 2}[kind]())


def adversarial_fake(logits, kind: str):
    """Returns a discriminator's loss on logits [N, h, w, 1] of generated images."""
    return _per_image({"log": lambda: tf.nn.softplus(logits), "lsgan": lambda: logits**2}[kind]())


def adversarial_generator(logits, kind: str):
    """Returns the generator's loss on logits [N, h, w, 1] of its images; for "log" it is non-saturating."""
    return adversarial_real(logits, kind)


def l1(a, b):
    """Returns the mean absolute difference of images [N, H, W, D], for the cycle and identity losses."""
    return _per_image(tf.abs(a - b))


def bbox_loss(synthetic, exemplars, mask):
    """Returns BboxLoss: mean absolute difference of images [N, H, W, D], weighted by mask [N, H, W, 1]."""
    difference = tf.reduce_mean(tf.abs(synthetic - exemplars), -1, keepdims=True)
    return tf.math.divide_no_nan(tf.reduce_sum(mask * difference, [1, 2, 3]), tf.reduce_sum(mask, [1, 2, 3]))


def _per_image(loss):
    return tf.reduce_mean(loss, [1, 2, 3])
