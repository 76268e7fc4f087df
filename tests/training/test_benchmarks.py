"""The scripts in benchmarks/: FLOP counts by hand, and small runs of all scripts except PyTorch's."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.training.joint_step import JointModels

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Makes the scripts importable by name, as when they are run."""
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def small_convolution(size=8, batch=2, channels=4):
    """Returns a 3 x 3 convolution to 6 channels: 2 * batch * size^2 * 9 * channels * 6 FLOPs."""
    x, kernel = tf.Variable(tf.ones([batch, size, size, channels])), tf.Variable(tf.ones([3, 3, channels, 6]))
    return x, kernel, lambda: tf.nn.conv2d(x, kernel, 1, "SAME")


def test_convolution_flops_by_hand():
    import measuring

    x, kernel, forward = small_convolution()
    once = 2 * 2 * 64 * 9 * 4 * 6

    def derivatives():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(forward() ** 2)
        forward()  # its result is not used
        return tape.gradient(loss, [x, kernel])

    product = tf.Variable(tf.ones([5, 7]))
    for function, flops in (
        (forward, once),
        (derivatives, 3 * once),
        (lambda: tf.matmul(product, product, transpose_a=True), 2 * 7 * 5 * 7),
    ):
        graph = tf.function(function, autograph=False).get_concrete_function()
        assert measuring.convolution_flops(graph) == flops

    def schedule(branch):  # a condition, as in a learning-rate schedule
        return tf.function(lambda: (forward(), tf.cond(x[0, 0, 0, 0] > 0, branch, lambda: 0.0)))

    graph = schedule(lambda: 1.0).get_concrete_function()
    assert measuring.convolution_flops(graph) == once
    graph = schedule(lambda: tf.reduce_sum(forward())).get_concrete_function()
    with pytest.raises(ValueError, match="has a Conv2D inside"):
        measuring.convolution_flops(graph)


def test_ratios_are_computed_per_round():
    import measuring

    assert measuring.ratios([2, 4, 9], [1, 2, 3]) == {"median": 2.0, "low": 2.0, "high": 2.5}


def test_peak_mib_includes_memory_that_the_step_frees():
    import measuring

    # The peak is an upper bound: it may include memory of another thread.
    assert 60 < measuring.peak_mib(lambda: np.ones(2**23).sum(), of_tensorflow=False) < 96  # 8 bytes each
    x = tf.Variable(tf.ones([2**23]))
    twice = tf.function(lambda: tf.reduce_sum(tf.reverse(2 * x, [0])), autograph=False)
    step = twice.get_concrete_function()
    step()
    # 2 x and its reverse, from TensorFlow's pool or, if there is none, from the C library
    assert 60 < measuring.peak_mib(step) < 96


def test_unroll_cost(tiny, monkeypatch, tmp_path, capsys):
    import joint_models
    import measuring
    import unroll_cost

    def toys(settings, size):
        p, DET = tiny.joint_models(), tiny.ToyDetector()
        optimizer = type(p.detector_optimizer)(0.1, momentum=0.9)
        optimizer.build(DET.network.trainable_variables)
        return JointModels(p.gan, DET, optimizer)

    monkeypatch.setattr(joint_models, "joint_models", toys)
    monkeypatch.setattr(measuring, "peak_mib", lambda step: 8.0)
    # Tracing the joint step takes seconds, and other tests check it.
    monkeypatch.setattr(
        unroll_cost, "joint_step", lambda p, objective, batch, seed: p.gan.DIS_globalX(batch.x)
    )
    flags = [
        "--detectors=retinanet_small",
        "--sizes=32",
        "--modes=exact",
        "--rounds=2",
        f"--out={tmp_path / 'cost.json'}",
    ]
    unroll_cost.run(unroll_cost.parse(flags))
    (found,) = json.loads((tmp_path / "cost.json").read_text())["results"]
    (row,) = found["rows"]
    # Two convolutions: 8 x 8 of 1 channel to 4, and 6 x 6 of 4 to 1: 64 and 36 units per image and pass.
    # The derivative with respect to the first layer's input is computed in the synthetic passes only.
    first, second = 64, 36
    ordinary = 2 * (2 * first + 3 * second)
    exact = 2 * (2 * first + 3 * second) + (3 * first + 3 * second) + (3 * first + 4 * second)
    assert row["arithmetic"] == pytest.approx(exact / ordinary, abs=2e-3)
    assert row["detector part"]["median"] > 0.5
    assert "exact" in capsys.readouterr().out


def test_roofline(monkeypatch, tmp_path):
    import measuring
    import roofline

    monkeypatch.setattr(roofline, "SIDES", (8,))
    monkeypatch.setattr(roofline, "CHANNELS", (4,))
    _, __, forward = small_convolution(64)
    twice = tf.function(lambda: forward() + forward()[::-1], autograph=False).get_concrete_function()
    monkeypatch.setattr(roofline, "phases", lambda options: {"joint": twice})
    seconds = {"joint": 4e-6}  # and 1e-6 for all other steps
    monkeypatch.setattr(
        measuring, "in_turns", lambda steps, rounds, name: {k: [seconds.get(k, 1e-6)] * rounds for k in steps}
    )
    roofline.run(roofline.parse(["--rounds=2", f"--out={tmp_path / 'roof.json'}"]))
    found = json.loads((tmp_path / "roof.json").read_text())
    (row,) = found["rows"]
    assert row["GFLOP"] == round(2 * 2 * 2 * 64 * 64 * 9 * 4 * 6 / 1e9, 6)
    assert row["rate"]["median"] == pytest.approx(row["GFLOP"] / 4e-6, rel=1e-3)
    share = row["rate"]["median"] / found["roof"]["rate"]["median"]
    assert row["share"]["median"] == pytest.approx(share, rel=1e-3)


