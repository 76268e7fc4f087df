"""Compares the joint step with a second, plain implementation of its objective under one tape."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import losses
from tf_detectorgan.models.generators import insert, paste, reinsert, remove
from tf_detectorgan.resampling import crop
from tf_detectorgan.training import build, joint_step, unroll
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import JointModels
from tf_detectorgan.training.settings import ARMS, Train

SEED = tf.constant([0, 0])
RATE = 0.1  # of the generators' and discriminators' SGD: after a first step its momenta are -RATE * gradient
NOTHING = dict.fromkeys(("lambda_gan", "lambda_bbox", "lambda_cycle", "lambda_identity"), 0.0)


@pytest.fixture(scope="module")
def initial_models(tiny):
    """Returns a function (recipe, clipnorm) -> networks with their initial weights and momenta.

    Each recipe is built once.
    """
    built = {}

    def variables(p):
        parts = [p.gan.G_X, p.gan.G_Y, p.gan.DIS_globalX, p.gan.DIS_localX, p.gan.DIS_globalY, p.DET.network]
        optimizers = [p.gan.generator_optimizer, p.gan.discriminator_optimizer, p.detector_optimizer]
        return [v for part in parts for v in part.weights] + [v for o in optimizers for v in o.variables]

    def initial(recipe="ours", clipnorm=None):
        if recipe not in built:
            p = tiny.joint_models(recipe)
            built[recipe] = p, [v.numpy() for v in variables(p)]
        p, first = built[recipe]
        for variable, value in zip(variables(p), first, strict=True):
            variable.assign(value)
        p.detector_optimizer.global_clipnorm = clipnorm
        return p

    return initial


def without_detector(p):
    return dataclasses.replace(p, DET=None, detector_optimizer=None)


def with_weights(p, **changes):
    """Returns p with other weights of the GAN's losses."""
    objective = dataclasses.replace(p.gan.objective, **changes)
    return dataclasses.replace(p, gan=dataclasses.replace(p.gan, objective=objective))


def mean(per_image):
    return tf.reduce_mean(per_image)


def L_d(DET, W, images, labelled):
    targets = DET.targets(labelled)
    return DET.loss(W, images, targets, tf.maximum(DET.positives(targets), 1.0))


def step_of_detector(p, b, x_syn):
    """Returns W', m', L_real and L_syn: Eqn 1 and 2, and SGD with momentum."""
    DET, optimizer = p.DET, p.detector_optimizer
    W = [tf.convert_to_tensor(w) for w in DET.weights]
    where = b.y._replace(boxes=b.insertion.boxes[:, None], labels=b.insertion.labels[:, None])
    with tf.GradientTape() as inner:
        inner.watch(W)
        L_real, L_syn = L_d(DET, W, b.y.images, b.y), L_d(DET, W, x_syn, where)
        loss = L_real + L_syn
    g = inner.gradient(loss, W)
    if optimizer.global_clipnorm:
        norm = tf.sqrt(tf.add_n([tf.reduce_sum(v * v) for v in g]))
        assert norm > optimizer.global_clipnorm  # otherwise clipping would not be tested
        g = [v * optimizer.global_clipnorm / norm for v in g]
    m = [0.9 * m - 0.01 * v for m, v in zip(optimizer.momentums, g, strict=True)]
    return [w + step for w, step in zip(W, m, strict=True)], m, L_real, L_syn


def reference_objective(p, o, b):
    """Returns the terms of the objective that G_X and G_Y minimise, and DET's update (W', m')."""
    own, gan, (x, y) = p.gan.objective, p.gan, (b.x, b.y)
    composed = own.composition
    boxes, labels, content = b.insertion.boxes[:, None], b.insertion.labels[:, None], b.insertion.content

    def adversarial(D, images):
        return mean(losses.adversarial_generator(D(images), own.gan_loss))

    x_syn = insert(gan.G_X, x, b.insertion, composed)
    y_clean = remove(gan.G_Y, *y, b.y_content, composed)
    mask = boxes_lib.mask(b.insertion.boxes, *x.shape[1:3])[..., None]
    target = b.insertion.exemplars
    if composed.generator_input == "mask_and_object":
        mask = composed.blend(b.insertion.boxes, content, *x.shape[1:3])
        target = paste(x, target, mask)
    x_back, x_same = (remove(gan.G_Y, image, boxes, labels, content, composed) for image in (x_syn, x))
    y_back, y_same = (reinsert(gan.G_X, image, y, b.y_content, composed) for image in (y_clean, y.images))
    terms = {
        "global": own.lambda_gan
        * (adversarial(gan.DIS_globalX, x_syn) + adversarial(gan.DIS_globalY, y_clean)),
        "local": own.lambda_gan * adversarial(gan.DIS_localX, crop(x_syn, b.insertion.boxes, own.crop_size)),
        "bbox": own.lambda_bbox * mean(losses.bbox_loss(x_syn, target, mask)),
        "cycle": own.lambda_cycle * (mean(losses.l1(x_back, x)) + mean(losses.l1(y_back, y.images))),
        "identity": own.lambda_identity * (mean(losses.l1(x_same, x)) + mean(losses.l1(y_same, y.images))),
    }
    if p.DET is None:
        return terms, None
    W_updated, m_updated, _, L_syn = step_of_detector(p, b, x_syn)
    terms["real"] = o.lambda_real * L_d(p.DET, W_updated, b.y2.images, b.y2)  # Eqn 3
    terms["syn"] = -o.lambda_syn * tf.minimum(L_syn, o.syn_cap)
    return terms, (W_updated, m_updated)


