"""Compares a table with numbers computed by hand: means over seeds, and corrected comparisons."""

import numpy as np
import pytest

from tests.evaluation.test_statistics import images
from tf_detectorgan.evaluation.statistics import bootstrap_ap
from tf_detectorgan.experiments.table_report import Results, _row, comparisons
from tf_detectorgan.experiments.tables import Column, Row, Table

RECALL = Column("recall@main", ("recall", "main"))
IOBB = Column("T(IoBB) 0.1", ("localization", "iobb", "0.1"))
ROWS = tuple(Row(arm) for arm in ("a", "b", "c", "gone"))
PAIRS = (("a", "b"), ("a", "c"), ("b", "gone"))


@pytest.fixture(scope="module")
def results():
    """Arm b misses every tenth object that a finds, c none; b has seeds 1 to 3, "gone" has none."""
    rng = np.random.default_rng(4)
    found = {seed: rng.random(200) < 0.6 for seed in (0, 1, 2)}
    fewer = {seed: hits & (np.arange(200) % 10 > 0) for seed, hits in found.items()} | {3: found[0]}
    arms = {"a": found, "b": {seed: fewer[seed] for seed in (1, 2, 3)}, "c": found}
    draws = {arm: {s: bootstrap_ap(images(h), 500) for s, h in seeds.items()} for arm, seeds in arms.items()}
    metrics = {
        arm: {
            seed: {
                "recall": {"0.1": {"value": float(hits.mean())}},
                "localization": {"iobb": {"0.1": {"value": k / 10, "k": k, "n": 10}}},
            }
            for k, (seed, hits) in enumerate(seeds.items(), start=2)
        }
        for arm, seeds in arms.items()
    }
    return Results(metrics, draws, "0.1", 0.0, {}, [])


def test_comparisons_use_common_seeds_and_are_corrected_for_their_number(results):
    first, second = comparisons(Table("t", "s", ROWS, (RECALL,), PAIRS), RECALL, results)
    assert (first["first"], first["second"], first["seeds"]) == ("a", "b", 2)
    common = [results.draws[arm][seed].recall["0.1"][0, 0] for arm in "ab" for seed in (1, 2)]
    assert first["value"] == pytest.approx(np.mean(common[:2]) - np.mean(common[2:]))
    assert (first["p"], first["p_holm"]) == (pytest.approx(2 / 501), pytest.approx(4 / 501))
    assert "a is better" in first["sentence"]
    assert (second["second"], second["value"], second["p"], second["p_holm"]) == ("c", 0, 1, 1)
    assert "no difference shown" in second["sentence"]


def test_row_has_mean_and_deviation_over_seeds_and_interval_of_its_metric(results):
    row = _row(ROWS[0], (RECALL, IOBB), results)
    recall, share = row["cells"]
    values = [m["recall"]["0.1"]["value"] for m in results.metrics["a"].values()]
    assert (recall["mean"], recall["sd"]) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
    )
    assert recall["low"] < recall["mean"] < recall["high"]
    assert (share["mean"], share["sd"]) == (pytest.approx(0.3), pytest.approx(0.1))
    # Clopper-Pearson interval of 3 of 10, from published tables.
    assert (share["low"], share["high"]) == (pytest.approx(0.0667, abs=1e-4), pytest.approx(0.6525, abs=1e-4))
    assert share["counts"] == [[2, 10], [3, 10], [4, 10]]
