import json
import re

import numpy as np
import pytest

from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.metrics import evaluate
from tf_detectorgan.evaluation.records import (
    Found,
    Truth,
    to_coco_results,
    truth_to_json,
    write_json,
)
from tf_detectorgan.experiments.report import (
    comparisons,
    duration,
    eqn3_settings,
    headline,
    markdown_text,
    matched,
    result_table,
    write_report,
)
from tf_detectorgan.experiments.run_results import read_run
from tf_detectorgan.gallery import contact_sheet

WEIRD = "<img src=x onerror=alert(1)> | $x_1$ & 'naïve'"
CLASSES = ["nodule", '<b>"mass"</b>']


def make_run(directory, arms, images=24, samples=True):
    """Writes a run whose n-th arm misses all objects of the images n, n + 5, ...; returns the truth."""
    rng = np.random.default_rng(0)
    truth = []
    for i in range(images):
        boxes = np.tile(rng.uniform(0, 40, (i % 3, 2)), 2) + [0, 0, 10, 12]
        truth.append(Truth(i, (f"patient {i // 2}",), boxes, rng.integers(0, 2, i % 3), (60, 56)))
    write_json(directory / "truth.json", truth_to_json(truth))
    for n, arm in enumerate(arms):
        found = []
        for t in truth:
            boxes = t.boxes if t.image_id % 5 != n else t.boxes[:0]
            labels = t.labels[: len(boxes)]
            found.append(Found(t.image_id, boxes, rng.random(len(boxes)), labels))
        folder = directory / "arms" / arm / "evaluation"
        write_json(folder / "metrics.json", evaluate(truth, found, CLASSES, resamples=30))
        write_json(folder / "detections.json", to_coco_results(found))
    if samples:
        values = rng.uniform(-1, 1, (4, 64, 64, 1)).astype(np.float32)
        np.savez(directory / "evaluation_samples.npz", images=values, image_id=[0, 1, 2, 5])
    return truth


CHANGED = {
    "change_inside": 0.1,
    "change_outside": 0.0,
    "change_outside_worst": 1 / 255,
}
CONTRAST = {"contrast": 1.25, "contrast_real": 1.5, "contrast_distance": 0.3}
LIKENESS = {"nearest": 0.91, "nearest_real": 0.72, "copies": 0.4, "variety": 0.5, "variety_real": 0.6}
SCORED = {"found": 0.45, "found_real": 0.6, "found_before": 0.02, "made": 40, "objects": 30}
AUDITED = CHANGED | CONTRAST | LIKENESS | SCORED


def add_everything_else(directory, arm):
    grey = np.full((32, 32, 1), 90, np.uint8)
    one = {"background": grey, "inserted": grey, "matched": grey, "box": (3, 3, 9, 9), "caption": "1"}
    contact_sheet([one], directory / "arms" / arm / "synthetic" / "contact_sheet.png")
    (directory / "arms" / arm / "synthetic" / "gallery.html").write_text("page")
    write_json(directory / "arms" / arm / "synthetic" / "audit.json", AUDITED)
    write_json(directory / "config.json", {"arm": ["real_only", "acgan"], "note": WEIRD, "steps": 300})
    write_json(directory / "data_card.json", {"test": {"images": 24, "boxes": 23}})
    whole = {"seconds": 59.6, "steps": 120, "resumed_at": 0, "peak_memory_mib": 1536}
    resumed = {"seconds": 3700, "steps": 500, "resumed_at": 130, "peak_memory_mib": 2048}
    costs = {"pretrain_gan": whole, "joint": resumed | {"gpu_peak_memory_mib": 512}}
    costs["synthetic"] = {"seconds": 7.0, "count": 40}
    write_json(directory / "costs.json", costs)


