"""Confidence intervals: bootstrap over groups for AP, recall and paired differences, exact for k of n.

Letters: I images, U groups, R resamples, K classes. Whole groups (patients, scenes) are drawn, not boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import (
    Matches,
    average_precision,
    by_name,
    mean_over_classes,
    weighted,
)

LEVEL = 0.95
SMALL = 30  # with fewer groups with objects, the intervals are too narrow: docs/decisions/0021
FEW_SEEDS = 5  # with fewer seeds, likewise: docs/decisions/0021


class Interval(NamedTuple):
    """A value with the ends of its 95 % interval; None: undefined."""

    value: float | None
    low: float | None
    high: float | None


class Bootstrap(NamedTuple):
    """AP and recall by IoU name ("0.1", "0.5:0.95") of the whole set and of the resamples; NaN: undefined."""

    ap: dict[str, np.ndarray]  # [1 + R, K], row 0 is the whole set
    recall: dict[str, np.ndarray]  # [1 + R, K]
    image_ids: tuple[int, ...]
    groups: int  # number of independent units that were resampled
    groups_with_truth: int
    seed: int

    def interval(self, measure: str, iou: str, label: int | None = None) -> Interval:
        """Returns the interval of "ap" or "recall": of the mean over classes, or of class `label`."""
        values = getattr(self, measure)[iou]
        return percentile_interval(mean_over_classes(values) if label is None else values[:, label])


class Difference(NamedTuple):
    """First arm minus second arm, mean over seeds, on the same images."""

    interval: Interval
    p: float | None  # two-sided
    least_p: float  # lowest value that this number of resamples can give
    seeds: int
    groups: int
    groups_with_truth: int


def exact_interval(k: int, n: int) -> Interval:
    """Returns the Clopper-Pearson interval of k / n: at least 95 % coverage if trials are independent."""
    if n == 0:
        return Interval(None, None, None)
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, k, n - k + 1)) if k > 0 else 0.0
    high = float(stats.beta.ppf(1 - tail, k + 1, n - k)) if k < n else 1.0
    return Interval(k / n, low, high)


def percentile_interval(values: np.ndarray) -> Interval:
    """Returns values[0] with the 2.5 and 97.5 percentiles of resamples values[1:], without NaN (no truth)."""
    if np.isnan(values[0]):
        return Interval(None, None, None)
    draws = values[1:][~np.isnan(values[1:])]
    if not len(draws):
        return Interval(float(values[0]), None, None)
    low, high = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(float(values[0]), float(low), float(high))


def independent_units(groups: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the index [I] of each image's independent unit, 0 .. U-1.

    Images that share a group, directly or through other images, are one unit; so is an image without a group.
    """
    parent = list(range(len(groups)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for image, names in enumerate(groups):
        for name in names:
            parent[root(image)] = root(first.setdefault(name, image))
    return np.unique([root(i) for i in range(len(groups))], return_inverse=True)[1]


def group_draws(groups: Sequence[Sequence[str]], resamples: int, seed: int) -> np.ndarray:
    """Returns how often each image occurs, [R, I] int32, in R samples of U units with replacement."""
    units = independent_units(groups)
    count = int(units.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return drawn.astype(np.int32)[:, units]


def bootstrap_ap(matches: Matches, resamples: int = 1000, seed: int = 0) -> Bootstrap:
    """Returns AP and recall of `resamples` samples of U groups with replacement.

    The same seed and groups give the same samples, so the rows of two arms are paired.
    """
    units = independent_units(matches.groups)
    drawn = group_draws(matches.groups, resamples, seed)
    ap, recall = weighted(matches, np.concatenate([np.ones((1, len(units)), drawn.dtype), drawn]))
    ap[0], recall[0] = average_precision(matches), matches.recall  # reported values are pycocotools'
    truths = sum(found.truths for found in matches.classes)
    return Bootstrap(
        by_name(ap, matches.thresholds, axis=1),
        by_name(recall, matches.thresholds, axis=1),
        matches.image_ids,
        int(units.max()) + 1,
        len(np.unique(units[truths > 0])),
        seed,
    )


def sentence(first: str, second: str, difference: Difference) -> str:
    """Returns, say, "detectorgan − cut_paste = +0.03 [−0.01, +0.07], 80 groups: no difference shown"."""
    value, low, high = difference.interval
    if value is None or low is None or high is None:
        return f"{first} − {second}: undefined, the test images contain no objects"
    if low > 0 or high < 0:
        verdict = f"{first if low > 0 else second} is better"
    else:
        verdict = "no difference shown"
    note = small_note(difference.groups_with_truth)
    text = (
        f"{first} − {second} = {value:+.2f} [{low:+.2f}, {high:+.2f}], {difference.groups} groups: {verdict}"
    )
    return text.replace("-0.", "−0.") + (f" ({note})" if note else "")


def small_note(groups_with_truth: int) -> str:
    """Returns a warning if there are too few groups for accurate intervals, otherwise an empty string."""
    if groups_with_truth >= SMALL:
        return ""
    return f"only {groups_with_truth} groups with objects, so intervals are too narrow"


def over_seeds(runs: Sequence[Bootstrap], measure: str, iou: str) -> np.ndarray:
    """Returns the mean over seeds [1 + R]: row 0 of all, the others of resampled seeds *and* groups.

    `runs` are one arm's trainings, in the order of their seeds. The seeds in row r depend only on the number
    of seeds, so the rows of two arms are paired.

    Raises:
      InputError: the runs were not evaluated on the same images and resamples.
    """
    first = runs[0]
    for other in runs[1:]:
        if (other.image_ids, other.seed) != (first.image_ids, first.seed):
            raise InputError("the runs of one arm were evaluated on different test images or resamples")
    values = np.stack([mean_over_classes(getattr(run, measure)[iou]) for run in runs])  # [S, 1 + R]
    count, rows = values.shape
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=rows)  # [1 + R, S]
    drawn[0] = 1
    return (drawn * values.T).sum(axis=1) / count


def seeds_difference(
    first: Sequence[Bootstrap], second: Sequence[Bootstrap], measure: str = "ap", iou: str = "0.1"
) -> Difference:
    """Returns first arm minus second, both trained with the same seeds, with seeds and groups resampled.

    Raises:
      InputError: the numbers of seeds, the test images or their resamples differ.
    """
    one, other = first[0], second[0]
    if len(first) != len(second) or (one.image_ids, one.seed) != (other.image_ids, other.seed):
        raise InputError("a paired comparison needs the same seeds and the same test images and resamples")
    draws = over_seeds(first, measure, iou) - over_seeds(second, measure, iou)
    return Difference(
        percentile_interval(draws),
        two_sided_p(draws),
        2 / len(draws),
        len(first),
        one.groups,
        one.groups_with_truth,
    )


def two_sided_p(draws: np.ndarray) -> float | None:
    """Returns the bootstrap p-value of "no difference" (Davison & Hinkley 1997, 4.4); row 0 is the value."""
    resampled = draws[1:][~np.isnan(draws[1:])]
    if np.isnan(draws[0]) or not len(resampled):
        return None
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum())
    return float(min(1.0, 2 * (1 + tail) / (1 + len(resampled))))


def holm(p: Sequence[float]) -> list[float]:
    """Returns the p-values corrected by Holm's step-down method (1979), in the order given."""
    order = np.argsort(p, kind="stable")
    adjusted, so_far = [0.0] * len(p), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p) - rank) * p[index]))
        adjusted[int(index)] = so_far
    return adjusted


