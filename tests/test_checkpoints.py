"""The files of a phase: how they are written and read."""

import json
import os
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import checkpoints, disk
from tf_detectorgan.checkpoints import PhaseDirectory


def parts(value):
    """Returns a network and an optimizer; all their weights and momenta are `value`."""
    network = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    network.set_weights([np.full(w.shape, value) for w in network.get_weights()])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build(network.trainable_variables)
    for momentum in optimizer.momentums:
        momentum.assign(tf.fill(momentum.shape, float(value)))
    return {"network": network, "optimizer": optimizer}


def numbers(of):
    return np.concatenate(
        [np.ravel(w) for w in [*of["network"].get_weights(), *(m.numpy() for m in of["optimizer"].momentums)]]
    )


def test_restore_returns_the_saved_step_and_weights(tmp_path):
    phase = PhaseDirectory(tmp_path, parts(3))
    assert phase.restore() == 0
    phase.save(17)
    other = parts(0)
    assert PhaseDirectory(tmp_path, other).restore() == 17
    np.testing.assert_array_equal(numbers(other), np.full(18, 3))


def test_full_disk_keeps_the_existing_checkpoints(small_disk):
    subprocess.run(["mount", "-o", "remount,size=24k", small_disk], check=True)
    phase = PhaseDirectory(small_disk, parts(3))
    phase.save(1)
    checkpoints.write_text(small_disk / "note.txt", "old")
    before = sorted(os.listdir(small_disk))
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        phase.save(2)
    assert disk.fault(caught.value).endswith(": No space left on device")
    assert str(small_disk) in disk.fault(caught.value)
    with pytest.raises(OSError, match="No space left on device"):
        checkpoints.write_text(small_disk / "note.txt", "n" * 50_000)
    assert sorted(os.listdir(small_disk)) == before
    assert (small_disk / "note.txt").read_text() == "old"
    other = parts(0)
    assert PhaseDirectory(small_disk, other).restore() == 1
    np.testing.assert_array_equal(numbers(other), np.full(18, 3))


def test_restore_from_a_checkpoint_without_a_part_raises(tmp_path):
    """Otherwise a run would silently continue with initial weights."""
    saved = parts(1)
    PhaseDirectory(tmp_path, {"network": saved["network"]}).save(1)
    with pytest.raises(AssertionError):
        PhaseDirectory(tmp_path, parts(0)).restore()


def test_load_restores_only_the_given_parts(tmp_path):
    PhaseDirectory(tmp_path, parts(3)).save(5)
    loaded = parts(0)
    checkpoints.load(tmp_path, {"network": loaded["network"]})
    np.testing.assert_array_equal(numbers(loaded), [3] * 9 + [0] * 9)


def test_load_without_a_checkpoint_raises_with_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'joint'} has no checkpoint"):
        checkpoints.load(tmp_path / "joint", parts(0))


def test_load_of_a_part_that_was_not_saved_raises(tmp_path):
    PhaseDirectory(tmp_path, {"network": parts(3)["network"]}).save(5)
    with pytest.raises(AssertionError):
        checkpoints.load(tmp_path, {"G_X": parts(0)["network"]})


def test_fingerprint_changes_with_the_newest_weights(tmp_path):
    saved = parts(1)
    phase = PhaseDirectory(tmp_path, saved)
    phase.save(1)
    first = checkpoints.fingerprint(tmp_path)
    assert len(first) == 16
    assert first == checkpoints.fingerprint(tmp_path)
    weight = saved["network"].weights[0]
    weight.assign(np.nextafter(weight.numpy(), 2.0))  # the smallest possible change
    phase.save(2)
    assert checkpoints.fingerprint(tmp_path) != first


def test_finish_writes_the_record_that_finished_returns(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 5.0)
    assert checkpoints.finished(tmp_path) is None
    PhaseDirectory(tmp_path, parts(0)).finish({"steps": 3})
    found = json.loads((tmp_path / "done.json").read_text())
    assert checkpoints.finished(tmp_path) == {"steps": 3, "seconds": 0.0} == found


def test_seconds_include_earlier_calls(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.time, "monotonic", iter([10, 15, 100, 107]).__next__)
    PhaseDirectory(tmp_path, parts(0)).save(1)  # 10 to 15
    again = PhaseDirectory(tmp_path, parts(0))
    again.restore()
    again.finish({})  # 100 to 107
    assert checkpoints.finished(tmp_path) == {"seconds": 12.0}
    assert not (tmp_path / "seconds.json").exists()


def test_write_text_creates_directories_and_replaces_files(tmp_path):
    file = tmp_path / "a" / "b.json"
    for text in ("one", "zwölf"):
        checkpoints.write_text(file, text)
        assert file.read_text(encoding="utf-8") == text
        assert os.listdir(file.parent) == ["b.json"]


def test_write_text_interrupted_before_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "b.json"
    checkpoints.write_text(file, "old")

    def die(source, target):
        assert open(source, encoding="utf-8").read() == "new"  # complete before it is renamed
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.write_text(file, "new")
    assert file.read_text(encoding="utf-8") == "old"
