"""Defines the table of the audits of synthetic images: title, meaning and cell text of each column."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tf_detectorgan.experiments.evaluation_table import number


class AuditColumn(NamedTuple):
    """A column; `cell` formats a value of an audit (`evaluation.audit.audit`) as text."""

    title: str
    meaning: str
    cell: Callable[[dict], str]


def _found(audit: dict) -> str:
    if audit["found"] is None:
        return "–"
    return f"{audit['found']:.0%} ({audit['found_real']:.0%}; {audit['found_before']:.0%})"


COLUMNS = (
    AuditColumn(
        "found",
        "share of inserted objects found by detectors that were not trained on the matched object's group, "
        "at one false positive per image (in brackets: of real objects; of the same boxes before insertion)",
        _found,
    ),
    AuditColumn(
        "rejected",
        "share of the inserted objects that were left out, as those detectors scored them below --min_audit",
        lambda a: f"{1 - a['objects'] / a['made']:.0%}",
    ),
    AuditColumn(
        "change in box",
        "mean absolute change inside the box, in grey levels of 255; 0: nothing was inserted",
        lambda a: f"{255 * a['change_inside']:.1f}",
    ),
    AuditColumn(
        "change outside",
        "mean absolute change outside the box and its blended border (in brackets: of the image with the "
        "largest); 0 but for rounding",
        lambda a: f"{255 * a['change_outside']:.2f} ({255 * a['change_outside_worst']:.2f})",
    ),
    AuditColumn(
        "contrast",
        "median of (mean in box - mean around it) / standard deviation around it (in brackets: real objects)",
        lambda a: f"{a['contrast']:.2f} ({a['contrast_real']:.2f})",
    ),
    AuditColumn(
        "contrast distance",
        "Kolmogorov-Smirnov distance between the contrasts of synthetic and real objects; 0: equal",
        lambda a: f"{a['contrast_distance']:.2f}",
    ),
    AuditColumn(
        "nearest real",
        "median correlation with the most similar real training object (in brackets: of real objects with "
        "real objects of other groups)",
        lambda a: f"{a['nearest']:.2f} ({number(a['nearest_real'])})",
    ),
    AuditColumn(
        "copies",
        "share of objects whose correlation with a real one exceeds that of 95 % of real objects with any of "
        "another group",
        lambda a: "–" if a["copies"] is None else f"{a['copies']:.0%}",
    ),
    AuditColumn(
        "variety",
        "mean of 1 - correlation over pairs of objects (in brackets: real objects)",
        lambda a: f"{a['variety']:.2f} ({a['variety_real']:.2f})",
    ),
)


def rows(audits: dict[str, dict | None]) -> list[tuple[str, list[str]]]:
    """Returns (arm, its cells in the order of COLUMNS) for each arm that has an audit."""
    return [(arm, [column.cell(audit) for column in COLUMNS]) for arm, audit in audits.items() if audit]
