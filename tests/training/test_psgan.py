"""Compares the joint step of PS-GAN with a plain implementation of its objective and Eqn 1 to 3."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import checkpoints, losses, train
from tf_detectorgan.models.unet import redraw
from tf_detectorgan.training import phases, run_directory
from tf_detectorgan.training.joint_step import GAN_ONLY, JointModels, joint_step
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.psgan import PSGAN
from tf_detectorgan.training.run import build_gan_training
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers

SIDE, RATE = 32, 0.1
SEED = tf.constant([0, 0])


def mean(per_image):
    return tf.reduce_mean(per_image)


def L_d(DET, W, images, labelled):
    targets = DET.targets(labelled)
    return DET.loss(W, images, targets, tf.maximum(DET.positives(targets), 1.0))


def gan_objective(gan, b):
    """Returns Ouyang et al., eqn 3 (DIS_image, DIS_person and 100 L1), and y_redrawn."""
    composed = gan.objective.composition
    y_redrawn = redraw(gan.G, b.y_noised, b.y_boxes, b.y_content, composed)
    image = losses.adversarial_real(gan.DIS_image(tf.concat([b.y_noised, y_redrawn], -1)), "log")
    value = 1.1 * mean(image) + 100.0 * mean(losses.l1(y_redrawn, b.y.images))
    if gan.DIS_person is not None:
        value += 1.1 * mean(losses.adversarial_real(gan.DIS_person(y_redrawn, b.y_boxes), "lsgan"))
    return value, y_redrawn


def detector_objective(gan, DET, optimizer, o, b):
    """Returns lambda_real L~_real - lambda_syn L_syn, by Eqn 1 to 3 with SGD, and W'."""
    i = b.insertion
    x_syn = redraw(gan.G, i.exemplars, i.boxes, i.content, gan.objective.composition)
    W = [tf.convert_to_tensor(w) for w in DET.weights]
    where = b.y._replace(boxes=i.boxes[:, None], labels=i.labels[:, None])
    with tf.GradientTape() as inner:
        inner.watch(W)
        L_syn = L_d(DET, W, x_syn, where)
        both = L_d(DET, W, b.y.images, b.y) + L_syn
    steps = [0.9 * m - RATE * g for m, g in zip(optimizer.momentums, inner.gradient(both, W), strict=True)]
    W_updated = [w + step for w, step in zip(W, steps, strict=True)]
    return o.lambda_real * L_d(DET, W_updated, b.y2.images, b.y2) - o.lambda_syn * L_syn, W_updated


def relative_error(found, expected):
    difference = tf.linalg.global_norm([tf.subtract(a, b) for a, b in zip(found, expected, strict=True)])
    return float(difference / tf.linalg.global_norm(expected))


@pytest.mark.slow
def test_step_with_a_detector_follows_the_gradient_of_the_reference(tiny):
    gan, b, o = (
        tiny.psgan("box"),
        tiny.aligned(tiny.batch()),
        tiny.objective(lambda_real=20.0, lambda_syn=2.0),
    )
    DET = tiny.one_level()
    optimizer = tiny.sgd(DET.network.trainable_variables)
    with tf.GradientTape(persistent=True) as tape:
        own, y_redrawn = gan_objective(gan, b)
        detection, W_updated = detector_objective(gan, DET, optimizer, o, b)
        y = b.y.images
        pairs = [gan.DIS_image(tf.concat([b.y_noised, image], -1)) for image in (y, y_redrawn)]
        persons = [gan.DIS_person(image, b.y_boxes) for image in (y, y_redrawn)]
        D_loss = sum(
            mean(losses.adversarial_real(real, kind) + losses.adversarial_fake(fake, kind)) / 2
            for (real, fake), kind in ((pairs, "log"), (persons, "lsgan"))
        )
    phi = gan.DIS_image.trainable_variables + gan.DIS_person.trainable_variables
    d_phi = tape.gradient(D_loss, phi)
    parts = [tape.gradient(value, gan.theta) for value in (own, detection)]
    expected = [a + c for a, c in zip(*parts, strict=True)]
    for part in parts:  # neither is negligible
        assert tf.linalg.global_norm(part) > 0.01 * tf.linalg.global_norm(expected)

    out = joint_step(JointModels(gan, DET, optimizer), o, b, SEED)

    momenta = [m / -RATE for m in gan.generator_optimizer.momentums]
    assert relative_error(momenta, expected) < 1e-5
    assert relative_error([m / -RATE for m in gan.discriminator_optimizer.momentums], d_phi) < 1e-5
    assert relative_error(DET.weights, W_updated) < 1e-6
    found = 1.1 * (out["L_image"] + out["L_person"]) + 100.0 * out["L_l1"]
    np.testing.assert_allclose(found, own, rtol=1e-5)


