"""Reads the results of a run directory: metrics, detections, truth, audits, settings and costs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tf_detectorgan import run_layout
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.metrics import with_current_keys
from tf_detectorgan.evaluation.records import Found, Truth, from_coco_results, truth_from_json
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training.settings import ARMS


class ArmResult(NamedTuple):
    """The evaluation of one arm."""

    metrics: dict  # from evaluation.evaluate
    found: list[Found]
    contact_sheet: Path | None
    gallery: Path | None
    audit: dict | None  # of its synthetic images, from evaluation.audit


class RunResult(NamedTuple):
    """The contents of a run directory."""

    directory: Path
    arms: dict[str, ArmResult]  # those with metrics, in the order of ARMS, others by name after them
    missing: list[str]  # arms that were requested or started, without metrics
    truth: list[Truth]
    config: dict
    data_card: dict
    costs: dict[str, dict]  # phase -> seconds, steps, peak_memory_mib
    samples: dict[int, np.ndarray]  # image id -> uint8 [H, W, C] without padding

    @property
    def first(self) -> dict:
        """Returns the metrics of the first arm, whose test images and their counts are those of all arms."""
        return next(iter(self.arms.values())).metrics

    @property
    def resamples(self) -> tuple[int, int]:
        """Returns the number of bootstrap resamples and the seed."""
        return self.first["bootstrap"]["resamples"], self.first["bootstrap"]["seed"]


def read_run(run_dir: str | os.PathLike, evaluation_set: str = "") -> RunResult:
    """Reads a run directory, scored on its own test split or on the data set named `evaluation_set`.

    Raises:
      InputError: no arm has metrics, detections or truth of an arm are missing, or a file is not JSON.
    """
    directory, layout = Path(run_dir), RunLayout(Path(run_dir))
    config = _json(layout.config, {})
    started = [path.name for path in layout.arms.glob("*") if path.is_dir()]
    requested = {*started, *config.get("arm", ())}
    names = [name for name in ARMS if name in requested] + sorted(requested - ARMS.keys())
    arms = {}
    truth = list[Truth]()
    for name in names:
        scores = layout.arm(name).evaluation(evaluation_set)
        metrics = _json(run_layout.metrics(scores), None)
        if metrics is not None:
            metrics = with_current_keys(metrics)
            truth = truth_from_json(_json(run_layout.truth(scores if evaluation_set else directory)))
            arms[name] = _arm(layout.arm(name).synthetic, scores, metrics, truth)
    if not arms:
        raise InputError(f"{directory}: no arm has been evaluated ({layout.arms} holds no metrics)")
    return RunResult(
        directory,
        arms,
        [name for name in names if name not in arms],
        truth,
        config,
        _json(layout.data_card, {}),
        _json(layout.costs, {}),
        _samples(layout.samples, truth),
    )


def _arm(synthetic: Path, scores: Path, metrics: dict, truth: Sequence[Truth]) -> ArmResult:
    sheet, gallery = synthetic / run_layout.CONTACT_SHEET, synthetic / run_layout.GALLERY
    return ArmResult(
        metrics,
        from_coco_results(_json(run_layout.detections(scores)), [t.image_id for t in truth]),
        sheet if sheet.exists() else None,
        gallery if gallery.exists() else None,
        _json(synthetic / run_layout.AUDIT, None),
    )


def _json(path: Path, *default: Any) -> Any:
    if not path.exists():
        if default:
            return default[0]
        raise InputError(f"{path}: is missing; delete the arm's evaluation/ and run the evaluation again")
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
