import numpy as np
import pytest

from tests.evaluation.test_froc import image
from tf_detectorgan.evaluation.average_precision import match
from tf_detectorgan.evaluation.curves import (
    precision_at_recall,
    precision_band,
    sensitivity_at_rates,
    sensitivity_band,
)
from tf_detectorgan.evaluation.froc import froc

RATES = np.array([0.1, 0.3, 1.0, 3.0])


def some_images(count=30, classes=2):
    """Images with 0 to 2 objects and a few detections each, many of equal score."""
    random = np.random.default_rng(3)
    pairs = []
    for number in range(count):
        guesses = [(int(n), float(s) / 4) for n, s in random.integers(0, 4, (random.integers(0, 5), 2))]
        truth, found = image(number, int(random.integers(0, 2)), guesses)
        labels = random.integers(0, classes, len(truth.labels)), random.integers(0, classes, len(guesses))
        pairs.append(
            (truth._replace(groups=(f"g{number // 2}",), labels=labels[0]), found._replace(labels=labels[1]))
        )
    return zip(*pairs, strict=True)


def test_unit_weights_give_coco_precision_and_froc():
    truth, found = some_images()
    matches = match(truth, found, ["a", "b"], (0.1,))
    ones = np.ones((1, 30), int)
    np.testing.assert_allclose(precision_at_recall(matches, ones, 0.1)[0], matches.precision[0], atol=1e-9)
    curve = froc(matches, 0.1)["curve"]
    false, sensitivity = np.array([0.0, *curve["fp_per_image"]]), np.array([0.0, *curve["sensitivity"]])
    wanted = [sensitivity[false <= rate].max() for rate in RATES]
    assert sensitivity_at_rates(matches, ones, 0.1, RATES)[0] == pytest.approx(wanted)


def test_a_weight_is_that_many_copies_of_the_image():
    truth, found = map(list, some_images())
    weights = np.random.default_rng(0).integers(0, 3, len(truth))
    copies = [i for i, weight in enumerate(weights) for _ in range(weight)]
    many = match(
        [truth[i]._replace(image_id=n) for n, i in enumerate(copies)],
        [found[i]._replace(image_id=n) for n, i in enumerate(copies)],
        ["a", "b"],
        (0.1,),
    )
    few, ones = match(truth, found, ["a", "b"], (0.1,)), np.ones((1, len(copies)), int)
    np.testing.assert_allclose(precision_at_recall(few, weights[None], 0.1)[0], many.precision[0], atol=1e-9)
    np.testing.assert_allclose(
        sensitivity_at_rates(few, weights[None], 0.1, RATES), sensitivity_at_rates(many, ones, 0.1, RATES)
    )


def test_band_contains_the_curve_and_has_zero_width_for_equal_groups():
    truth, found = some_images()
    matches = match(truth, found, ["a", "b"], (0.1,))
    low, high = precision_band(matches, 0.1, 200, 0)
    own = matches.precision[0].mean(axis=1)
    assert ((low <= own) & (own <= high)).mean() > 0.9
    assert (high - low).max() > 0.1
    same = [image(n, 1, [(0, 0.9), (1, 0.5)]) for n in range(9)]
    low, high = sensitivity_band(match(*zip(*same, strict=True), ["a"], (0.1,)), 0.1, RATES, 50, 0)
    assert low.tolist() == high.tolist() == [1.0] * 4