@pytest.mark.parametrize("person", [True, False])
def test_step_without_a_detector_does_not_depend_on_clean_images(tiny, person):
    """With and without DIS_person (pix2pix)."""
    gan, b = tiny.psgan("full", person), tiny.aligned(tiny.batch())
    with tf.GradientTape() as tape:
        own, _ = gan_objective(gan, b)
    expected = tape.gradient(own, gan.theta)
    out = joint_step(JointModels(gan), GAN_ONLY, b, SEED)
    assert ("L_person" in out) == ("L_DIS_person" in out) == person
    assert relative_error([m / -RATE for m in gan.generator_optimizer.momentums], expected) < 1e-5
    copy = tiny.psgan("full", person)
    empty = b.insertion._replace(exemplars=tf.zeros_like(b.x))
    joint_step(JointModels(copy), GAN_ONLY, b._replace(x=tf.zeros_like(b.x), insertion=empty), SEED)
    for one, other in zip(gan.theta, copy.theta, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parts_are_all_fields_but_the_objective(tiny):
    fields = {f.name for f in dataclasses.fields(PSGAN)} - {"objective"}
    assert set(tiny.psgan("full").parts) == fields
    assert set(tiny.psgan("full", person=False).parts) == fields - {"DIS_person"}


@pytest.mark.slow
@pytest.mark.usefixtures("handlers")
def test_psgan_detectorgan_runs_all_phases(tmp_path, tiny_phantom, eagerly):
    """One step each: DET is trained in the joint phase, and the final detector is evaluated."""
    run = tmp_path / "run"
    train.main(
        Train(
            run_dir=str(run),
            data_dir=str(tiny_phantom("whole_arm", size=16, validation_images=0)),
            arm=("psgan_detectorgan",),
            detector="tests.own_detector:tiny",
            generator_filters=2,
            discriminator_filters=2,
            gan_batch=2,
            pretrain_gan_steps=1,
            joint_steps=1,
            pretrain_detector_steps=1,
            detector_batch=2,
            final_detector_steps=1,
            synthetic_count=3,
            crossfit_folds=0,
        )
    )
    arm = run / "arms" / "psgan_detectorgan"
    before, after = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(path)))
        for path in (run / "shared" / "pretrain_detector", arm / "joint")
    )
    names = [n for n in before.get_variable_to_shape_map() if n.startswith("optimizer/_trainable_variables/")]
    assert any(np.any(before.get_tensor(n) != after.get_tensor(f"detector_{n}")) for n in names)
    assert json.loads((arm / "evaluation" / "metrics.json").read_text())["counts"]["images"] == 6
    assert set(json.loads((run / "costs.json").read_text())) >= {
        "shared/pretrain_psgan",
        "shared/pretrain_detector",
        "arms/psgan_detectorgan/joint",
        "arms/psgan_detectorgan/final_detector",
    }


@pytest.mark.slow
def test_joint_phase_starts_from_the_pretraining_checkpoint(tmp_path, tiny_phantom, monkeypatch):
    """Without joint steps, both checkpoints are equal, and the synthetic images are written."""
    monkeypatch.setattr(StopSignal, "install", lambda self: self)  # the signals are the test runner's
    settings = Train(
        run_dir=str(tmp_path / "run"),
        data_dir=str(tiny_phantom("psgan")),
        arm=("psgan",),
        detector="tests.own_detector:tiny",
        generator_filters=2,
        discriminator_filters=2,
        gan_batch=2,
        pretrain_gan_steps=2,
        joint_steps=0,
        synthetic_count=3,
        crossfit_folds=0,
    )
    run = run_directory.begin(settings, Workers())
    gan, pretraining, arm = (
        build_gan_training(run, "psgan"),
        run.layout.pretrain_gan("psgan"),
        run.layout.arm("psgan"),
    )
    phases.train_gan(run, pretraining, gan, range(settings.pretrain_gan_steps))
    for weight in gan.joint_models.gan.theta:
        weight.assign(tf.zeros_like(weight))  # the joint phase must load the weights from the checkpoint
    phases.joint(run, "psgan", gan)
    phases.make_images(run, "psgan", gan, None)
    one, other = (
        tf.train.load_checkpoint(tf.train.latest_checkpoint(str(path))) for path in (pretraining, arm.joint)
    )
    names = [name for name in one.get_variable_to_shape_map() if "/" in name and "step" not in name]
    assert len(names) > 60  # weights and momenta of three networks
    for name in names:
        if not name.startswith("save_counter"):
            np.testing.assert_array_equal(one.get_tensor(name), other.get_tensor(name), err_msg=name)
    assert checkpoints.finished(arm.synthetic)["count"] == 3
