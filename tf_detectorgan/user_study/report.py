"""Table 4: preferences, Likert scores of realism, and agreement of raters."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from scipy import stats

from tf_detectorgan.evaluation.statistics import exact_interval
from tf_detectorgan.user_study.answers import CHOICES, Answer, Rater
from tf_detectorgan.user_study.plan import SIDES, StudyPlan


def fleiss_kappa(ratings: Sequence[Sequence[str]]) -> float | None:
    """Returns the agreement of n raters beyond chance (Fleiss 1971); `ratings` has n answers per pair.

    It is None if all answers are equal.
    """
    kinds = sorted(set(itertools.chain.from_iterable(ratings)))
    counts = np.array([[row.count(kind) for kind in kinds] for row in map(list, ratings)])  # [pairs, kinds]
    n = counts[0].sum()
    agreed = np.mean((counts * (counts - 1)).sum(1) / (n * (n - 1)))
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return None if chance == 1 else float((agreed - chance) / (1 - chance))


def sign_test(answers: Sequence[Answer], what: str) -> tuple[int, int, float]:
    """Returns (pairs in which most raters prefer A, pairs without ties, two-sided p).

    The test is over pairs, because the raters' answers to one pair are not independent.
    """
    votes: dict[int, int] = defaultdict(int)
    for answer in answers:
        votes[answer.pair] += 1 if getattr(answer, f"better_{what}") == "A" else -1
    decided = [vote for vote in votes.values() if vote]
    wins = sum(vote > 0 for vote in decided)
    return wins, len(decided), float(stats.binomtest(wins, len(decided)).pvalue) if decided else 1.0


def agreement(answers: Sequence[Answer], what: str, pairs: int) -> str:
    """Returns text with Fleiss' kappa of the raters who answered all `pairs`, as kappa requires."""
    by_rater: dict[int, dict[int, str]] = defaultdict(dict)
    for answer in answers:
        by_rater[answer.rater][answer.pair] = getattr(answer, f"better_{what}")
    complete = [given for given in by_rater.values() if len(given) == pairs]
    unfinished = len(by_rater) - len(complete)
    without = f", without {unfinished} who did not" if unfinished else ""
    if len(complete) < 2:
        return f"no kappa: fewer than two raters answered all {pairs} pairs"
    rows = [[given[pair] for given in complete] for pair in sorted(complete[0])]
    kappa = fleiss_kappa(rows)
    value = "undefined" if kappa is None else f"{kappa:.2f}"
    return f"Fleiss' kappa {value} ({len(complete)} raters who answered all {pairs} pairs{without})"


def table(plan: StudyPlan, raters: Sequence[Rater], answers: Sequence[Answer]) -> str:
    """Returns the report as text."""
    checked = {k for k, pair in enumerate(plan.pairs) if pair.check}
    counted = [answer for answer in answers if answer.pair not in checked]
    lines = (
        _results(plan, counted, len(plan.pairs) - len(checked)) if counted else ["no answers to count yet"]
    )
    for rater in raters:
        own = [answer for answer in answers if answer.rater == rater.id]
        shown = [answer for answer in own if answer.pair in checked]
        passed = sum(answer.better_whole == answer.better_object == "A" for answer in shown)
        lines.append(
            f"{rater.name}: {len(own)} of {len(plan.pairs)} pairs, attention checks passed {passed} of "
            f"{len(shown)}"
        )
    return "\n".join(lines)


def _results(plan: StudyPlan, counted: Sequence[Answer], pairs: int) -> list[str]:
    """Returns the lines of Table 4 for the answers `counted` to the `pairs` that are not checks."""
    wide = max(len(f"{method}, {what}") for method in plan.methods for what in CHOICES) + 2
    lines = [f"{'':<{wide}}{'prefer':<20}Likert, mean ± SD"]
    for side, method in zip(SIDES, plan.methods, strict=True):
        for what in CHOICES:
            k = sum(getattr(answer, f"better_{what}") == side for answer in counted)
            share = exact_interval(k, len(counted))
            prefer = f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]"
            values = [getattr(answer, f"{what}_{side}") for answer in counted]
            spread = f"{np.std(values, ddof=1):.2f}" if len(values) > 1 else "–"
            lines.append(f"{f'{method}, {what}':<{wide}}{prefer:<20}{np.mean(values):.2f} ± {spread}")
    lines.append(
        f"{len(counted)} answers of {len({a.rater for a in counted})} raters to "
        f"{len({a.pair for a in counted})} pairs; [95 % interval: exact, for independent answers]"
    )
    for what in CHOICES:
        wins, decided, p = sign_test(counted, what)
        lines.append(
            f"{what}: {plan.methods[0]} preferred in {wins} of {decided} pairs without ties, sign test "
            f"p {p:.3f}; {agreement(counted, what, pairs)}"
        )
    return lines