def test_host_trips_counts_ops_called_by_python_and_copies_to_the_host(tmp_path):
    """A batch and a graph per step, one planted op, and one planted int32 tensor."""
    import host_trips

    run = types.SimpleNamespace(functions={}, distributed=lambda batches: batches)
    step = tf.function(lambda v: tf.cast(v, tf.int32) + 1, autograph=False)
    run.functions["toy"] = step

    def phase():
        for batch in run.distributed(tf.data.Dataset.range(host_trips.WARM_UP + host_trips.STEPS + 2)):
            step(tf.sqrt(tf.zeros([2])))
            assert batch is not None

    row = host_trips.traced(run, "toy", phase, tmp_path)
    called = row["called by Python"]
    assert {called[kind] for kind in ("IteratorGetNext", "the step's graph", "Sqrt")} == {1.0}
    (copied,) = row["copies to the host by the graph"]
    assert (copied["kind"], copied["elements"]) == ("AddV2", 2)


def test_residual_memory(tmp_path, monkeypatch):
    import residual_memory

    from tf_detectorgan.data import object_residuals

    monkeypatch.setattr(object_residuals, "CROPS", 200)  # for speed
    residual_memory.write(tmp_path / "set", residual_memory.Street(images=6, size=64, people=3))
    row = residual_memory.measure(tmp_path / "set")
    assert row["images"] == 6
    assert 6 <= row["objects"] <= 18
    per_object = 4 * (3 * 12 * 12 + 1)  # cells of three channels, and a weight; then one number per image
    assert row["kept_bytes_per_object"] == pytest.approx(per_object + (4 * 6 + 8) / row["objects"])
    assert row["peak_growth_mib"] == row["peak_after_mib"] - row["peak_before_mib"] >= 0


def test_our_side_of_the_input_pipeline(monkeypatch, tmp_path):
    import input_pipeline

    monkeypatch.setattr(input_pipeline, "WARM_UP", 1)
    for kind in ("inter", "intra"):  # can be set in a fresh process only
        monkeypatch.setattr(tf.config.threading, f"set_{kind}_op_parallelism_threads", lambda count: None)
    input_pipeline.export(tmp_path, 64)
    truth = json.loads((tmp_path / "boxes.json").read_text())
    assert len(truth) == len(list((tmp_path / "png").iterdir())) == 57
    assert input_pipeline.ours(tmp_path, 4, 2) > 0


def test_pytorch_networks_equal_ours():
    torch = pytest.importorskip("torch", reason="the extra [bench] is not installed")
    import torch_networks

    from tf_detectorgan.models.detectors import retinanet
    from tf_detectorgan.models.discriminators import patch_gan
    from tf_detectorgan.models.generators import resnet_generator

    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 32, 1)).astype(np.float32)
    there = torch.from_numpy(images).permute(0, 3, 1, 2)
    DET = retinanet.small((32, 32, 1), 1)
    cells = 8 * 8 + 4 * 4 + 2 * 2
    for ours, theirs in (
        (resnet_generator((32, 32, 1), 1, filters=4, blocks=1), torch_networks.generator(1, 1, 4, 1)),
        (patch_gan((32, 32, 1), filters=4), torch_networks.patch_gan(1, 4, 3)),
        (DET.network, torch_networks.RetinaNet(1, 32, len(DET.anchors) // cells)),
    ):
        torch_networks.copy(ours.trainable_variables, theirs)
        with torch.no_grad():
            found = theirs(there)
        if ours is DET.network:
            logits, offsets = DET.outputs(DET.weights, images)
            np.testing.assert_allclose(found[0], logits[..., 0], atol=1e-4)
            np.testing.assert_allclose(found[1], offsets, atol=1e-4)
        else:
            np.testing.assert_allclose(found.permute(0, 2, 3, 1), ours(images), atol=1e-4)


def test_paper_estimate_has_every_training_phase(monkeypatch):
    """1000 steps of 3.6 PFLOP at 1 PFLOP/s take an hour."""
    import measuring
    import roofline

    names = ("pretrain_gan", "pretrain_detector, final_detector", "joint", "synthesize")
    monkeypatch.setattr(roofline, "phases", lambda options: dict.fromkeys(names))
    monkeypatch.setattr(measuring, "convolution_flops", lambda step: 3.6e15)
    rows = roofline.paper(roofline.parse(["--gpu_tflops", "2000", "--gpu_share", "0.5"]))["rows"]
    steps = {row["phase"]: row["steps"] for row in rows}
    assert steps == {
        "pretrain_gan": 20000,
        "pretrain_detector": 2000,
        "held_out_detectors": 2 * 2000,
        "final_detector": 5000,
        "joint": 10000,
    }
    assert all(row["hours, estimated"] == row["steps"] / 1000 for row in rows)