def seeds_sentence(first: str, second: str, difference: Difference, adjusted_p: float | None) -> str:
    """Returns text such as "a − b = +0.030 [−0.010, +0.070], 5 seeds, 80 groups, p 0.12 (Holm): ..."."""
    value, low, high = difference.interval
    if value is None or low is None or high is None or adjusted_p is None:
        return f"{first} − {second}: undefined, the test images contain no objects"
    shown = (low > 0 or high < 0) and adjusted_p < 1 - LEVEL
    half_width = max(value - low, high - value)
    if shown:
        verdict = f"{first if low > 0 else second} is better"
    elif half_width < 0.0005:  # both arms find nearly the same objects
        verdict = "no difference shown; the interval is narrower than 0.001"
    else:
        verdict = f"no difference shown; one under {half_width:.3f} could not have been shown"
    at_most = "≤ " if difference.p == difference.least_p else ""
    seeds = f"{difference.seeds} seed{'s' * (difference.seeds > 1)}"
    text = (
        f"{first} − {second} = {value:+.3f} [{low:+.3f}, {high:+.3f}], {seeds}, "
        f"{difference.groups} groups, p {at_most}{adjusted_p:.3f} (Holm): {verdict}"
    )
    few = f"only {seeds}: the true interval is wider" if difference.seeds < FEW_SEEDS else ""
    notes = "; ".join(filter(None, [few, small_note(difference.groups_with_truth)]))
    return text.replace("-0.", "−0.") + (f" ({notes})" if notes else "")
