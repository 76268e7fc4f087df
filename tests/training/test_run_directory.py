"""A run directory that is created and reopened."""

import pytest
import tensorflow as tf

from tf_detectorgan.training import run_directory
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers


@pytest.mark.parametrize("deterministic", [True, False])
def test_op_determinism_is_enabled_by_the_settings(deterministic, tiny_phantom, tmp_path, monkeypatch):
    """When a run is created and when it is reopened; TensorFlow cannot disable it within a process."""
    calls = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: calls.append(True))
    monkeypatch.setattr(StopSignal, "install", lambda self: self)  # the signals are the test runner's
    data = str(tiny_phantom(f"deterministic_{deterministic}".lower()))
    run_directory.begin(Train(run_dir=str(tmp_path), data_dir=data, deterministic=deterministic), Workers())
    assert run_directory.reopen(str(tmp_path)).settings.deterministic == deterministic
    assert calls == [True, True] * deterministic
