"""Networks, learning-rate schedules and devices that `build` makes from settings."""

import json
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import config
from tf_detectorgan.errors import InputError
from tf_detectorgan.training import build, phases, schedules, update_rules
from tf_detectorgan.training.joint_step import JointModels
from tf_detectorgan.training.phases import _trackable_parts
from tf_detectorgan.training.settings import ARMS, Train

ROOT = Path(__file__).resolve().parents[2]
DATASET = types.SimpleNamespace(image_shape=(32, 32, 1), class_names=("a", "b"))
TINY = {
    "generator_filters": 2,
    "generator_blocks": 1,
    "discriminator_filters": 2,
    "crop_size": 16,
}


def test_constant_then_linear_schedule_by_hand():
    """0.2 for 100 steps, then linearly to 0 in 50 steps: half of it at step 125."""
    rate = schedules.ConstantThenLinear(0.2, 100, 50)
    found = [float(rate(step)) for step in (0, 99, 100, 125, 150, 1000)]
    np.testing.assert_allclose(found, [0.2, 0.2, 0.2, 0.1, 0, 0], atol=1e-7)
    assert float(schedules.ConstantThenLinear(0.2, 100, 0)(99)) == pytest.approx(0.2)
    again = schedules.ConstantThenLinear.from_config(rate.get_config())
    assert float(again(tf.constant(125, tf.int64))) == pytest.approx(0.1)


def test_detector_schedule_by_hand():
    """5 of 100 steps are warm-up; the cosine is half of the rate in the middle of the other 95, then 0."""
    DET = types.SimpleNamespace(network=types.SimpleNamespace(trainable_variables=[keras.Variable([1.0])]))
    settings = Train(detector_learning_rate=0.01)
    optimizer = build.alone_detector_optimizer(settings, DET, 100, tf.distribute.get_strategy())
    rate = optimizer._learning_rate
    found = [float(rate(step)) for step in (0, 1, 5, 52.5, 100)]
    np.testing.assert_allclose(found, [0, 0.002, 0.01, 0.005, 0], atol=1e-7)


