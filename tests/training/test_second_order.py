"""Kinks by name, and what they do to a finite difference."""

import json
import re
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import train
from tf_detectorgan.batch import Labelled
from tf_detectorgan.errors import InputError
from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.training import build, exactness, phases, second_order
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


def test_kinks_are_named(tiny):
    """The toy has none; the small RetinaNet has the ReLUs of its backbone and its heads."""
    assert second_order.kinks(tiny.ToyDetector(), (32, 32, 1)) == []
    DET = retinanet.small((32, 32, 1), 1, width=16)
    found = second_order.kinks(DET, (32, 32, 1))
    # 2 of the stem, 3 of each of 3 levels; 2 heads of 2 layers run on 3 levels
    assert len(found) == 2 + 3 * 3 + 2 * 2 * 3
    assert all(name.endswith("Relu") for name in found)
    assert any("P3" in name for name in found)

    run = types.SimpleNamespace(detector=DET, dataset=types.SimpleNamespace(image_shape=(32, 32, 1)))
    run.settings = Train(unroll="finite_difference")
    with pytest.raises(InputError, match=r"23 ops .*Relu.*--unroll=exact, or --force_finite_difference"):
        train.refuse_kinks(run)
    for settings in (
        Train(),
        Train(unroll="finite_difference", force_finite_difference=True),
        Train(unroll="finite_difference", arm=("acgan", "cut_paste")),
    ):
        run.settings = settings
        train.refuse_kinks(run)


@pytest.mark.parametrize(
    "function,found",
    [
        (tf.abs, "Abs"),
        (lambda x: x * tf.reduce_max(x, [1, 2], keepdims=True), "Max"),
        (lambda x: x * tf.reduce_min(x, [1, 2], keepdims=True), "Min"),
        (lambda x: tf.maximum(x, 0), "Maximum"),
        (lambda x: tf.minimum(x, 0), "Minimum"),
        (tf.nn.selu, "Selu"),
        (lambda x: tf.nn.max_pool_with_argmax(x, 2, 2, "SAME")[0], "MaxPoolWithArgmax"),
        (lambda x: tf.nn.max_pool3d(x[..., None], 2, 2, "SAME")[..., 0], "MaxPool3D"),
        (
            lambda x: tf.raw_ops.MaxPoolV2(input=x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME"),
            "MaxPoolV2",
        ),
        (lambda x: tf.raw_ops.ClipByValue(t=x, clip_value_min=0.0, clip_value_max=1.0), "ClipByValue"),
        (
            tf.function(lambda x: tf.cond(tf.size(x) > 0, lambda: tf.nn.relu(x), lambda: x)),
            "PartitionedCall/cond/.*Relu",
        ),
        (lambda x: x[:, : tf.maximum(1, tf.shape(x)[1])], None),
        (tf.nn.silu, None),
    ],
)
def test_kinks_of_every_kind(tiny, function, found):
    """In nested functions and branches too; not of integers, as those of shapes."""
    layer = keras.layers.Lambda(function, name="planted")
    names = second_order.kinks(tiny.ToyDetector(layer), (32, 32, 1))
    assert [bool(re.search(f"planted.*/{found}", name)) for name in names] == [True] * (found is not None)


def test_cosine_is_near_1_without_kinks(tiny):
    DET, optimizer = tiny.ToyDetector(), keras.optimizers.SGD(0.05)
    optimizer.build(DET.network.trainable_variables)
    y, synthetic, y2 = (tiny.labelled(np.random.default_rng(k), 2) for k in range(3))
    assert 0.99 < exactness.cosine(DET, optimizer, y, synthetic, y2) <= 1.0001
    # On an image that L~_real does not depend on, both are 0.
    frozen = keras.optimizers.SGD(0.0)
    frozen.build(DET.network.trainable_variables)
    assert exactness.cosine(DET, frozen, y, synthetic, y2) == 0


def test_the_cosine_of_a_joint_phase_is_printed_and_kept(tiny, tmp_path, monkeypatch, capsys):
    """On the phase's first batch, before a step is taken; only where Eqn 3 goes by a finite difference."""
    batch, players = tiny.batch(), tiny.players()
    DET = tiny.ToyDetector()
    settings = Train(unroll="finite_difference", run_dir=str(tmp_path))
    run = types.SimpleNamespace(
        settings=settings,
        path=tmp_path,
        strategy=tf.distribute.get_strategy(),
        workers=Workers(),
        detector=DET,
        arm_path=lambda name: tmp_path / name,
        players=lambda kind: players,
        skips=lambda *_: False,
        load=lambda *_: None,
    )
    monkeypatch.setattr(phases, "pretrained", lambda *_: tmp_path)
    monkeypatch.setattr(phases, "joint_function", lambda *_: None)
    monkeypatch.setattr(phases, "_joint_batches", lambda *_: [batch])
    kept, seen = tmp_path / "detectorgan" / "joint" / "finite_difference.json", []
    monkeypatch.setattr(phases, "_train_generators", lambda *_: seen.append(kept.exists()))
    phases.joint(run, "detectorgan")

    x_syn = players.gan.insert(batch.x, batch.insertion)
    inserted = Labelled(x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
    optimizer = build.joint_detector_optimizer(settings, DET, run.strategy)
    expected = exactness.cosine(DET, optimizer, batch.y, inserted, batch.y2)
    assert 0.9 < expected <= 1.0001
    assert json.loads(kept.read_text("utf-8")) == {"cosine_to_exact": pytest.approx(expected)}
    said = f"detectorgan/joint: finite_difference's gradient has cosine {expected:.3f} to the exact one"
    assert said in capsys.readouterr().out

    kept.unlink()
    run.settings = Train(run_dir=str(tmp_path))
    phases.joint(run, "detectorgan")
    assert seen == [True, False]
    assert "cosine" not in capsys.readouterr().out