def discriminator_loss(o, D, real, fake):
    """Returns the discriminator's part of Eqn 4."""
    real, fake = losses.adversarial_real(D(real), o.gan_loss), losses.adversarial_fake(D(fake), o.gan_loss)
    return (mean(real) + mean(fake)) / 2


def discriminator_losses(gan, b):
    """Returns {discriminator: loss} on real images (for DIS_globalX: y and u) and on generated images."""
    o = gan.objective
    x_syn = insert(gan.G_X, b.x, b.insertion, o.composition)
    y_clean = remove(gan.G_Y, *b.y, b.y_content, o.composition)
    real_crops = crop(b.y.images, b.y_boxes, o.crop_size)
    crops = crop(x_syn, b.insertion.boxes, o.crop_size)
    return {
        "DIS_globalX": discriminator_loss(o, gan.DIS_globalX, tf.concat([b.y.images, b.u], 0), x_syn),
        "DIS_localX": discriminator_loss(o, gan.DIS_localX, real_crops, crops),
        "DIS_globalY": discriminator_loss(o, gan.DIS_globalY, b.x, y_clean),
    }


def gradient(tape, value, variables):
    """Returns the gradient; 0 if `value` does not depend on a variable, as BboxLoss on G_Y."""
    found = tape.gradient(value, variables)
    return [tf.zeros(v.shape) if g is None else g for v, g in zip(variables, found, strict=True)]


