"""Compares estimated hours with hand arithmetic, and tests which flagfiles of configs/ exceed an hour."""

import dataclasses
import types
from pathlib import Path

import pytest

from tf_detectorgan.config import parse
from tf_detectorgan.preflight import check, plan
from tf_detectorgan.training.settings import Train

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def sides(monkeypatch):
    """Returns a dictionary data_dir -> image size that replaces prepared data sets."""
    found = {}
    opened = lambda data_dir: types.SimpleNamespace(image_shape=(found[data_dir],) * 2)  # noqa: E731
    monkeypatch.setattr(plan.records, "open_dataset", opened)
    return found


def flags(name):
    return parse(Train, [f"--flagfile={CONFIGS / name}.flags"])


def test_hours_match_hand_arithmetic(sides, tmp_path):
    sides["here"] = 100
    s = Train(arm=("cyclegan_bbox",), data_dir="here", generator_filters=10, generator_blocks=2)
    s = dataclasses.replace(
        s, gan_batch=3, pretrain_gan_steps=7, joint_steps=4, detector_batch=5, final_detector_steps=20
    )
    s = dataclasses.replace(s, crossfit_folds=0)
    macs = 98 * 10 + (45 + 18 * 2) * 10**2  # per pixel
    seconds = (7 + 4) * 3 * 100**2 * (macs * 2.4e-10 + 2.3e-5) + 20 * 5 * 100**2 * 3e-6
    assert plan.hours(s, tmp_path, {}) == pytest.approx(seconds / 3600)
    assert plan.hours(dataclasses.replace(s, workers=2), tmp_path, {}) == pytest.approx(seconds / 7200)
    (tmp_path / "nvidia0").touch()
    assert plan.hours(s, tmp_path, {}) == pytest.approx(seconds / 360000)
    assert plan.hours(s, tmp_path, {"CUDA_VISIBLE_DEVICES": "-1"}) == pytest.approx(seconds / 3600)


def test_estimated_joint_steps_are_in_the_measured_range():
    for name, side, low, high in (("demo", 64, 0.41, 0.5), ("nih", 512, 53, 67)):
        assert low <= plan.gan_step_seconds(flags(name), side) <= high


def test_preflight_is_due_for_paper_sized_flagfiles_only(sides, tmp_path):
    sides |= {"data/nih": 512, "data/cityscapes": 256, "data/tiles": 64, "data/pennfudan": 64}
    due = {}
    for name in ("demo", "cpu_tiles", "cpu_pennfudan", "nih", "cityscapes"):
        due[name] = check.due(dataclasses.replace(flags(name), run_dir=str(tmp_path)), {})
    assert due == {"demo": False, "cpu_tiles": False, "cpu_pennfudan": False, "nih": True, "cityscapes": True}
    on_a_gpu = plan.hours(flags("nih"), tmp_path, {}) / plan.GPU
    assert on_a_gpu > check.LONG


def test_preflight_is_due_for_many_short_runs(tmp_path):
    s = dataclasses.replace(flags("demo"), run_dir=str(tmp_path))
    assert check.due(s, {}, runs=40)