@pytest.mark.parametrize("warm_up, decay", [(1, 1), (5, 95), (250, 4750)])
def test_warm_up_then_cosine_is_bit_identical_to_keras(warm_up, decay):
    ours = schedules.WarmUpThenCosine(1e-3, warm_up, decay)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, decay, warmup_target=1e-3, warmup_steps=warm_up)
    both = tf.function(lambda step: (ours(step), theirs(step)), autograph=False)
    for step in {*range(0, warm_up + decay + 3, 1 + decay // 50), warm_up, warm_up + decay}:
        found, expected = both(tf.constant(step, tf.int64))
        assert found.numpy() == expected.numpy(), step
    again = schedules.WarmUpThenCosine.from_config(ours.get_config())
    assert float(again(tf.constant(warm_up, tf.int64))) == pytest.approx(1e-3)


def test_distribution_chooses_the_number_of_replicas():
    assert build.strategy(Train()).num_replicas_in_sync == 1
    assert build.strategy(Train(distribution="one")).num_replicas_in_sync == 1
    mirrored = build.strategy(Train(distribution="mirrored"))
    assert isinstance(mirrored, tf.distribute.MirroredStrategy)
    assert mirrored.num_replicas_in_sync == 2
    for batch in ("gan_batch", "detector_batch"):
        with pytest.raises(InputError, match=f"--{batch}=3 is not divisible by 2 devices"):
            build.strategy(Train(distribution="mirrored", **{batch: 3}))


@pytest.mark.parametrize(
    "flagfile, used",
    [
        ("nih", {1: 1, 2: 1, 4: 1, 8: 1}),  # batches of 1 and 8
        ("cityscapes", {1: 1, 2: 2, 3: 2, 4: 4, 8: 4}),  # of 4 and 8
        ("cityscapes_psgan", {1: 1, 2: 2, 3: 2, 4: 4, 8: 4}),
    ],
)
def test_auto_uses_the_largest_number_of_gpus_that_divides_both_batches(flagfile, used, monkeypatch, capsys):
    settings = config.parse(Train, [f"--flagfile={ROOT / 'configs' / flagfile}.flags"])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", FakeMirrored)
    for count, expected in used.items():
        names = [f"/device:GPU:{number}" for number in range(count)]
        monkeypatch.setattr(build, "gpus", lambda names=names: names)
        chosen = build.strategy(settings)
        assert chosen.num_replicas_in_sync == expected
        assert getattr(chosen, "devices", names[:1]) == names[:expected]
        printed = capsys.readouterr().out
        assert [name for name in names if name.removeprefix("/device:") in printed] == names[expected:]
        if expected < count:  # the next multiple of the number of GPUs
            assert f"--gan_batch={6 if count == 3 else count}" in printed.rpartition("use all of")[2].split()


class FakeMirrored:
    """MirroredStrategy without devices."""

    def __init__(self, devices):
        self.devices, self.num_replicas_in_sync = devices, len(devices)


def test_usable_devices_and_idle_message_by_hand():
    assert build.usable([], {"gan_batch": 4}) == []
    assert build.usable("abcdef", {"gan_batch": 12, "detector_batch": 8}) == ["a", "b", "c", "d"]
    names, batches = ["/device:GPU:0", "/device:GPU:1"], {"gan_batch": 3, "detector_batch": 8}
    assert build.idle_message(names, 1, batches) == (
        "idle: GPU:1; 2 GPUs cannot share --gan_batch=3 --detector_batch=8 equally; "
        "use all of them with --gan_batch=4"
    )


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    "wanted, used", [(("nih:8", "cityscapes:2"), (1, 2)), (("cityscapes_psgan:8",), (4,))]
)
def test_flagfiles_of_gpus_take_their_first_step_on_several_devices(tiny_phantom, tmp_path, wanted, used):
    words = [f"{ROOT / 'configs' / name}.flags:{gpus}" for name, gpus in (one.split(":") for one in wanted)]
    data = tiny_phantom(f"on_{max(used)}_devices")
    command = [sys.executable, "-m", "tests.training.devices_program", data, tmp_path, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [(row["used"], row["steps"]) for row in rows] == [(count, 1) for count in used]


def test_placement_of_every_arm():
    """Residuals: by context; cut-out objects and noise: near the match; --placement overrides both."""
    default, cut = Train(), Train(object_source="crop")
    by_context = {"boxes_only", "superpose", "cyclegan_bbox", "acgan", "detectorgan_no_unroll", "detectorgan"}
    for name, arm in ARMS.items():
        found = build.placement(default, arm.images, arm.gan)
        assert found.mode == ("context" if name in by_context else "matched_shift"), name
        assert found.residual == (name in by_context - {"boxes_only"}), name
        assert found.noise == (name in ("pix2pix", "psgan", "psgan_detectorgan")), name
    assert build.placement(cut, "residual", "").residual
    placed = build.placement(cut, "generator", "cyclegan")
    assert (placed.mode, placed.residual) == ("matched_shift", False)
    assert build.placement(Train(placement="uniform"), "generator", "cyclegan").mode == "uniform"


def test_residual_scale_is_used_only_by_cyclegan_with_the_object_as_input():
    with_object, mask_only = (
        Train(residual_scale=(0.25, 0.75)),
        Train(residual_scale=(0.25, 0.75), generator_input="mask"),
    )
    for name, arm in ARMS.items():
        kind = arm.images, arm.gan
        assert build.placement(mask_only, *kind).residual_scale == (1.0, 1.0), name
        expected = (0.25, 0.75) if arm.gan == "cyclegan" else (1.0, 1.0)
        assert build.placement(with_object, *kind).residual_scale == expected, name


def test_cyclegan_on_two_devices_has_two_pools_per_discriminator():
    chosen = build.strategy(Train(distribution="mirrored"))
    p = build.cyclegan(Train(**TINY, gan_batch=4), DATASET, chosen)
    for pools in (p.pools_X, p.pools_Y):
        assert [pool.images.shape for pool in pools] == [(build.POOL_SIZE, 32, 32, 1)] * 2
    assert len({id(pool) for pool in (*p.pools_X, *p.pools_Y)}) == 4


@pytest.mark.parametrize("generator_input,channels", [("mask", 1 + 2), ("mask_and_object", 1 + 1 + 2)])
def test_cyclegan_inputs_and_activations(generator_input, channels):
    p = build.cyclegan(Train(**TINY, generator_input=generator_input), DATASET, tf.distribute.get_strategy())
    assert p.G_X.input_shape == (None, 32, 32, channels)
    assert p.G_Y.input_shape == (None, 32, 32, 1 + 2)
    assert p.DIS_localX.input_shape == (None, 16, 16, 1)
    assert p.DIS_globalX.input_shape == p.DIS_globalY.input_shape == (None, 32, 32, 1)
    # tanh as in the paper; an unbounded difference if the object is pasted into the input
    assert p.G_X.layers[-1].activation is (
        keras.activations.linear if generator_input == "mask_and_object" else keras.activations.tanh
    )
    assert p.G_Y.layers[-1].activation is keras.activations.tanh


def test_initial_weights_depend_on_the_seed_only():
    def weights(seed):
        p = build.cyclegan(Train(**TINY, seed=seed), DATASET, tf.distribute.get_strategy())
        return p.G_Y.get_weights()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(np.any(a != b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name,rate", [("sgd", 0.01), ("nesterov", 0.01), ("adam", 1e-4), ("adamw", 1e-4)])
def test_every_joint_detector_optimizer_has_an_update_rule(name, rate):
    DET = types.SimpleNamespace(network=types.SimpleNamespace(trainable_variables=[keras.Variable([1.0])]))
    settings = Train(joint_detector_optimizer=name)
    optimizer = build.joint_detector_optimizer(settings, DET, tf.distribute.get_strategy())
    assert float(optimizer.learning_rate) == pytest.approx(rate)
    assert optimizer.global_clipnorm == build.CLIP_NORM
    assert optimizer.weight_decay == (build.WEIGHT_DECAY if name == "adamw" else None)
    assert getattr(optimizer, "nesterov", False) == (name == "nesterov")
    update_rules.current_state(optimizer)


def test_detectorgan_without_unroll_steps_equals_detectorgan_no_unroll():
    none = Train(unroll_steps=0, lambda_syn=2.0)
    expected = build.objective(Train(lambda_syn=2.0), ARMS["detectorgan_no_unroll"])
    assert build.objective(none, ARMS["detectorgan"]) == expected
    assert (expected.lambda_real, expected.lambda_syn, expected.syn_cap) == (0, 2, 5)
    assert build.objective(Train(syn_cap=0.0), ARMS["detectorgan"]).syn_cap == np.inf
    assert build.objective(Train(unroll_recompute=True), ARMS["detectorgan"]).recompute
    with pytest.raises(InputError, match="--unroll_recompute has no effect with --unroll_steps=0"):
        Train(unroll_steps=0, unroll_recompute=True)


def test_objective_is_the_settings_times_the_arm_signs():
    settings = Train(lambda_real=2.0, lambda_syn=0.5)
    found = {
        name: (o.lambda_real, o.lambda_syn)
        for name in ARMS
        for o in [build.objective(settings, ARMS[name])]
        if ARMS[name].detector
    }
    assert found == {
        "acgan": (0, -0.5),
        "detectorgan_no_unroll": (0, 0.5),
        "detectorgan": (2.0, 0.5),
        "psgan_detectorgan": (2.0, 0.5),
    }


def test_retinanet_kerashub_in_bfloat16_raises():
    with pytest.raises(InputError, match="--precision=mixed_bfloat16: .*--detector=retinanet_kerashub"):
        Train(detector="retinanet_kerashub", precision="mixed_bfloat16")


def test_only_float16_has_a_loss_scale():
    one = tf.distribute.get_strategy()
    found = [
        build.loss_scale(Train(precision=p), one) for p in ("float32", "mixed_bfloat16", "mixed_float16")
    ]
    assert found[:2] == [None, None]
    settings = Train(**TINY, precision="mixed_float16")
    p = build.cyclegan(settings, DATASET, one)
    DET = build.detector(settings, DATASET, one)
    assert {layer.compute_dtype for layer in DET.network.layers} == {"float32"}
    assert {layer.compute_dtype for layer in p.G_X.layers} == {"float16", "float32"}
    assert set(_trackable_parts(JointModels(p, loss_scale=found[2]))) == {*p.parts, "loss_scale"}


def test_augmentation_is_off_without_augment():
    off = build.augmentation(Train(augment=False))
    assert (off.flip, off.shift, off.scale, off.intensity) == (False, 0, 0, 0)
    assert build.augmentation(Train()) != off


def test_eqn_3_with_a_detector_that_is_not_unrollable_raises(monkeypatch):
    def make(image_shape, classes):
        return types.SimpleNamespace(unrollable=False)

    monkeypatch.setitem(build.detectors.DETECTORS, "rough", make)
    one = tf.distribute.get_strategy()
    rest = Train(detector="rough", arm=("real_only", "acgan"))
    assert not build.detector(rest, DATASET, one).unrollable
    with pytest.raises(InputError, match="leave detectorgan out of --arm"):
        build.detector(Train(detector="rough", arm=("real_only", "detectorgan")), DATASET, one)


@pytest.mark.parametrize(
    "shape,classes,error",
    [((32, 32, 1), ("a", "b"), "one class, the data set has a, b"), ((48, 48, 1), ("a",), "it is 48 px")],
)
def test_psgan_with_unsupported_data_raises(shape, classes, error):
    data = types.SimpleNamespace(image_shape=shape, class_names=classes)
    with pytest.raises(InputError, match=error):
        build.gan(Train(**TINY), "psgan", data, tf.distribute.get_strategy())


def test_unsupported_arm_raises_before_another_arm_is_trained(monkeypatch):
    monkeypatch.setattr(phases, "train_gan", lambda *_: pytest.fail("a GAN is trained"))
    run = types.SimpleNamespace(
        settings=Train(**TINY, arm=("cyclegan_bbox", "psgan")), workers=None, layout=None, dataset=DATASET,
        strategy=tf.distribute.get_strategy(),
    )  # fmt: skip
    with pytest.raises(InputError, match="objects of one class"):
        phases.run_arms(run)


def field(discriminator):
    """Returns the receptive field of one logit, backwards over the layers: (field - 1) * stride + kernel."""
    found = 1
    for layer in reversed([one for one in discriminator.layers if isinstance(one, keras.layers.Conv2D)]):
        found = (found - 1) * layer.strides[0] + layer.kernel_size[0]
    return found


@pytest.mark.parametrize("kind", ["cyclegan", "psgan"])
def test_base_gans_have_the_constants_of_their_papers(kind):
    """Those of CycleGAN, and those of pix2pix, which PS-GAN uses."""
    data = types.SimpleNamespace(image_shape=(128, 128, 1), class_names=("a",))
    found = build.gan(Train(**TINY, lambda_gan=3.0), kind, data, tf.distribute.get_strategy())
    for optimizer in (found.generator_optimizer, found.discriminator_optimizer):
        assert isinstance(optimizer, keras.optimizers.Adam)
        assert (float(optimizer.learning_rate), optimizer.beta_1) == (pytest.approx(2e-4), 0.5)
    weights = found.objective
    assert weights.lambda_gan == 3.0
    if kind == "psgan":
        assert field(found.DIS_image) == 70
    else:
        assert (weights.lambda_cycle, weights.lambda_identity) == (10.0, 5.0)
        assert [field(D) for D in (found.DIS_globalX, found.DIS_globalY)] == [70, 70]
        assert field(found.DIS_localX) == 34  # of crops of 32 pixels


def test_pix2pix_is_psgan_without_the_person_discriminator():
    data = types.SimpleNamespace(image_shape=(32, 32, 1), class_names=("a",))
    one, two = (
        build.gan(Train(**TINY), kind, data, tf.distribute.get_strategy()) for kind in ("pix2pix", "psgan")
    )
    assert set(two.parts) - set(one.parts) == {"DIS_person"}
    assert all(np.array_equal(a, b) for a, b in zip(one.G.get_weights(), two.G.get_weights(), strict=True))
