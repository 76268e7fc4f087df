"""Losses by hand arithmetic. ln 2 = 0.6931, ln 3 = 1.0986, ln 4 = 1.3863."""

import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import losses

LN2, LN3, LN4 = np.log(2), np.log(3), np.log(4)


def test_focal_at_logit_0():
    """Logit 0: p = 1/2, cross-entropy ln 2, (1 - p)^2 = 1/4; alpha 1/4 for the class, 3/4 for others."""
    logits = tf.zeros([1, 1, 2])
    own, other = 0.25 * 0.25 * LN2, 0.75 * 0.25 * LN2
    np.testing.assert_allclose(losses.focal(logits, tf.constant([[1]])), [own + other], rtol=1e-6)
    np.testing.assert_allclose(
        losses.focal(logits, tf.constant([[losses.BACKGROUND]])), [2 * other], rtol=1e-6
    )


def test_focal_weights_easy_anchors_less():
    """Logit ln 3: p = 3/4. Correct: 1/4 (1/4)^2 ln(4/3). Wrong: 3/4 (3/4)^2 ln 4, 130 times as large."""
    logits = tf.fill([1, 1, 1], float(LN3))
    right, wrong = 0.25 / 16 * (LN4 - LN3), 0.75 * 9 / 16 * LN4
    np.testing.assert_allclose(losses.focal(logits, tf.constant([[0]])), [right], rtol=1e-5)
    np.testing.assert_allclose(losses.focal(logits, tf.constant([[losses.BACKGROUND]])), [wrong], rtol=1e-5)


def test_focal_excludes_ignored_anchors_and_sums_per_image():
    classes = tf.constant([[0, losses.IGNORED], [losses.IGNORED, losses.IGNORED]])
    logits = tf.Variable([[[0.0], [9.0]], [[5.0], [-5.0]]])
    with tf.GradientTape() as tape:
        loss = losses.focal(logits, classes)
    np.testing.assert_allclose(loss, [0.0625 * LN2, 0], rtol=1e-6)
    gradient = tape.gradient(loss, logits).numpy().ravel()
    assert gradient[0] < 0
    np.testing.assert_array_equal(gradient[1:], [0, 0, 0])


def test_focal_and_its_gradient_are_finite_at_extreme_logits():
    """A wrong logit of 200 has loss alpha * 200; the formula with log(p) would give infinity."""
    logits = tf.Variable([[[-200.0]], [[200.0]]])
    classes = tf.constant([[0], [losses.BACKGROUND]])
    with tf.GradientTape() as tape:
        loss = losses.focal(logits, classes)
    np.testing.assert_allclose(loss, [0.25 * 200, 0.75 * 200], rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(loss, logits).numpy().ravel(), [-0.25, 0.75], rtol=1e-6)


def test_focal_equals_keras_cv():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (3, 40, 2)).astype(np.float32)
    classes = rng.integers(-1, 2, (3, 40))
    one_hot = (classes[..., None] == np.arange(2)).astype(np.float32)
    theirs = keras_cv.losses.FocalLoss(
        alpha=losses.FOCAL_ALPHA, gamma=losses.FOCAL_GAMMA, from_logits=True, reduction="none"
    )(one_hot, logits)
    np.testing.assert_allclose(
        losses.focal(logits, tf.constant(classes)), tf.reduce_sum(theirs, 1), rtol=1e-5
    )


