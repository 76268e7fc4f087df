"""Loss scaling: the rule of Keras, and either all updates or none on every replica."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.checkpoints import PhaseDirectory
from tf_detectorgan.models.layers import dtype_policy
from tf_detectorgan.training import loss_scale
from tf_detectorgan.training import replicas as replicas_lib
from tf_detectorgan.training.joint_step import joint_step
from tf_detectorgan.training.loss_scale import LossScale, Step

INFINITE = float("inf")


def test_scale_changes_as_in_keras(monkeypatch):
    """Halved, doubled after 3 finite steps in a row, counter reset: as in Keras's LossScaleOptimizer."""
    monkeypatch.setattr(loss_scale, "GOOD_STEPS", 3)
    variable, ours = keras.Variable([1.0]), LossScale()
    theirs = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(0.0), initial_scale=loss_scale.INITIAL, dynamic_growth_steps=3
    )
    theirs.build([variable])
    scales = []
    for gradient in [1.0, 1.0, INFINITE, 1.0, 1.0, 1.0, 1.0, INFINITE, INFINITE, 1.0]:
        theirs.apply([tf.constant([gradient])], [variable])
        taken = ours.accept([tf.constant([gradient])])
        assert bool(taken) == (gradient == 1)
        scales.append(
            (float(ours.scale) / loss_scale.INITIAL, float(theirs.dynamic_scale) / loss_scale.INITIAL)
        )
    assert [a for a, _ in scales] == [b for _, b in scales] == [1, 1, 0.5, 0.5, 0.5, 1, 1, 0.5, 0.25, 0.25]
    assert int(ours.skipped) == 3


def test_infinite_step_at_scale_1_is_applied():
    """The scale is not its cause: the losses of the next step will stop the run."""
    scale = LossScale()
    scale.scale.assign(2.0)
    assert [bool(scale.accept([tf.constant(INFINITE)])) for _ in range(2)] == [False, True]
    assert float(scale.scale) == 1


def test_gradient_that_underflows_in_float16_is_computed_with_a_scale():
    """1e-5 * 1e-4 = 1e-9 is 0 in float16, but 2^15 * 1e-9 is not."""

    def slope(gradient):
        x = tf.constant(1.0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = 1e-4 * tf.cast(1e-5 * tf.cast(x, tf.float16), tf.float32)
        return float(gradient(tape, y, x))

    assert slope(Step().gradient) == 0
    assert slope(Step(LossScale()).gradient) == pytest.approx(1e-9, rel=0.01)


def two_optimizers(strategy):
    """Returns two optimizers with their variables and a common loss scale."""
    with strategy.scope():
        variables = [keras.Variable([1.0, 2.0]), keras.Variable([3.0])]
        optimizers = [keras.optimizers.SGD(0.1, momentum=0.9), keras.optimizers.Adam(0.1)]
        scale = LossScale()
        for optimizer, variable in zip(optimizers, variables, strict=True):
            optimizer.build([variable])
    return variables, optimizers, scale


@pytest.mark.parametrize("replicas", [1, 2])
def test_all_optimizers_are_updated_or_none(mirrored, replicas):
    """An infinite gradient of one optimizer, on the last replica, leaves all variables unchanged, bitwise."""
    one = tf.distribute.get_strategy()
    strategy = one if replicas == 1 else mirrored
    variables, optimizers, scale = two_optimizers(strategy)
    theirs, keras_optimizers, _ = two_optimizers(one)

    def step(last):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        training_step = Step(scale)
        gradients = [tf.constant([0.3, -0.2]), tf.where(replica == replicas - 1, [last], [0.4])]
        for optimizer, gradient in zip(optimizers, gradients, strict=True):
            training_step.apply(optimizer, replicas_lib.total([gradient]))
        return training_step.end({"norm": last})["norm"]

    def everything():
        all_variables = [v for o in optimizers for v in o.variables] + variables
        return [strategy.experimental_local_results(v.value) for v in all_variables]

    for last in (0.5, INFINITE, 0.5):
        before = [[copy.numpy() for copy in copies] for copies in everything()]
        norms = strategy.experimental_local_results(strategy.run(step, args=(tf.constant(last),)))
        assert [float(norm) for norm in norms] == [last if last < 1 else 0] * replicas
        after = [[copy.numpy() for copy in copies] for copies in everything()]
        assert all(len(copies) == replicas for copies in after)
        same = [np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        assert all(same) if last > 1 else sum(same) == 2  # the learning rates
        if last < 1:
            summed = [[0.3 * replicas, -0.2 * replicas], [0.5 + 0.4 * (replicas - 1)]]
            for optimizer, gradient, variable in zip(keras_optimizers, summed, theirs, strict=True):
                optimizer.apply([tf.constant(gradient)], [variable])
            for ours, variable in zip(variables, theirs, strict=True):
                for copy in strategy.experimental_local_results(ours.value):
                    np.testing.assert_allclose(copy, variable, rtol=1e-6)
    assert [float(copy) for copy in strategy.experimental_local_results(scale.scale)] == [2**14] * replicas
    assert int(scale.skipped.numpy()) == 1


@pytest.mark.slow
def test_joint_step_in_float16(tiny):
    """Every network's step is near float32's; with a scale that overflows, no network changes, no NaN."""
    o, b, seed = tiny.objective(lambda_real=10.0), tiny.batch(), tf.constant([0, 0])
    one = tiny.joint_models()

    def detector():  # computes in float32
        with dtype_policy("float32"):
            return tiny.one_level()

    with dtype_policy("mixed_float16"):
        two = dataclasses.replace(tiny.joint_models(detector=detector), loss_scale=LossScale())
    first = tiny.networks(two)
    two.loss_scale.scale.assign(2.0**40)
    skipped = joint_step(two, o, b, seed)
    assert int(two.loss_scale.skipped) == 1
    for name, weights in tiny.networks(two).items():
        assert all(np.array_equal(a, w) for a, w in zip(first[name], weights, strict=True)), name
    assert all(np.isfinite(value) for value in skipped.values())

    two.loss_scale.scale.assign(2.0**10)
    expected, found = joint_step(one, o, b, seed), joint_step(two, o, b, seed)
    assert int(two.loss_scale.skipped) == 1
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0.1, err_msg=name)
    for name, weights in tiny.networks(one).items():
        moves = [
            np.concatenate([(w - v).ravel() for w, v in zip(after, first[name], strict=True)])
            for after in (weights, tiny.networks(two)[name])
        ]
        cosine = moves[0] @ moves[1] / (np.linalg.norm(moves[0]) * np.linalg.norm(moves[1]))
        assert cosine > 0.98, name


def test_scale_and_counters_are_restored_from_a_checkpoint(tmp_path, monkeypatch):
    """After three steps before the checkpoint, the fourth doubles S."""
    monkeypatch.setattr(loss_scale, "GOOD_STEPS", 3)
    scale, again = LossScale(), LossScale()
    for value in (INFINITE, 1.0, 1.0):
        scale.accept([tf.constant(value)])
    PhaseDirectory(tmp_path, {"loss_scale": scale}).save(3)
    assert PhaseDirectory(tmp_path, {"loss_scale": again}).restore() == 3
    for one in (scale, again):
        one.accept([tf.constant(1.0)])
        assert [float(v) for v in (one.scale, one.good_steps, one.skipped)] == [2**15, 0, 1]
