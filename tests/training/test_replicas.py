"""Updates of all networks on two replicas, each with half of a batch, equal those of one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training import replicas, unroll, update_rules
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import JointModels, joint_step


def on_all(strategy, step):
    """Returns a function that runs `step` on every replica and sums its scalars, as `train` does."""

    def function(*batch):
        shares = strategy.run(step, args=batch)
        return {k: strategy.reduce("SUM", v, axis=None) for k, v in shares.items()}

    return function


def split(strategy, batch):
    """Returns the batch split into halves, as a pipeline does."""
    whole = tf.data.Dataset.from_tensor_slices(batch).batch(len(tf.nest.flatten(batch)[0]))
    return next(iter(strategy.experimental_distribute_dataset(whole)))


def worst_error(found, expected):
    """Returns the largest difference, relative to the largest number of each tensor."""
    pairs = [(a.numpy(), b.numpy()) for a, b in zip(found, expected, strict=True)]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


def states(p):
    """Returns the last update (SGD's momenta) and the weights of every optimizer."""
    optimizers = {
        "G_X, G_Y": p.gan.generator_optimizer,
        "DIS": p.gan.discriminator_optimizer,
        "DET": p.detector_optimizer,
    }
    return {name: [m.value for m in optimizer.momentums] for name, optimizer in optimizers.items()} | {
        f"{name} weights": [v.value for v in optimizer._trainable_variables]
        for name, optimizer in optimizers.items()
    }


@pytest.mark.slow
def test_joint_step_on_two_replicas_equals_one_device(tiny, mirrored):
    """Momenta are not 0, images have one or two boxes, the gradient is clipped, the pools are filled.

    It runs eagerly, because tracing it twice takes minutes; the test of `detector_step` uses a graph.
    """
    o, options = (
        tiny.objective(lambda_real=10.0),
        {"clipnorm": 2.0, "batch_size": 4, "detector": tiny.pyramid},
    )
    one = tiny.joint_models(**options, pool_size=4)
    two = tiny.joint_models(**options, pool_size=2, strategy=mirrored)
    step = on_all(mirrored, lambda batch, seed: joint_step(two, o, batch, seed))
    for number in range(2):
        batch, seed = tiny.batch(number, 4), tf.constant([0, number])
        expected, found = joint_step(one, o, batch, seed), step(split(mirrored, batch), seed)
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4 if number else 2e-5, err_msg=name)
        for name, theirs in states(one).items():
            ours = states(two)[name]
            for replica in range(2):  # both copies
                copies = [mirrored.experimental_local_results(v)[replica] for v in ours]
                assert worst_error(copies, theirs) < (1e-4 if number else 1e-5), (name, number)
        if not number:
            # Each replica's pool holds its own half of the synthetic images.
            for pools in ("pools_X", "pools_Y"):
                whole, halves = getattr(one.gan, pools)[0], getattr(two.gan, pools)
                np.testing.assert_allclose(
                    tf.concat([half.images for half in halves], 0), whole.images, atol=1e-5
                )
                np.testing.assert_array_equal(tf.concat([half.boxes for half in halves], 0), whole.boxes)
            for pool in (one.gan.pools_X[0], *two.gan.pools_X, one.gan.pools_Y[0], *two.gan.pools_Y):
                # Still filling: otherwise each replica would exchange other images in the next step.
                pool.stored.assign(0)
    assert int(two.detector_optimizer.iterations.numpy()) == 2


@pytest.mark.slow
def test_joint_step_of_psgan_on_two_replicas_equals_one_device(tiny, mirrored):
    """Noise and boxes are split with the images; the crops' sizes differ between the halves."""
    o, batch, seed = tiny.objective(lambda_real=20.0, lambda_syn=2.0), tiny.batch(0, 4), tf.constant([0, 0])
    batch = tiny.aligned(batch)

    def joint_models(strategy):
        keras.utils.set_random_seed(1)
        with strategy.scope():
            DET = tiny.one_level()
            optimizer = tiny.sgd(DET.network.trainable_variables)
        return JointModels(tiny.psgan("box", strategy=strategy), DET, optimizer)

    one, two = joint_models(tf.distribute.get_strategy()), joint_models(mirrored)
    expected = joint_step(one, o, batch, seed)
    found = on_all(mirrored, lambda half, seed: joint_step(two, o, half, seed))(split(mirrored, batch), seed)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
    for name, theirs in states(one).items():
        for replica in range(2):
            copies = [mirrored.experimental_local_results(v)[replica] for v in states(two)[name]]
            assert worst_error(copies, theirs) < 1e-5, name


def detector(tiny, strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        DET = tiny.pyramid()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        optimizer.build(DET.network.trainable_variables)
    return DET, optimizer


@pytest.mark.slow
def test_detector_step_on_two_replicas_equals_one_device(tiny, mirrored):
    """Two steps: one is clipped by the norm of the summed gradient; the other is not."""
    labelled = tiny.labelled(np.random.default_rng(0), 4)
    one, one_optimizer = detector(tiny, tf.distribute.get_strategy())
    two, two_optimizer = detector(tiny, mirrored)
    step = tf.function(
        on_all(mirrored, lambda half, clipnorm: detector_step(two, two_optimizer, half, clipnorm)),
        autograph=False,
    )
    for clipnorm in (1e-2, 1e6):
        expected = detector_step(one, one_optimizer, labelled, clipnorm)
        found = step(split(mirrored, labelled), tf.constant(clipnorm))
        assert (expected["gradient_norm"] > clipnorm) == (clipnorm < 1)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-5)
        momenta = [m.value for m in two_optimizer.momentums]
        if clipnorm < 1:
            np.testing.assert_allclose(tf.linalg.global_norm(momenta), 0.1 * clipnorm, rtol=1e-5)
        assert worst_error(momenta, [m.value for m in one_optimizer.momentums]) < 1e-5
        assert worst_error(two.weights, one.weights) < 1e-5
    assert step.experimental_get_tracing_count() == 1