def test_smooth_l1_by_hand():
    """Errors 0.5, 1, 3, 0: 0.125 + 0.5 + 2.5 + 0. Only positive anchors have a loss."""
    predicted = tf.constant([[[0.5, 2.0, -3.0, 7.0], [100.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]]])
    target = tf.constant([[[0.0, 1.0, 0.0, 7.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    classes = tf.constant([[0, losses.BACKGROUND, losses.IGNORED]])
    np.testing.assert_allclose(losses.smooth_l1(predicted, target, classes), [3.125])


def test_smooth_l1_equals_keras_cv():
    """KerasCV's loss is the mean over the four offsets."""
    rng = np.random.default_rng(0)
    predicted, target = (rng.normal(0, 2, (2, 30, 4)).astype(np.float32) for _ in range(2))
    classes = rng.integers(-2, 3, (2, 30))
    theirs = 4 * keras_cv.losses.SmoothL1Loss(l1_cutoff=1.0, reduction="none")(target, predicted).numpy()
    expected = np.where(classes >= 0, theirs, 0).sum(1)
    np.testing.assert_allclose(losses.smooth_l1(predicted, target, tf.constant(classes)), expected, rtol=1e-5)


# Two images with constant logits: ln 3, which is p(real) = 3/4, and 0, which is 1/2.
LOGITS = tf.constant([[[[LN3]] * 2] * 2, [[[0.0]] * 2] * 2], tf.float32)


@pytest.mark.parametrize(
    "kind,real,fake,generator",
    [
        # -log p, -log(1 - p); non-saturating: the generator's loss is -log p, not log(1 - p)
        ("log", [LN4 - LN3, LN2], [LN4, LN2], [LN4 - LN3, LN2]),
        ("lsgan", [(LN3 - 1) ** 2, 1], [LN3**2, 0], [(LN3 - 1) ** 2, 1]),
    ],
)
def test_adversarial_by_hand(kind, real, fake, generator):
    np.testing.assert_allclose(losses.adversarial_real(LOGITS, kind), real, rtol=1e-5)
    np.testing.assert_allclose(losses.adversarial_fake(LOGITS, kind), fake, rtol=1e-5)
    np.testing.assert_allclose(losses.adversarial_generator(LOGITS, kind), generator, rtol=1e-5)


def test_log_loss_equals_equation_4():
    """E[log D(real)] + E[log(1 - D(fake))], which discriminators maximise."""
    logits = tf.constant(np.random.default_rng(0).normal(0, 2, (1, 5, 5, 1)), tf.float32)
    D = tf.sigmoid(logits)
    np.testing.assert_allclose(
        losses.adversarial_real(logits, "log")[0], -tf.reduce_mean(tf.math.log(D)), rtol=1e-5
    )
    np.testing.assert_allclose(
        losses.adversarial_fake(logits, "log")[0], -tf.reduce_mean(tf.math.log(1 - D)), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["log", "lsgan"])
def test_adversarial_gradient_signs(kind):
    """Discriminators increase logits of real images and decrease others; the generator increases its own."""

    def slope(loss):
        logits = tf.fill([1, 2, 2, 1], 0.5)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits, kind)
        return float(tf.reduce_sum(tape.gradient(value, logits)))

    assert slope(losses.adversarial_real) < 0
    assert slope(losses.adversarial_generator) < 0
    assert slope(losses.adversarial_fake) > 0


def test_unknown_adversarial_loss_raises():
    with pytest.raises(KeyError):
        losses.adversarial_real(LOGITS, "wgan")


def test_l1_is_the_mean_per_image():
    a = tf.constant([[[[0.0, 1.0]], [[2.0, 3.0]]], [[[0.0, 0.0]], [[0.0, 0.0]]]])
    b = tf.constant([[[[0.0, -1.0]], [[5.0, 3.0]]], [[[0.0, 0.0]], [[0.0, -1.0]]]])
    np.testing.assert_allclose(losses.l1(a, b), [(2 + 3) / 4, 1 / 4])


def test_bbox_loss_depends_only_on_the_box():
    """Two of four pixels in the box: differences 0.2 and 0.4; 9 outside. With an empty mask the loss is 0."""
    synthetic = tf.Variable(tf.reshape([0.2, 9.0, 0.4, 9.0] * 2, [2, 2, 2, 1]))
    exemplars = tf.zeros([2, 2, 2, 1])
    mask = tf.reshape([1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [2, 2, 2, 1])
    with tf.GradientTape() as tape:
        loss = losses.bbox_loss(synthetic, exemplars, mask)
    np.testing.assert_allclose(loss, [0.3, 0.0], rtol=1e-6)
    gradient = tape.gradient(loss, synthetic).numpy().ravel()
    np.testing.assert_allclose(gradient, [0.5, 0, 0.5, 0, 0, 0, 0, 0])


def test_bbox_loss_is_the_mean_over_channels():
    synthetic = tf.constant([[[[0.3, 0.6, 0.0]]]])
    np.testing.assert_allclose(
        losses.bbox_loss(synthetic, tf.zeros([1, 1, 1, 3]), tf.ones([1, 1, 1, 1])), [0.3]
    )
