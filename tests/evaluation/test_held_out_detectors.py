"""Cross-fitted detectors: training sets are disjoint from the scored fold; scores and ranks by hand."""

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.batch import Detections
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation import held_out_detectors
from tf_detectorgan.evaluation.held_out_detectors import Fold, HeldOutDetectors


@pytest.fixture(scope="module")
def dataset(tiny_phantom):
    """8 labelled images of 6 patients: 0, 1 (two images), 3, 4, 5 (two), 7."""
    return records.open_dataset(tiny_phantom("folds", train_images=8))


def test_folds_contain_whole_groups_and_training_part_excludes_the_fold(dataset):
    assigned = held_out_detectors.assign_folds(dataset, 2)
    assert [fold for _, fold in assigned] == [0, 1, 1, 0, 1, 0, 0, 1]
    for k in (0, 1):
        trained_on = {
            int(r.image_id)
            for r in held_out_detectors.training_part(dataset, assigned, k).map(dataset.decode)
        }
        assert trained_on == {image_id for image_id, fold in assigned if fold != k}
    with pytest.raises(InputError, match="form 6 group"):
        held_out_detectors.assign_folds(dataset, 7)


@pytest.mark.parametrize("scores, images, expected", [([0.3, 0.9, 0.5], 2, 0.3), ([0.3, 0.9], 2, 0.0)])
def test_threshold_allows_one_false_positive_per_image(scores, images, expected):
    assert held_out_detectors.threshold(np.array(scores), images) == pytest.approx(expected)
    assert (np.array(scores) > held_out_detectors.threshold(np.array(scores), images)).sum() <= images


def fixed(*found):
    """Returns a detector with constant detections (box, score, label), and a padded one at the end."""
    boxes, scores, labels = zip(*found, ([0, 0, 0, 0], 0.0, -1), strict=True)

    def detect(images, weights):
        one = np.float32(boxes), np.float32(scores) * weights[0], np.int32(labels)
        return Detections(*(tf.constant(np.repeat(v[None], len(images), 0)) for v in one))

    return detect


def test_calibration_by_hand(dataset):
    """The detector finds the first image's first object with score 0.6, and has two false positives."""
    first = next(iter(dataset.serialized("train_labelled").map(dataset.decode)))
    corners = [([0, 0, 2, 2], 0.8, 0), ([30, 30, 32, 32], 0.4, 0)]
    detect = fixed(corners[0], (first.boxes[0].numpy(), 0.6, 0), corners[1])
    fold = held_out_detectors.calibrate(detect, [1.0], dataset, [int(first.image_id)], iou=0.5)
    assert fold.threshold == pytest.approx(0.4)
    assert fold.real[-1] == pytest.approx(0.6)
    assert len(fold.real) == len(first.labels)


def test_objects_are_scored_by_the_detector_of_their_match_fold():
    """DET_1's scores are half of DET_0's; other places and classes, and missed real objects, do not count."""
    detect = fixed(([0, 0, 10, 10], 0.8, 0), ([20, 20, 30, 30], 0.6, 1))
    folds = [Fold([1.0], 0.5, np.array([0.0, 0.7, 0.9])), Fold([0.5], 0.5, np.array([0.4, 0.5]))]
    held_out = HeldOutDetectors(detect, 0.5, {7: 0, 8: 1}, folds)
    boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30], [20, 20, 30, 30], [5, 0, 15, 10]])
    scored = held_out.score_objects(np.zeros((5, 4, 4, 1)), boxes, np.int32([0, 0, 0, 1, 0]), [7, 8, 7, 8, 7])
    #                          0.8 of DET_0, 0.4 of DET_1, another class, 0.3 of DET_1, IoU 1/3
    np.testing.assert_array_equal(scored["found"], [1, 0, 0, 0, 0])
    np.testing.assert_allclose(scored["rank"], [0.667, 0.5, 0, 0, 0])
    assert held_out.found_real() == pytest.approx(2 / 5)
