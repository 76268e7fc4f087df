import json
import re
import shutil

import pytest

from tf_detectorgan import evaluate
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluate import Evaluate
from tf_detectorgan.evaluation.records import truth_from_json
from tf_detectorgan.training import run_directory


@pytest.fixture
def run_dir(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def score(run_dir, **options):
    evaluate.main(Evaluate(run_dir=str(run_dir), **options))


def read(path):
    return json.loads(path.read_text("utf-8"))


def test_evaluate_reproduces_the_metrics_of_training(run_dir, finished_run, capsys):
    folder = run_dir / "arms" / "cut_paste" / "evaluation"
    shutil.rmtree(folder)
    score(run_dir)
    trained = finished_run / "arms" / "cut_paste" / "evaluation"
    assert read(folder / "metrics.json") == read(trained / "metrics.json")
    assert read(folder / "detections.json") == read(trained / "detections.json")
    printed = capsys.readouterr().out
    recall = read(folder / "metrics.json")["recall"]["0.1"]["value"]
    assert re.search(rf"\nrecall@0\.1 +{recall:.2f} \[", printed)
    assert f"cut_paste: metrics and detections in {folder}" in printed


def test_evaluation_set_has_its_own_directory(run_dir, tiny_phantom, capsys):
    before = read(run_dir / "arms" / "cut_paste" / "evaluation" / "metrics.json")
    score(run_dir, data_dir=str(tiny_phantom("elsewhere", seed=9, test_images=3)), split="test")
    (folder,) = (run_dir / "arms" / "cut_paste" / "evaluation").glob("elsewhere-*")
    other = read(folder / "metrics.json")
    assert before["counts"]["images"] == 4 + 2
    assert other["counts"]["images"] == 3 + 2
    assert len(truth_from_json(read(folder / "truth.json"))) == 5
    assert read(run_dir / "arms" / "cut_paste" / "evaluation" / "metrics.json") == before
    assert len(read(run_dir / "truth.json")) == 6
    assert "elsewhere" in capsys.readouterr().out


def test_moved_data_set_is_recognised_as_the_runs_own(run_dir, tmp_path):
    own = read(run_dir / "config.json")["data_dir"]
    moved = shutil.copytree(own, tmp_path / "moved")
    assert run_directory.reopen(str(run_dir)).evaluation_set == ""
    assert run_directory.reopen(str(run_dir), str(moved)).evaluation_set == ""


def test_changed_primary_iou_is_scored_again(run_dir):
    config = read(run_dir / "config.json")
    (run_dir / "config.json").write_text(json.dumps({**config, "primary_iou": 0.5}), "utf-8")
    score(run_dir)
    metrics = read(run_dir / "arms" / "cut_paste" / "evaluation" / "metrics.json")
    assert (metrics["primary_iou"], metrics["froc"]["iou"]) == (0.5, 0.5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arm": ("cut_paste", "acgan")}, "no final detector of acgan \\(finished: cut_paste\\)"),
        ({"data_dir": "smaller"}, "image_shape is \\[16, 16, 1\\], but the run has \\[32, 32, 1\\]"),
        ({"data_dir": "unvalidated", "split": "validation"}, "has no validation split"),
        ({"data_dir": "nowhere"}, "not a prepared data set"),
    ],
)
def test_invalid_options_raise(run_dir, tiny_phantom, options, message):
    changes = {"smaller": {"size": 16}, "unvalidated": {"validation_images": 0}}.get(options.get("data_dir"))
    if changes:
        options = {**options, "data_dir": str(tiny_phantom(options["data_dir"], **changes))}
    with pytest.raises(InputError, match=message):
        score(run_dir, **options)


def test_directory_without_a_run_raises(tmp_path):
    with pytest.raises(InputError, match="no run there"):
        score(tmp_path)


def test_missing_data_set_raises(run_dir, tmp_path):
    config = read(run_dir / "config.json")
    (run_dir / "config.json").write_text(json.dumps({**config, "data_dir": str(tmp_path / "gone")}), "utf-8")
    with pytest.raises(
        InputError, match="gone: the data set of .* is missing; give its path with --data_dir"
    ):
        score(run_dir)


def test_run_of_another_version_raises(run_dir):
    config = read(run_dir / "config.json")
    (run_dir / "config.json").write_text(json.dumps({**config, "lambda_magic": 1}), "utf-8")
    with pytest.raises(InputError, match="written by another version, .*lambda_magic"):
        score(run_dir)