def relative_error(found, expected):
    """Returns |found - expected| / |expected| over all tensors of two lists."""
    difference = tf.linalg.global_norm([tf.subtract(a, b) for a, b in zip(found, expected, strict=True)])
    return float(difference / tf.linalg.global_norm(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe,detector,changes,clipnorm",
    [
        ("ours", False, {}, None),
        ("ours", True, {"lambda_real": 30.0, "lambda_syn": 2.0}, 2.0),
        ("paper", True, {"lambda_real": 20.0, "lambda_syn": -2.0}, None),
    ],
)
def test_joint_step_follows_the_gradient_of_the_reference(
    tiny, initial_models, recipe, detector, changes, clipnorm
):
    p = initial_models(recipe, clipnorm)
    p = p if detector else without_detector(p)
    o, own, b = tiny.objective(**changes), p.gan.objective, tiny.batch()
    with tf.GradientTape(persistent=True) as tape:
        terms, updated = reference_objective(p, o, b)
        D_losses = discriminator_losses(p.gan, b)
    theta = {name: getattr(p.gan, name).trainable_variables for name in ("G_X", "G_Y")}
    phi = {name: getattr(p.gan, name).trainable_variables for name in D_losses}
    expected = {name: tape.gradient(D_losses[name], v) for name, v in phi.items()}
    parts = {name: {k: gradient(tape, term, v) for k, term in terms.items()} for name, v in theta.items()}
    for name, by_term in parts.items():
        expected[name] = [tf.add_n(gradients) for gradients in zip(*by_term.values(), strict=True)]
    # Every term is large enough: a relative error of 1e-3 in a term is an error of at least 1e-5 in the sum.
    for name in set(terms) - {"identity"}:
        assert tf.linalg.global_norm(parts["G_X"][name]) > 0.01 * tf.linalg.global_norm(expected["G_X"]), name
    before = {name: [v.numpy() for v in variables] for name, variables in (theta | phi).items()}

    out = joint_step.joint_step(p, o, b, SEED)

    in_order = iter([*p.gan.generator_optimizer.momentums, *p.gan.discriminator_optimizer.momentums])
    for name, variables in (theta | phi).items():
        steps = [next(in_order) for _ in variables]
        assert relative_error(steps, [-RATE * g for g in expected[name]]) < 1e-5, name
        for old, step, variable in zip(before[name], steps, variables, strict=True):
            np.testing.assert_array_equal(variable, old + step)
    for name, loss in D_losses.items():
        np.testing.assert_allclose(out[f"L_{name}"], loss, rtol=1e-5)
    np.testing.assert_allclose(own.lambda_bbox * out["L_bbox"], terms["bbox"], rtol=1e-5)
    np.testing.assert_allclose(own.lambda_cycle * out["L_cycle"], terms["cycle"], rtol=1e-5)
    if detector:
        np.testing.assert_allclose(o.lambda_real * out["L_real_unrolled"], terms["real"], rtol=1e-5)
        assert relative_error(p.DET.weights, updated[0]) < 1e-6
        assert relative_error([m.value for m in p.detector_optimizer.momentums], updated[1]) < 1e-5
        assert int(p.detector_optimizer.iterations) == 1


def test_joint_step_with_several_unrolled_steps_equals_unrolled_step(tiny, initial_models):
    """From the same weights: loss, norm of the gradient with respect to x_syn, and DET's update."""
    o = tiny.objective(lambda_real=3.0, recompute=True)
    b = tiny.batch()._replace(y_later=(tiny.batch(1).y, tiny.batch(2).y))
    p = dataclasses.replace(initial_models(), DET=tiny.ToyDetector())
    p.detector_optimizer = tiny.sgd(p.DET.network.trainable_variables)
    x_syn = insert(p.gan.G_X, b.x, b.insertion, p.gan.objective.composition)
    synthetic = b.y._replace(
        images=x_syn, boxes=b.insertion.boxes[:, None], labels=b.insertion.labels[:, None]
    )
    arguments = p.DET, p.detector_optimizer, b.y, synthetic, b.y2
    unrolled = unroll.unrolled_step(*arguments, later=b.y_later)
    assert unrolled.L_real_unrolled != unroll.unrolled_step(*arguments).L_real_unrolled
    out = joint_step.joint_step(p, o, b, SEED)
    np.testing.assert_allclose(out["L_real_unrolled"], unrolled.L_real_unrolled, rtol=1e-6)
    squares = 9 * tf.reduce_sum(unrolled.d_L_real_unrolled**2)
    assert squares > 0
    found = out["squared_norm/real_inside"] + out["squared_norm/real_outside"]
    np.testing.assert_allclose(found, squares, rtol=1e-4)
    assert relative_error(p.DET.weights, unrolled.update.W) < 1e-6


@pytest.mark.parametrize(
    "arm,cap,sign",
    [
        ("detectorgan", 1e6, 1),
        ("detectorgan", 1e-3, 0),
        ("acgan", 1e-3, -1),
    ],
)
def test_g_x_increases_or_decreases_l_syn_below_the_cap(tiny, initial_models, arm, cap, sign):
    """With every other weight 0, G_X's step is along sign * dL_syn/dG_X, and 0 above the cap."""
    signs = build.objective(Train(lambda_syn=0.3, syn_cap=cap), ARMS[arm])
    o = dataclasses.replace(signs, lambda_real=0.0)
    p, b = with_weights(initial_models(), **NOTHING), tiny.batch()
    x_syn_of = p.gan.G_X, b.x, b.insertion, p.gan.objective.composition
    with tf.GradientTape() as tape:
        L_syn = step_of_detector(p, b, insert(*x_syn_of))[-1]
    d_L_syn = tape.gradient(L_syn, p.gan.G_X.trainable_variables)
    assert tf.linalg.global_norm(d_L_syn) > 1e-3
    out = joint_step.joint_step(p, o, b, SEED)
    np.testing.assert_allclose(out["L_syn"], L_syn, rtol=1e-5)
    steps = p.gan.generator_optimizer.momentums[: len(d_L_syn)]
    if sign:
        assert relative_error(steps, [sign * 0.3 * RATE * g for g in d_L_syn]) < 1e-5
    else:
        assert all(not np.any(step) for step in steps)


def test_unboxed_images_train_dis_globalx_only(tiny, initial_models):
    o, b = tiny.objective(), tiny.batch()
    after = []
    for u in (b.u, -b.u):
        p = initial_models()
        joint_step.joint_step(p, o, b._replace(u=u), SEED)
        after.append(tiny.networks(p))
    changed = {
        name
        for name in after[0]
        if any(np.any(x != y) for x, y in zip(after[0][name], after[1][name], strict=True))
    }
    assert changed == {"DIS_globalX"}


def test_step_without_a_detector_changes_all_weights_of_the_gan_and_none_of_det(tiny, initial_models):
    o, b = tiny.objective(), tiny.batch()
    p = initial_models()
    before = tiny.networks(p)
    out = joint_step.joint_step(without_detector(p), o, b, SEED)
    assert not [name for name in out if "real" in name or "syn" in name.split("/")[-1]]
    changed = {
        name: [np.any(x != y) for x, y in zip(before[name], w, strict=True)]
        for name, w in tiny.networks(p).items()
    }
    assert not any(changed.pop("DET"))
    assert all(map(all, changed.values()))  # every weight of every other network
    assert int(p.detector_optimizer.iterations) == 0


def test_detector_step_changes_only_the_detector(tiny, initial_models):
    p = initial_models()
    before = tiny.networks(p)
    detector_step(p.DET, p.detector_optimizer, tiny.batch().y, 1.0)
    changed = {
        name: any(np.any(x != y) for x, y in zip(before[name], w, strict=True))
        for name, w in tiny.networks(p).items()
    }
    assert {name for name, did in changed.items() if did} == {"DET"}
    assert int(p.gan.generator_optimizer.iterations) == int(p.gan.discriminator_optimizer.iterations) == 0


def test_discriminators_train_on_the_pool(tiny, initial_models):
    """The discriminators' generated input is the pools' output, cropped at the pools' boxes."""
    b, gan = tiny.batch(), initial_models().gan
    o = gan.objective

    class FakePool:
        """Returns fixed images and records its arguments."""

        def __init__(self, images, boxes):
            self.output, self.inputs = (images, boxes), []

        def exchange(self, images, boxes, seed):
            self.inputs.append((images, boxes, seed))
            return self.output

    old_X, old_Y, old_boxes = b.u[::-1], b.x[::-1], b.y_boxes + 3
    pools = FakePool(old_X, old_boxes), FakePool(old_Y, old_boxes)
    gan = dataclasses.replace(gan, pools_X=[pools[0]], pools_Y=[pools[1]])
    x_syn = insert(gan.G_X, b.x, b.insertion, o.composition)
    crops = crop(b.y.images, b.y_boxes, o.crop_size)
    old_crops = crop(old_X, old_boxes, o.crop_size)
    expected = {
        "L_DIS_globalX": (tf.concat([b.y.images, b.u], 0), old_X, gan.DIS_globalX),
        "L_DIS_localX": (crops, old_crops, gan.DIS_localX),
        "L_DIS_globalY": (b.x, old_Y, gan.DIS_globalY),
    }
    expected = {
        name: (
            mean(losses.adversarial_real(D(real), o.gan_loss))
            + mean(losses.adversarial_fake(D(fake), o.gan_loss))
        )
        / 2
        for name, (real, fake, D) in expected.items()
    }
    out = joint_step.joint_step(JointModels(gan), tiny.objective(), b, SEED)
    for name, value in expected.items():
        np.testing.assert_allclose(out[name], value, rtol=1e-5)
    (images, boxes, seed_X), *rest = pools[0].inputs
    assert not rest
    np.testing.assert_allclose(images, x_syn, atol=1e-6)
    np.testing.assert_array_equal(boxes, b.insertion.boxes)
    assert np.any(seed_X != pools[1].inputs[0][2])  # the pools have different random numbers


def test_squared_norms_by_hand():
    """The box is the left column of 2 x 2 pixels: 3 and 1 inside, 4 and 2 outside."""
    gradient = tf.reshape([3.0, 4.0, 1.0, 2.0], [1, 2, 2, 1])
    found = joint_step._squared_norms({"bbox": gradient}, tf.constant([[0.0, 0.0, 1.0, 2.0]]))
    assert {k: float(v) for k, v in found.items()} == {
        "squared_norm/bbox_inside": 9 + 1,
        "squared_norm/bbox_outside": 16 + 4,
    }


def test_disconnected_network_raises(tiny, initial_models):
    """A network that no loss depends on must not be treated as one whose gradient is 0."""
    p = without_detector(initial_models())
    disconnected = dataclasses.replace(p.gan, DIS_localX=lambda crops: crops[:, :1, :1])
    disconnected.DIS_localX.trainable_variables = p.gan.DIS_localX.trainable_variables
    with pytest.raises(RuntimeError, match="the discriminators' objective has no gradient for: "):
        joint_step.joint_step(JointModels(disconnected), tiny.objective(), tiny.batch(), SEED)