RULES = {
    "sgd": (keras.optimizers.SGD, {}),
    "momentum": (keras.optimizers.SGD, {"momentum": 0.9}),
    "nesterov": (keras.optimizers.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adam": (keras.optimizers.Adam, {"epsilon": 1e-3}),
    "adamw": (keras.optimizers.AdamW, {"epsilon": 1e-3, "weight_decay": 0.1}),
}


@pytest.mark.parametrize(
    "rule,steps,recompute",
    [*((rule, 1, False) for rule in RULES), ("adamw", 1, True), ("adamw", 2, False), ("nesterov", 2, True)],
)
def test_unrolled_step_on_two_replicas_equals_one_device(tiny, mirrored, rule, steps, recompute):
    """Clipped by the norm of the summed gradient, with moments that are not 0."""
    schedule = keras.optimizers.schedules.CosineDecay(0.01, 9)
    kind, more = RULES[rule]
    y, synthetic, y2, *later = (tiny.labelled(np.random.default_rng(k), 4) for k in range(2 + steps))
    later = tuple(later)

    def prepared(strategy):
        with strategy.scope():
            DET, optimizer = tiny.ToyDetector(), kind(schedule, global_clipnorm=0.1, **more)
            optimizer.build(DET.network.trainable_variables)

        def step(y, synthetic, y2, later):
            unrolled = unroll.unrolled_step(DET, optimizer, y, synthetic, y2, later, recompute)
            update_rules.commit(optimizer, unrolled.update)
            return unrolled.d_L_real_unrolled

        return DET, step

    (one, step), (two, replica_step) = prepared(tf.distribute.get_strategy()), prepared(mirrored)
    halves = split(mirrored, (y, synthetic, y2, later))
    for _ in range(2):
        expected = step(y, synthetic, y2, later)
        found = mirrored.experimental_local_results(mirrored.run(replica_step, args=halves))
        assert worst_error([tf.concat(found, 0)], [expected]) < 1e-4
        assert worst_error(two.weights, one.weights) < 1e-5


def test_detector_step_equals_gradient_descent(tiny):
    """On one device: SGD on (focal + smooth L1) / positives."""
    labelled = tiny.labelled(np.random.default_rng(0), 2)
    keras.utils.set_random_seed(0)
    DET = tiny.pyramid()
    variables = DET.network.trainable_variables
    targets = DET.targets(labelled)
    with tf.GradientTape() as tape:
        loss = DET.loss(DET.weights, labelled.images, targets, DET.positives(targets))
    expected = [v - 0.1 * g for v, g in zip(variables, tape.gradient(loss, variables), strict=True)]
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(variables)
    out = detector_step(DET, optimizer, labelled, 1e6)
    np.testing.assert_allclose(out["L_d"], loss, rtol=1e-6)
    for v, value in zip(variables, expected, strict=True):
        np.testing.assert_allclose(v, value, rtol=1e-5, atol=1e-7)


def test_shares_sum_to_the_mean_of_the_global_batch(mirrored):
    """Losses 1 and 3 on one replica, 5 and 11 on the other: shares 4/4 and 16/4, whose sum is the mean 5."""
    step = on_all(
        mirrored, lambda loss: {"share": replicas.share(loss), "count": tf.constant(replicas.count())}
    )
    found = step(split(mirrored, tf.constant([1.0, 3.0, 5.0, 11.0])))
    assert float(found["share"]) == 5
    assert int(found["count"]) == 2 + 2
    assert float(replicas.share(tf.constant([1.0, 3.0]))) == 2  # on one device: the mean
    assert replicas.count() == 1


def test_gradient_of_total_is_summed_over_replicas(mirrored):
    """d/dx of (x_1 + x_2)^2, summed over both replicas, is 2 * 2 (x_1 + x_2) on each: 28 for 2 and 5."""

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = replicas.total(x) ** 2
        return {"slope": tape.gradient(y, x)}

    function = tf.function(lambda x: mirrored.run(step, args=(x,)), autograph=False)
    slopes = mirrored.experimental_local_results(function(split(mirrored, tf.constant([2.0, 5.0])))["slope"])
    assert [float(s[0]) for s in slopes] == [28, 28]


def test_assign_updates_every_copy(mirrored):
    with mirrored.scope():
        variable = tf.Variable([1.0, 2.0])

    def step():
        replicas.assign([variable], [variable + 1.0])
        return tf.constant(0)

    tf.function(lambda: mirrored.run(step), autograph=False)()
    for copy in mirrored.experimental_local_results(variable):
        np.testing.assert_array_equal(copy, [2, 3])


def test_index_is_the_number_of_the_replica(mirrored):
    found = []

    def step():
        found.append(replicas.index())
        return tf.constant(0)

    tf.function(lambda: mirrored.run(step), autograph=False)()
    assert sorted(set(found)) == [0, 1]
    assert replicas.index() == 0


def test_require_gradients_raises_with_the_names_of_missing_ones():
    replicas.require_gradients([tf.zeros(1), tf.ones(1)], ["a", "b"], "L")
    with pytest.raises(RuntimeError, match="L has no gradient for: b, d"):
        replicas.require_gradients([tf.zeros(1), None, tf.ones(1), None], ["a", "b", "c", "d"], "L")
