import numpy as np
import pytest

from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import THRESHOLDS, match, mean_over_classes
from tf_detectorgan.evaluation.records import Found, Truth
from tf_detectorgan.evaluation.statistics import (
    Difference,
    Interval,
    bootstrap_ap,
    exact_interval,
    holm,
    independent_units,
    over_seeds,
    percentile_interval,
    seeds_difference,
    seeds_sentence,
    sentence,
    small_note,
    two_sided_p,
)

BOX, AWAY = [0.0, 0, 10, 10], [50.0, 50, 60, 60]


def images(hits, groups=None, thresholds=THRESHOLDS):
    """Returns the matches of one object per image: found where `hits`, otherwise a false positive."""
    truth = [
        Truth(i, (f"g{i if groups is None else groups[i]}",), np.array([BOX]), np.array([0]), (99, 99))
        for i in range(len(hits))
    ]
    found = [
        Found(i, np.array([BOX if hit else AWAY]), np.array([0.5 + i / 1000]), np.array([0]))
        for i, hit in enumerate(hits)
    ]
    return match(truth, found, ["a"], thresholds)


def test_exact_interval_by_hand():
    """0 of n: the upper end p solves (1-p)^n = 0.025; n of n mirrors it."""
    assert exact_interval(0, 20) == (0.0, 0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert exact_interval(20, 20) == (1.0, pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert exact_interval(0, 0) == (None, None, None)


def test_units_are_joined_through_shared_groups():
    units = independent_units([("a",), ("b",), ("a", "c"), (), ("c",), ()])
    assert units[0] == units[2] == units[4]
    assert len(set(units)) == 4
    assert units.max() == 3


def test_recall_interval_equals_numpys_bootstrap():
    """With one image per group, recall is a mean, and its bootstrap is NumPy's choice with replacement."""
    hits = np.random.default_rng(0).random(60) < 0.5
    got = bootstrap_ap(images(hits), resamples=4000, seed=1).interval("recall", "0.1")
    means = np.random.default_rng(2).choice(hits, (4000, 60)).mean(axis=1)
    assert got.value == pytest.approx(hits.mean())
    np.testing.assert_allclose(got[1:], np.percentile(means, [2.5, 97.5]), atol=0.02)


def test_interval_is_twice_as_wide_for_groups_of_four_equal_images():
    """30 groups of 4 equal images are 30 independent trials, not 120, so the interval is twice as wide."""
    hits = np.repeat(np.arange(30) % 2 == 0, 4)
    grouped = bootstrap_ap(images(hits, np.repeat(np.arange(30), 4)), seed=0)
    alone = bootstrap_ap(images(hits), seed=0)
    assert (grouped.groups, alone.groups) == (30, 120)
    width = [i.high - i.low for i in (b.interval("recall", "0.1") for b in (grouped, alone))]
    assert width[0] / width[1] == pytest.approx(2.0, rel=0.15)


@pytest.mark.nightly
def test_coverage_of_the_bootstrap():
    """About 95 % of the intervals contain the true recall 0.6: at least 86 of 100 (fewer: p < 0.001)."""
    rng, inside = np.random.default_rng(5), 0
    for seed in range(100):
        low, high = bootstrap_ap(images(rng.random(60) < 0.6, thresholds=(0.1,)), 200, seed).interval(
            "recall", "0.1"
        )[1:]
        inside += low <= 0.6 <= high
    assert 86 <= inside <= 100


def test_bootstrap_is_a_function_of_the_seed():
    matches = images(np.arange(40) % 3 == 0)
    one, two, other = (bootstrap_ap(matches, 100, seed).ap["0.1"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert (one[1:] != other[1:]).any()
    assert (one[0] == other[0]).all()


def test_paired_interval_excludes_zero_though_single_intervals_overlap():
    """The arms differ in 6 of 60 images: their own intervals overlap widely, the paired one excludes 0."""
    hits = np.random.default_rng(0).random(60) < 0.5
    better = hits.copy()
    better[np.flatnonzero(~hits)[:6]] = True
    a, b = (bootstrap_ap(images(h), seed=0) for h in (better, hits))
    assert a.interval("recall", "0.1").low < b.interval("recall", "0.1").high
    difference = seeds_difference([a], [b], "recall", "0.1")
    assert difference.interval.value == pytest.approx(0.1)
    assert 0 < difference.interval.low < 0.1 < difference.interval.high
    rows = mean_over_classes(a.recall["0.1"]) - mean_over_classes(b.recall["0.1"])
    assert difference.interval == percentile_interval(rows)
    back = seeds_difference([b], [a], "recall", "0.1").interval
    np.testing.assert_allclose(back, [-difference.interval[i] for i in (0, 2, 1)])


def test_difference_of_an_arm_to_itself_is_zero():
    arm = bootstrap_ap(images(np.arange(30) % 2 == 0))
    assert seeds_difference([arm], [arm]).interval == (0.0, 0.0, 0.0)
    assert sentence("a", "a", seeds_difference([arm], [arm])).endswith("30 groups: no difference shown")


def test_pairing_different_images_raises():
    one, two = bootstrap_ap(images([True] * 5)), bootstrap_ap(images([True] * 6))
    with pytest.raises(InputError, match="same test images"):
        seeds_difference([one], [two])


def test_interval_ignores_resamples_without_objects():
    matches = images([True, False])
    clean = matches._replace(classes=(matches.classes[0]._replace(truths=np.array([1, 0])),))
    interval = bootstrap_ap(clean, 50).interval("recall", "0.1")
    assert None not in interval
    assert not np.isnan(interval).any()
    assert percentile_interval(np.array([np.nan, 1.0])) == (None, None, None)
    assert percentile_interval(np.array([0.5, np.nan])) == (0.5, None, None)


def test_sentence_by_hand():
    def text(value, low, high, groups=80):
        interval = Interval(value, low, high)
        return sentence("detectorgan", "cut_paste", Difference(interval, 0.5, 0.002, 1, groups, groups))

    assert (
        text(0.03, -0.01, 0.07)
        == "detectorgan − cut_paste = +0.03 [−0.01, +0.07], 80 groups: no difference shown"
    )
    assert text(0.03, 0.01, 0.07).endswith("80 groups: detectorgan is better")
    assert text(-0.03, -0.07, -0.01).endswith("[−0.07, −0.01], 80 groups: cut_paste is better")
    assert "only 13 groups with objects, so intervals are too narrow" in text(0.15, 0.01, 0.2, groups=13)
    assert "undefined" in text(None, None, None)


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1 is 0.03, 0.06, 0.04; the last may not be below the one before."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_two_sided_p_by_hand():
    """One of 99 resamples at or below 0: (1 + 1) / 100, doubled."""
    assert two_sided_p(np.array([0.5, -0.1] + [0.3] * 98)) == pytest.approx(0.04)
    assert two_sided_p(np.array([0.0] + [0.0] * 99)) == 1.0
    assert two_sided_p(np.array([np.nan, np.nan])) is None


def test_over_seeds_has_the_variance_of_seeds_and_groups():
    """Recall of seed s has mean m_s over groups: its variance is that of groups plus that of drawn seeds."""
    rng = np.random.default_rng(3)
    runs = [bootstrap_ap(images(rng.random(400) < share), 2000) for share in (0.2, 0.5, 0.8)]
    draws = over_seeds(runs, "recall", "0.1")
    recalls = [run.recall["0.1"][0, 0] for run in runs]
    assert draws[0] == pytest.approx(np.mean(recalls))
    assert draws[1:].std() ** 2 == pytest.approx(np.var(recalls) / 3, rel=0.15)  # the groups' share is 1 %
    same = [runs[1]] * 3
    np.testing.assert_allclose(over_seeds(same, "recall", "0.1"), runs[1].recall["0.1"][:, 0])


def test_seeds_difference_is_paired_by_seed():
    """The second arm misses one in ten objects that the first finds; the paired test is significant."""
    rng = np.random.default_rng(4)
    first = [rng.random(200) < share for share in (0.3, 0.5, 0.7)]
    second = [hits & (np.arange(200) % 10 > 0) for hits in first]
    a, b = ([bootstrap_ap(images(hits), 500) for hits in arm] for arm in (first, second))
    found = seeds_difference(a, b, "recall", "0.1")
    assert found.interval.value == pytest.approx(np.mean(first) - np.mean(second))
    assert found.interval.low > 0
    assert (found.seeds, found.groups, found.p) == (3, 200, pytest.approx(2 / 501))
    assert (found.least_p, found.groups_with_truth) == (found.p, 200)
    better = seeds_sentence("a", "b", found, 0.01)
    assert better.endswith("p ≤ 0.010 (Holm): a is better (only 3 seeds: the true interval is wider)")
    few = seeds_sentence("a", "b", found._replace(seeds=1, groups_with_truth=9, p=0.1), 0.01)
    assert "], 1 seed, 200 groups, p 0.010 (Holm)" in few
    assert few.endswith("(only 1 seed: the true interval is wider; " + small_note(9) + ")")
    assert seeds_sentence("a", "b", found._replace(seeds=5), 0.01).endswith("a is better")
    assert "no difference shown" in seeds_sentence("a", "b", found, 0.2)  # after the correction
    same = seeds_sentence("a", "a", seeds_difference(a, a, "recall", "0.1"), 1.0)
    assert "(Holm): no difference shown; the interval is narrower than 0.001 (" in same
    assert "no difference shown; one under 0." in seeds_sentence("a", "b", found, 0.2)
    with pytest.raises(InputError, match="same seeds"):
        seeds_difference(a, b[:2])
    other = bootstrap_ap(images([True] * 7), 500)
    with pytest.raises(InputError, match="different test images"):
        over_seeds([a[0], other], "ap", "0.1")
