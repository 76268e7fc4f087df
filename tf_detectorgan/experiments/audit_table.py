"""The audits of the arms' synthetic images as a table: each column with its meaning and its cells' text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tf_detectorgan.experiments.evaluation_table import number


class AuditColumn(NamedTuple):
    """One column; `cell` turns an audit (`evaluation.audit.audit`) into text."""

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
        "share of objects that a detector which was not trained on them finds, at one false positive an "
        "image (of real objects; of the same boxes before the insertion)",
        _found,
    ),
    AuditColumn(
        "left out",
        "share of the objects made that did not reach --min_audit",
        lambda a: f"{1 - a['objects'] / a['made']:.0%}",
    ),
    AuditColumn(
        "change in box",
        "mean absolute change in the box, grey levels of 255; 0: nothing was inserted",
        lambda a: f"{255 * a['change_inside']:.1f}",
    ),
    AuditColumn(
        "change outside",
        "the same beyond the blend around the box (worst image); should be 0",
        lambda a: f"{255 * a['change_outside']:.2f} ({255 * a['change_outside_worst']:.2f})",
    ),
    AuditColumn(
        "contrast",
        "median of (mean in box - mean around it) / spread around it; real objects in brackets",
        lambda a: f"{a['contrast']:.2f} ({a['contrast_real']:.2f})",
    ),
    AuditColumn(
        "contrast apart",
        "Kolmogorov-Smirnov distance of synthetic and real objects' contrasts; 0: alike",
        lambda a: f"{a['contrast_distance']:.2f}",
    ),
    AuditColumn(
        "nearest real",
        "median correlation with the most similar real training object (of real ones to other groups')",
        lambda a: f"{a['nearest']:.2f} ({number(a['nearest_real'])})",
    ),
    AuditColumn(
        "copies",
        "share of objects more similar to a real one than 95 % of real objects are to one of another group",
        lambda a: "–" if a["copies"] is None else f"{a['copies']:.0%}",
    ),
    AuditColumn(
        "variety",
        "mean of 1 - correlation over pairs of objects; real objects in brackets",
        lambda a: f"{a['variety']:.2f} ({a['variety_real']:.2f})",
    ),
)


def rows(audits: dict[str, dict | None]) -> list[tuple[str, list[str]]]:
    """(arm, its cells in COLUMNS) of each arm that has an audit."""
    return [(arm, [column.cell(audit) for column in COLUMNS]) for arm, audit in audits.items() if audit]
