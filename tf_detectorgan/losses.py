"""Every loss of the paper, one function each, of tensors only.

Letters: N images, A anchors or points, C classes, H, W, D channels of an image. Each function
returns one value an image, [N], so that the caller divides by the batch of *all* replicas.
"""

from __future__ import annotations

import tensorflow as tf

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0  # Lin et al. 2017, table 1
BACKGROUND, IGNORED = -1, -2


def positive(classes, dtype=tf.float32):
    """1 where `classes` [N, A] int32 is a class, else 0: [N, A] of `dtype`."""
    # As floats: GPUs compare int32 on the host.
    return tf.cast(tf.cast(classes, tf.float32) >= 0, dtype)


def focal(logits, classes):
    """Focal loss (Lin et al. 2017, eqn 5), summed over anchors and classes.

    Args:
      logits: [N, A, C].
      classes: [N, A] int32 class of each anchor, BACKGROUND or IGNORED.
    """
    target = tf.one_hot(classes, logits.shape[-1], dtype=logits.dtype)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    p = tf.sigmoid(logits)
    miss = target * (1 - p) + (1 - target) * p  # 1 - p_t
    alpha = target * FOCAL_ALPHA + (1 - target) * (1 - FOCAL_ALPHA)
    counted = tf.cast(tf.cast(classes, tf.float32) != IGNORED, logits.dtype)[..., None]
    return tf.reduce_sum(counted * alpha * miss**FOCAL_GAMMA * cross_entropy, [1, 2])


def smooth_l1(predicted, target, classes):
    """Smooth L1 (Girshick 2015, eqn 3) of offsets [N, A, 4] summed over positive anchors, classes [N, A]."""
    error = tf.abs(predicted - target)
    loss = tf.where(error < 1.0, 0.5 * error * error, error - 0.5)
    return tf.reduce_sum(positive(classes, loss.dtype) * tf.reduce_sum(loss, -1), -1)


def giou(predicted, target, classes):
    """1 - GIoU (Rezatofighi et al. 2019) of boxes around one point, summed over places with a class.

    Args:
      predicted, target: [N, A, 4] distances from the point to the left, top, right and bottom side, above 0.
      classes: [N, A] int32.
    """
    shared, around = _area(tf.minimum(predicted, target)), _area(tf.maximum(predicted, target))
    union = _area(predicted) + _area(target) - shared
    loss = 1.0 - shared / union + (around - union) / around
    return tf.reduce_sum(positive(classes, loss.dtype) * loss, -1)


def _area(distances):
    """Area [N, A] of boxes by their sides' distances [N, A, 4] (left, top, right, bottom) from a point."""
    left, top, right, bottom = tf.unstack(distances, axis=-1)
    return (left + right) * (top + bottom)


def centerness(logits, target, classes):
    """Cross-entropy of centre-ness (Tian et al. 2019, 3.2) [N, A], summed over places with a class [N, A]."""
    loss = tf.nn.sigmoid_cross_entropy_with_logits(labels=target, logits=logits)
    return tf.reduce_sum(positive(classes, loss.dtype) * loss, -1)


def adversarial_real(logits, kind: str):
    """What a discriminator pays for logits [N, h, w, 1] of real images. kind: log (Eqn 4), lsgan."""
    return _per_image({"log": lambda: tf.nn.softplus(-logits), "lsgan": lambda: (logits - 1.0) ** 2}[kind]())


def adversarial_fake(logits, kind: str):
    """What a discriminator pays for logits [N, h, w, 1] of generated images."""
    return _per_image({"log": lambda: tf.nn.softplus(logits), "lsgan": lambda: logits**2}[kind]())


def adversarial_generator(logits, kind: str):
    """What the generator pays for logits [N, h, w, 1] of its images; for "log" the non-saturating form."""
    return adversarial_real(logits, kind)


def l1(a, b):
    """Mean absolute difference of images [N, H, W, D]: cycle consistency and identity."""
    return _per_image(tf.abs(a - b))


def bbox_loss(synthetic, exemplars, mask):
    """BboxLoss: mean absolute difference of images [N, H, W, D] weighted by mask [N, H, W, 1], the box."""
    difference = tf.reduce_mean(tf.abs(synthetic - exemplars), -1, keepdims=True)
    return tf.math.divide_no_nan(tf.reduce_sum(mask * difference, [1, 2, 3]), tf.reduce_sum(mask, [1, 2, 3]))


def _per_image(loss):
    return tf.reduce_mean(loss, [1, 2, 3])
