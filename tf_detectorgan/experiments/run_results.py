"""What a run directory holds once arms have been evaluated. All but one arm's metrics may be absent."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.records import Found, Truth, from_coco_results, truth_from_json

ARM_ORDER = (
    "real_only",
    "boxes_only",
    "cut_paste",
    "poisson_blend",
    "superpose",
    "cyclegan_bbox",
    "acgan",
    "detectorgan_no_unroll",
    "detectorgan",
)  # baseline first


class Arm(NamedTuple):
    """One arm's evaluation."""

    metrics: dict  # as of evaluation.evaluate
    found: list[Found] | None  # None without the detections or the truth
    contact_sheet: Path | None
    gallery: Path | None
    audit: dict | None  # of its synthetic images, as of evaluation.audit
    cosine: float | None = None  # of Eqn 3's gradient by finite difference to the exact one


class Run(NamedTuple):
    """A run directory, read."""

    directory: Path
    arms: dict[str, Arm]  # those with metrics, in ARM_ORDER, others by name after them
    missing: list[str]  # arms that were asked for or begun, without metrics
    truth: list[Truth]
    config: dict
    data_card: dict
    costs: dict[str, dict]  # phase -> seconds, steps, peak_memory_mib
    samples: dict[int, np.ndarray]  # image id -> uint8 [H, W, C] without padding


def read_run(run_dir: str | os.PathLike, elsewhere: str = "") -> Run:
    """Reads a run directory; `elsewhere` names another data set than the run's, whose scores are wanted.

    Raises:
      InputError: no arm has metrics, or a file is not JSON.
    """
    directory = Path(run_dir)
    config = _json(directory / "config.json", {})
    begun = sorted(path.name for path in directory.glob("arms/*") if path.is_dir())
    names = sorted({*begun, *_asked_for(config)}, key=_order)
    arms = {}
    truth = truth_from_json(_json(directory / "truth.json", []))
    for name in names:
        scores = directory / "arms" / name / "evaluation" / elsewhere
        metrics = _json(scores / "metrics.json", None)
        if metrics is not None:
            truth = truth_from_json(_json(scores / "truth.json", [])) if elsewhere else truth
            arms[name] = _arm(directory / "arms" / name, scores, metrics, truth)
    if not arms:
        raise InputError(f"{directory}: no arm has been evaluated (arms/*/evaluation/metrics.json)")
    return Run(
        directory,
        arms,
        [name for name in names if name not in arms],
        truth,
        config,
        _json(directory / "data_card.json", {}),
        _json(directory / "costs.json", {}),
        _samples(directory / "evaluation_samples.npz", truth),
    )


def _asked_for(config: dict) -> Sequence[str]:
    arms = config.get("arms", config.get("arm", ()))
    return [arms] if isinstance(arms, str) else list(arms or ())


def _order(name: str) -> tuple[int, str]:
    return (ARM_ORDER.index(name) if name in ARM_ORDER else len(ARM_ORDER), name)


def _arm(directory: Path, scores: Path, metrics: dict, truth: Sequence[Truth]) -> Arm:
    results = _json(scores / "detections.json", None)
    sheet, gallery = (directory / "synthetic" / name for name in ("contact_sheet.png", "gallery.html"))
    return Arm(
        metrics,
        from_coco_results(results, [t.image_id for t in truth]) if truth and results is not None else None,
        sheet if sheet.exists() else None,
        gallery if gallery.exists() else None,
        _json(directory / "synthetic" / "audit.json", None),
        _json(directory / "joint" / "finite_difference.json", {}).get("cosine_to_exact"),
    )


def _json(path: Path, default: Any) -> Any:
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}; delete it and run the evaluation again") from error


def _samples(path: Path, truth: Sequence[Truth]) -> dict[int, np.ndarray]:
    if not path.exists():
        return {}
    sizes = {t.image_id: t.size for t in truth}
    with np.load(path) as file:
        images = np.round((np.clip(file["images"], -1, 1) + 1) * 127.5).astype(np.uint8)
        ids = [int(i) for i in file["image_id"]]
    return {
        i: image[: sizes[i][0], : sizes[i][1]] for i, image in zip(ids, images, strict=True) if i in sizes
    }
