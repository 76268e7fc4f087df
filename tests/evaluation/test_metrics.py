import json

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Detections
from tf_detectorgan.evaluation.metrics import evaluate, with_current_keys
from tf_detectorgan.evaluation.records import (
    Found,
    Truth,
    found_of,
    from_coco_results,
    to_coco_results,
    truth_from_json,
    truth_to_json,
    write_json,
)


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    truth, found = [], []
    for i in range(20):
        boxes = np.tile(rng.uniform(0, 50, (i % 3, 2)), 2) + [0, 0, 12, 9]
        truth.append(Truth(i, (f"patient {i // 2}",), boxes, rng.integers(0, 2, i % 3), (64, 80)))
        found.append(
            Found(
                i,
                (boxes + 1).astype(np.float32),
                rng.random(i % 3).astype(np.float32),
                np.array(truth[-1].labels),
            )
        )
    return truth, found


def test_evaluate_returns_json_with_values_by_hand(pair):
    truth, found = pair
    result = evaluate(truth, found, ["nodule", "mass", "never"], resamples=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["ap"]) == ["0.1", "0.2", "0.3", "0.5", "0.75", "0.5:0.95"]
    # all detections are shifted by one pixel: IoU = 11 * 8 / (2 * 108 - 88)
    assert result["ap"]["0.5"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
    assert result["ap"]["0.75"]["value"] == 0.0
    assert result["recall"]["0.1"]["value"] == 1.0
    assert result["froc"]["sensitivity"]["0.125"] == 1.0
    assert result["per_class"]["never"]["ap"]["0.1"] == {"value": None, "low": None, "high": None}
    assert result["per_class"]["never"]["localization"]["iou"]["0.1"]["n"] == 0
    boxes = sum(len(t.labels) for t in truth)
    assert result["counts"] == {
        "images": 20,
        "images_with_truth": 13,
        "groups": 10,
        "groups_with_truth": 10,
        "boxes": boxes,
        "detections": boxes,
    }
    assert sum(result["per_class"][c]["boxes"] for c in ("nodule", "mass")) == boxes
    assert "only 10 groups" in result["note"]
    assert set(result["precision_recall"]["0.1"]) == {"nodule", "mass"}


def test_ap_is_averaged_over_classes_not_boxes(pair):
    truth, found = pair
    found = [f._replace(scores=f.scores[f.labels == 0], boxes=f.boxes[f.labels == 0]) for f in found]
    found = [f._replace(labels=np.zeros(len(f.scores), int)) for f in found]
    result = evaluate(truth, found, ["nodule", "mass"], resamples=10)
    assert result["ap"]["0.1"]["value"] == pytest.approx(0.5)
    assert result["per_class"]["mass"]["ap"]["0.1"]["value"] == 0.0


def test_coco_results_round_trip(pair):
    _, found = pair
    back = from_coco_results(json.loads(json.dumps(to_coco_results(found))), [f.image_id for f in found])
    for one, other in zip(found, back, strict=True):
        for name in ("image_id", "boxes", "scores", "labels"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_coco_results_are_xywh_with_categories_from_1():
    result = to_coco_results([Found(3, np.array([[1.0, 2, 5, 10]]), np.array([0.5]), np.array([0]))])
    assert result == [{"image_id": 3, "category_id": 1, "bbox": [1.0, 2.0, 4.0, 8.0], "score": 0.5}]


def test_truth_json_round_trip(pair):
    truth, _ = pair
    for one, other in zip(truth, truth_from_json(json.loads(json.dumps(truth_to_json(truth)))), strict=True):
        assert (one.image_id, one.groups, one.size) == (other.image_id, other.groups, other.size)
        np.testing.assert_array_equal(one.boxes, other.boxes)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_found_of_drops_padding():
    batch = Detections(
        tf.constant([[[0.0, 0, 4, 4], [1, 1, 2, 2]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        tf.constant([[0.9, 0.1], [0.0, 0.0]]),
        tf.constant([[0, 1], [-1, -1]]),
    )
    first, second = found_of([7, 8], batch)
    assert (first.image_id, first.labels.tolist(), second.image_id, len(second.scores)) == (7, [0, 1], 8, 0)
    with pytest.raises(ValueError):
        found_of([7], batch)


def test_write_json_is_atomic(tmp_path):
    path = tmp_path / "deep" / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["metrics.json"]


def test_metrics_of_older_versions_are_read_by_the_current_key():
    assert with_current_keys({"main_iou": 0.5, "ap": 1})["primary_iou"] == 0.5
    assert with_current_keys({"primary_iou": 0.1}) == {"primary_iou": 0.1}
