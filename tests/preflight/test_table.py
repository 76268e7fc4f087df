"""Compares the table of a preflight with hand arithmetic on given records and files."""

import json

import pytest

from tf_detectorgan.preflight import outcome
from tf_detectorgan.preflight.outcome import PhaseCost
from tf_detectorgan.preflight.plan import phases
from tf_detectorgan.training.settings import Train


def put(home, folder, record, **files):
    """Writes files of given sizes and done.json; returns their total size in bytes."""
    (home / folder).mkdir(parents=True)
    text = json.dumps(record)
    (home / folder / "done.json").write_text(text)
    for name, count in files.items():
        (home / folder / name.replace("__", ".")).write_bytes(b"x" * count)
    return len(text) + sum(files.values())


@pytest.fixture
def settings():
    """Returns the settings of a run with one arm."""
    return Train(
        arm=("cut_paste",), crossfit_folds=0, final_detector_steps=1000, validate_every=300,
        checkpoint_every=400, synthetic_count=90, log_every=10,
    )  # fmt: skip


@pytest.fixture
def pairs(settings):
    short = Train(arm=("cut_paste",), crossfit_folds=0, final_detector_steps=3, synthetic_count=30)
    return list(zip(phases(settings, 500), phases(short, 10), strict=True))


def test_rows_have_hours_memory_and_disk_of_each_phase(tmp_path, settings, pairs):
    images, final, evaluation = (whole for whole, _ in pairs)
    record = {"seconds": 20.0, "image_seconds": 0.5, "peak_memory_mib": 100}
    fixed = put(tmp_path, images.folder, record, gallery__html=1000, synthetic__tfrecord=200)
    record = {"seconds": 30.0, "first_step_seconds": 25.0, "step_seconds": 2.0}
    memory = {"peak_memory_mib": 300, "gpu_peak_memory_mib": 700}
    checkpoint = put(tmp_path, final.folder, record | memory, ckpt=5000)
    record = {"seconds": 4.0, "image_seconds": 0.25, "peak_memory_mib": 50}
    scores = put(tmp_path, evaluation.folder, record, detections__json=60)
    # Four validations of 40 images: after 300, 600, 900 and 1000 steps. Two of three checkpoints are kept.
    trained = 30 + 997 * 2.0 + 4 * 40 * 0.25
    assert outcome.rows(tmp_path, pairs, settings, 40) == [
        PhaseCost(images, 0.5, (20 + 60 * 0.5) / 3600, 100, 100, fixed + 2 * 200),
        PhaseCost(final, 2.0, trained / 3600, 700, 300, 2 * checkpoint),
        PhaseCost(evaluation, 0.25, (4 + 490 * 0.25) / 3600, 50, 50, 50 * scores),
    ]


def test_unfinished_short_run_has_rows_of_finished_phases_only(tmp_path, settings, pairs):
    put(tmp_path, "arms/cut_paste/synthetic", {"seconds": 1.0, "image_seconds": 0.1, "peak_memory_mib": 1})
    assert [row.phase.kind for row in outcome.rows(tmp_path, pairs, settings, 40)] == ["images"]
    assert outcome.rows(tmp_path / "missing", pairs, settings, 40) == []


def test_text_has_total_hours_and_disk_and_highest_memory(pairs):
    (images, _), (final, _), _ = pairs
    found = [PhaseCost(images, 0.5, 0.25, 512, 512, 2**30), PhaseCost(final, None, 1.5, 2048, 512, 2**29)]
    lines = outcome.text(found, others=2**28).splitlines()
    assert lines[2].split() == ["cut_paste/synthetic", "0.5", "90", "0.25", *"0.50 GiB 1.00 GiB".split()]
    assert lines[3].split() == ["cut_paste/final_detector", "–", "1000", "1.50", *"2.00 GiB 0.50 GiB".split()]
    assert lines[5].split() == ["total", "1.75", *"2.00 GiB 1.75 GiB".split()]