def assert_self_contained(page):
    """Asserts that the page loads no file: all src, href and url() are data URIs, anchors or links."""
    for tag, target in re.findall(r'<(\w+)[^>]*?(?:src|href)="([^"]*)"', page):
        allowed = ("data:", "#", "arms/") if tag == "a" else ("data:", "#")
        assert target.startswith(allowed), (tag, target)
    assert not re.search(r"<(script|link|iframe)\b|@import|url\(\s*['\"]?(?!data:|#)", page)


@pytest.mark.parametrize(
    "arms", [["real_only"], ["detectorgan", "real_only", "cyclegan_bbox", "cut_paste"], [WEIRD, "_b$"]]
)
def test_report_with_one_or_several_arms_is_self_contained(tmp_path, arms):
    make_run(tmp_path, arms)
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    text = page.read_text()
    assert_self_contained(text)
    assert "onerror" not in re.sub(r"&lt;.*?&gt;", "", text)
    assert "<b>" not in text
    assert text.count('<rect class="truth"') == (0 + 1 + 2 + 2) * len(arms)
    assert text.count("data:image/svg+xml") == 3
    assert text.count('class="best"') == 0 if len(arms) == 1 else text.count('class="best"') >= 5
    markdown = (tmp_path / "report.md").read_text()
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(arms)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}


def test_report_shows_audit_costs_settings_and_unevaluated_arms(tmp_path):
    make_run(tmp_path, ["real_only", "detectorgan"])
    add_everything_else(tmp_path, "detectorgan")
    text = write_report(tmp_path).read_text()
    assert_self_contained(text)
    assert "Not evaluated: acgan." in text
    assert "Full gallery" in text
    cells = [
        "45% (60%; 2%)",
        "25%",
        "25.5",
        "0.00 (1.00)",
        "1.25 (1.50)",
        "0.30",
        "0.91 (0.72)",
        "40%",
        "0.50 (0.60)",
    ]
    assert "".join(f"<td>{cell}</td>" for cell in cells) in text
    assert "<td>1 h 01 min</td><td>500</td><td>0.1</td><td>2.0 GiB, GPU 0.5 GiB</td>" in text
    assert "<td>1 min 00 s</td><td>120</td><td>2.0</td><td>1.5 GiB</td>" in text
    assert "<td>7 s</td><td>–</td><td>–</td><td>–</td>" in text
    assert "images: 24, boxes: 23" in text
    assert "<td>300</td>" in text
    assert "12 groups" in text
    assert (
        "only 12 groups with objects, so intervals are too narrow" in text
    )  # 16 of 24 images hold objects, in all 12 groups
    assert "detectorgan − real_only = " in text
    cards = (tmp_path / "cards.md").read_text()
    for part in ("24 test images of 12 groups", "found 45%", "Privacy", "TODO: licence", "| detectorgan |"):
        assert part in cards
    assert "keeps the background of a real" in text.replace("\n", " ")
    assert "with one seed" in text
    markdown = (tmp_path / "report.md").read_text()
    assert "](arms/detectorgan/synthetic/contact_sheet.png)" in markdown
    assert "Not evaluated: acgan." in markdown
    assert "| detectorgan | 45% (60%; 2%) | 25% | 25.5 | 0.00 (1.00) | 1.25 (1.50) |" in markdown


def test_headline_shows_the_values_of_metrics_json(tmp_path):
    make_run(tmp_path, ["detectorgan", "real_only"], samples=False)
    columns, rows = headline(read_run(tmp_path))
    assert [name for name, _ in rows] == ["real_only", "detectorgan"]  # baseline first
    titles = [column.title for column in columns]
    assert titles == ["AP@0.1", "AP@0.5", "AP@0.5:0.95", "recall@0.1", "localization T(IoU) 0.1"]
    for name, cells in rows:
        metrics = json.loads((tmp_path / "arms" / name / "evaluation" / "metrics.json").read_text())
        recall, place = metrics["recall"]["0.1"], metrics["localization"]["iou"]["0.1"]
        assert cells[3].value == f"{recall['value']:.2f}"
        assert cells[3].interval == f"[{recall['low']:.2f}, {recall['high']:.2f}]"
        assert cells[4].value == f"{place['k'] / place['n']:.2f}"
    best = max(rows, key=lambda row: float(row[1][0].value))
    assert [cells[0].best for _, cells in rows] == [row is best for row in rows]


