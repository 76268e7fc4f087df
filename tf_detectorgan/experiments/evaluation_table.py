"""Formats the metrics of several arms as a plain-text table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

KINDS = {"iou": "T(IoU)", "iobb": "T(IoBB)"}  # of localization


def evaluation_table(metrics: Mapping[str, dict]) -> str:
    """Returns a table with a row per metric (AP, recall, localization, FROC) and a column per arm.

    Args:
      metrics: arm -> result of `evaluation.evaluate`, all on the same images.
    """
    first = next(iter(metrics.values()))
    lines = [["", *metrics]]
    for measure, title in (("ap", "AP"), ("recall", "recall")):
        for iou in first[measure]:
            lines.append([f"{title}@{iou}", *(_with_interval(m[measure][iou]) for m in metrics.values())])
    for kind, title in KINDS.items():
        for threshold in first["localization"][kind]:
            shares = (m["localization"][kind][threshold] for m in metrics.values())
            lines.append([f"localization {title} {threshold}", *map(_with_interval, shares)])
    main = f"{first['primary_iou']:g}"
    for rate in first["froc"]["sensitivity"]:
        found = (m["froc"]["sensitivity"][rate] for m in metrics.values())
        lines.append([f"sensitivity at {rate} false positives per image (IoU {main})", *map(number, found)])
    lines.append(["FROC mean", *(number(m["froc"]["mean"]) for m in metrics.values())])
    counts = first["counts"]
    return (
        aligned(lines)
        + f"\n{counts['images']} images of {counts['groups']} groups, {counts['boxes']} objects; "
        + "[95 % interval: bootstrap over groups (AP, recall), exact (localization)]"
        + (f"\nsmall test set: {first['note']}" if first["note"] else "")
    )


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Returns left-aligned columns, two spaces apart, with a line of dashes under the first row."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(field.ljust(width) for field, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text.insert(1, "-" * max(map(len, text)))
    return "\n".join(text)


def interval(entry: Mapping) -> str:
    """Returns "[0.21, 0.40]", or "" where "low" is None."""
    return "" if entry["low"] is None else f"[{entry['low']:.2f}, {entry['high']:.2f}]"


def number(value: float | None, digits: int = 2) -> str:
    """Returns a number with `digits` decimals, or a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def _with_interval(entry: Mapping) -> str:
    return f"{number(entry['value'])} {interval(entry)}".rstrip()