def test_equal_arms_are_both_marked_best_and_no_difference_is_shown(tmp_path):
    make_run(tmp_path, ["real_only"])
    source = tmp_path / "arms" / "real_only"
    (tmp_path / "arms" / "cut_paste" / "evaluation").mkdir(parents=True)
    for name in ("metrics.json", "detections.json"):
        (tmp_path / "arms" / "cut_paste" / "evaluation" / name).write_text(
            (source / "evaluation" / name).read_text()
        )
    run = read_run(tmp_path)
    assert all(cell.best for _, cells in headline(run)[1] for cell in cells)
    (title, sentences), _ = comparisons(run, matched(run))
    assert title == "AP@0.1"
    assert sentences[0].startswith(
        "cut_paste − real_only = +0.00 [+0.00, +0.00], 12 groups: no difference shown"
    )


def test_result_table_is_aligned_and_names_unevaluated_arms(tmp_path):
    make_run(tmp_path, ["real_only", "detectorgan"], samples=False)
    write_json(tmp_path / "config.json", {"arm": ["acgan"]})
    lines = result_table(tmp_path).splitlines()
    assert lines[0].split()[:3] == ["arm", "AP@0.1", "AP@0.5"]
    assert lines[2].startswith("real_only")
    assert lines[3].startswith("detectorgan")
    start = lines[0].index("AP@0.5")
    assert all(re.match(r"\d\.\d\d\*? +\[", line[start:]) for line in lines[2:4])
    assert lines[-1] == "not evaluated: acgan"


@pytest.mark.parametrize("file", ["truth.json", "arms/real_only/evaluation/detections.json"])
def test_metrics_without_truth_or_detections_are_an_error(tmp_path, file):
    make_run(tmp_path, ["real_only", "detectorgan"])
    (tmp_path / file).unlink()
    with pytest.raises(InputError, match=f"{file}: is missing; delete the arm's evaluation/"):
        write_report(tmp_path)


def test_report_of_one_arm_has_no_comparison(tmp_path):
    make_run(tmp_path, ["real_only"])
    assert "None: a comparison needs two evaluated arms" in write_report(tmp_path).read_text()


def test_run_without_metrics_or_with_invalid_json_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no arm has been evaluated"):
        write_report(tmp_path)
    make_run(tmp_path, ["real_only"], samples=False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json is not JSON"):
        result_table(tmp_path)


def test_report_is_deterministic(tmp_path):
    make_run(tmp_path, ["real_only", "detectorgan"])
    assert write_report(tmp_path).read_text() == write_report(tmp_path).read_text()


def test_duration_and_markdown_text():
    assert [duration(s) for s in (0.4, 59.6, 61, 3599.4, 12000)] == [
        "0 s",
        "1 min 00 s",
        "1 min 01 s",
        "59 min 59 s",
        "3 h 20 min",
    ]
    assert markdown_text("a|b\n<i> *c*") == r"a\|b \<i\> \*c\*"


@pytest.mark.parametrize(
    "steps,sentence",
    [
        (1, "Eqn 3 with 1 unrolled step of adam, exact gradient."),
        (3, "Eqn 3 with 3 unrolled steps of adam, exact gradient."),
        (0, "no Eqn 3 (--unroll_steps=0); DET is updated by adam."),
    ],
)
def test_report_states_how_eqn_3_was_computed(tmp_path, steps, sentence):
    make_run(tmp_path, ["real_only", "detectorgan"], images=4, samples=False)
    config = {"unroll_steps": steps, "joint_detector_optimizer": "adam"}
    write_json(tmp_path / "config.json", config)
    assert eqn3_settings(read_run(tmp_path)) == [f"detectorgan: {sentence}"]
