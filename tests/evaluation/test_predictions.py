import json

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan import evaluate
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluate import Evaluate
from tf_detectorgan.evaluation.predictions import read_predictions
from tf_detectorgan.prepare import Prepare, prepare

TEST = (1, 2, 3)  # ids of the test images; 3 is clean


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of images of 80 x 40 pixels, with two classes, prepared at half their size."""
    folder = tmp_path_factory.mktemp("photos")
    images, boxes = [], []
    for number in range(1, 7):
        Image.fromarray(np.full((40, 80), 20 * number, np.uint8)).save(folder / f"scan_{number}.png")
        part = "test" if number in TEST else "train"
        images.append({"id": number, "file_name": f"scan_{number}.png", "part": part})
        if number not in (3, 6):
            category = 30 if number % 2 else 70
            boxes.append({"id": number, "image_id": number, "category_id": category, "bbox": [8, 4, 16, 20]})
    document = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 70, "name": "crack"}, {"id": 30, "name": "hole"}],
    }
    (folder / "annotations.json").write_text(json.dumps(document))
    prepare(
        Prepare(
            annotations=str(folder / "annotations.json"),
            out=str(folder / "prepared"),
            image_size=40,
            split_key="part",
        )
    )
    return folder


def result(image_id, **changes):
    return {"image_id": image_id, "category_id": 1, "bbox": [8, 4, 16, 20], "score": 0.5} | changes


def read(photos, tmp_path, results, split="test", **options):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return read_predictions(path, records.open_dataset(photos / "prepared"), split, **options)


def test_boxes_in_original_pixels_are_scaled_to_prepared_images(photos, tmp_path):
    found, ignored, _ = read(
        photos, tmp_path, [result(1), result("scan_2.png", segmentation=[]), result("scan_2", category_id=2)]
    )
    assert [f.image_id for f in found] == [1, 2, 3]
    # the images were resized from 80 x 40 to 40 x 20
    np.testing.assert_array_equal(found[0].boxes, [[4, 2, 12, 12]])
    np.testing.assert_array_equal(found[1].labels, [0, 1])
    assert len(found[2].labels) == 0
    assert ignored == 0


def test_boxes_in_prepared_pixels_are_not_scaled(photos, tmp_path):
    found, *_ = read(photos, tmp_path, [result(1)], pixels="prepared")
    np.testing.assert_array_equal(found[0].boxes, [[8, 4, 24, 24]])


def test_detections_of_other_splits_are_ignored_and_counted(photos, tmp_path):
    found, ignored, _ = read(photos, tmp_path, [result(4), result(5), result(1)])
    assert sum(len(f.labels) for f in found) == 1
    assert ignored == 2


def test_categories_are_read_from_the_annotation_file(photos, tmp_path):
    given = [result(1, category_id=30), result(2, category_id=70)]
    found, *_ = read(photos, tmp_path, given, categories=str(photos / "annotations.json"))
    assert records.open_dataset(photos / "prepared").class_names == ("hole", "crack")
    assert [f.labels.tolist() for f in found] == [[0], [1], []]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"image_id": 99}, "detection 1: image_id 99 is not an image of the data set"),
        ({"image_id": "scan_99"}, "detection 1: image_id 'scan_99' is not an image"),
        ({"image_id": True}, "detection 1: image_id True is not an image"),
        ({"category_id": 70}, r"detection 1: category_id 70 is none of \[1, 2\].*--prediction_categories"),
        ({"category_id": [1]}, r"category_id \[1\] is none of"),
        ({"score": float("nan")}, "detection 1: .* score nan; .* all finite"),
        ({"bbox": [0, 0, float("inf"), 1]}, "all finite"),
        ({"bbox": [0, 0, 10**400, 1]}, "all finite"),
        ({"score": 10**400}, "all finite"),
        ({"bbox": [0, 0, 4]}, "must be \\[x, y, width, height\\]"),
        ({"score": "0.5"}, "and a number"),
        ({"bbox": [20, 20, -4, 8]}, "negative width or height"),
        ({"bbox": [80, 0, 4, 4]}, "outside image 1 of 80 x 40 pixels.*--prediction_pixels=prepared"),
    ],
)
def test_invalid_detection_raises_with_index_and_reason(photos, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        read(photos, tmp_path, [result(1), result(1) | changes])


@pytest.mark.parametrize(
    "content, message",
    [
        ('[{"image_id": 1}]', "detection 0 has no category_id, bbox, score"),
        ('{"annotations": []}', "must be in COCO's results format"),
        ("[", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_file_that_is_not_a_results_list_raises(photos, tmp_path, content, message):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_predictions(tmp_path / "results.json", records.open_dataset(photos / "prepared"), "test")


def test_file_name_of_two_images_raises(tiny_phantom, tmp_path, monkeypatch):
    dataset = records.open_dataset(tiny_phantom("ambiguous"))
    one = next(dataset.listed("test_labelled"))
    listed = [one._replace(image_id=i, file_name=f"{folder}/a.png") for i, folder in ((1, "x"), (2, "y"))]
    monkeypatch.setattr(dataset, "listed", lambda split: listed if split == "test_labelled" else [])
    path = tmp_path / "results.json"
    path.write_text(json.dumps([result("a.png")]))
    with pytest.raises(InputError, match=r"'a.png' may be any of the images \[1, 2\]"):
        read_predictions(path, dataset, "test")


NUMBERED = {"train": (12, 3, 15), "val": (8, 4), "test": (2, 5, 14)}  # prepare numbers them from 1
LEFT = [4 + 2 * n % 28 for n in range(100)]  # left edge of image n's box


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A YOLO folder whose files are 000002.png, 000003.png, ...; the last of each part is clean."""
    folder = tmp_path_factory.mktemp("numbered")
    for part, numbers in NUMBERED.items():
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        for n in numbers:
            noise = np.random.default_rng(n).integers(0, 255, (40, 40)).astype(np.uint8)
            Image.fromarray(noise).save(folder / f"images/{part}/{n:06d}.png")
            if n != numbers[-1]:
                row = f"0 {(LEFT[n] + 4) / 40} 0.5 0.2 0.2"
                (folder / f"labels/{part}/{n:06d}.txt").write_text(row)
    parts = "".join(f"{part}: images/{part}\n" for part in NUMBERED)
    (folder / "data.yaml").write_text(f"path: .\n{parts}names: {{0: thing}}\n")
    prepare(
        Prepare(
            images=str(folder),
            dataset="yolo",
            out=str(folder / "prepared"),
            image_size=40,
            split_key="split",
        )
    )
    return folder


def ultralytics(numbers=(2, 5), **more):
    """Returns perfect detections in Ultralytics' format; newer versions add the file's name."""
    named = [{k: v.format(n) for k, v in more.items()} for n in numbers]
    boxes = [{"bbox": [LEFT[n], 16, 8, 8], "image_id": n} for n in numbers]
    return [result(0) | box | name for box, name in zip(boxes, named, strict=True)]


def listed(folder, split="test"):
    """Returns the image ids by the number in their file names."""
    dataset = records.open_dataset(folder / "prepared")
    return {
        i.file_name[-6:-4]: i.image_id for s in ("labelled", "clean") for i in dataset.listed(f"{split}_{s}")
    }


@pytest.mark.parametrize(
    "results, options",
    [
        (ultralytics(file_name="{:06d}.png"), {}),
        (ultralytics(), {"image_ids": "name"}),
        # 12 is not an id, as there are eight images; therefore all numbers are names
        (ultralytics((2, 5, 12)), {}),
    ],
    ids=["file_name", "flag", "whole file"],
)
def test_integer_image_ids_are_read_as_file_names(numbered, tmp_path, capsys, results, options):
    file = tmp_path / "yolo.json"
    file.write_text(json.dumps(results))
    evaluate.main(Evaluate(predictions=str(file), data_dir=str(numbered / "prepared"), **options))
    metrics = json.loads((tmp_path / "yolo.test_metrics.json").read_text())
    assert metrics["ap"]["0.75"]["value"] == pytest.approx(1.0)
    printed = capsys.readouterr().out
    assert ("read as file names" in printed) == ("file_name" not in results[0])


def test_integer_image_ids_are_read_as_ids_with_image_ids_flag(numbered, tmp_path):
    """The detections that a run writes are of this form."""
    ids = list(listed(numbered).values())
    found, ignored, kind = read(numbered, tmp_path, [result(i) for i in ids], image_ids="id")
    assert [len(f.labels) for f in found] == [1, 1, 1]
    assert (ignored, kind) == (0, "id")


@pytest.mark.parametrize(
    "results, message",
    [
        (
            ultralytics(),
            r"detection 0: image_id 2 may be \S+\.png by id or \S*000002.png by name; choose by --image_ids",
        ),
        (
            ultralytics((2, 12, 6)),
            "detection 1: image_id 12 is not an image of the data set.*see --image_ids",
        ),
        (ultralytics(file_name="{:d}.jpg"), "detection 0: file_name '2.jpg' is not an image of the data set"),
    ],
    ids=["either", "neither", "file_name"],
)
def test_ambiguous_or_unknown_image_id_raises(numbered, tmp_path, results, message):
    with pytest.raises(InputError, match=message):
        read(numbered, tmp_path, results)


def test_image_ids_that_equal_file_names_need_no_flag(numbered, tmp_path, monkeypatch):
    """This holds for COCO's data sets: image 139 is 000000000139.jpg."""
    one = next(records.open_dataset(numbered / "prepared").listed("test_labelled"))
    images = [one._replace(image_id=n, file_name=f"{n:012d}.jpg") for n in (2, 5)]
    monkeypatch.setattr(
        records.Dataset, "listed", lambda _, split: images if split == "test_labelled" else []
    )
    assert read(numbered, tmp_path, ultralytics()).image_ids == "id"


def test_perfect_predictions_have_ap_1(photos, tmp_path, capsys):
    file = tmp_path / "yolo.json"
    file.write_text(json.dumps([result(1, category_id=1), result(2, category_id=2)]))
    evaluate.main(Evaluate(predictions=str(file), data_dir=str(photos / "prepared")))
    metrics = json.loads((tmp_path / "yolo.test_metrics.json").read_text())
    assert metrics["ap"]["0.75"]["value"] == pytest.approx(1.0)
    assert metrics["counts"]["images"] == 3
    printed = capsys.readouterr().out
    assert "boxes in pixels of the original images" in printed
    assert f"metrics in {tmp_path / 'yolo.test_metrics.json'}" in printed


def test_detections_of_a_run_have_the_metrics_of_the_run(finished_run, tmp_path):
    own = finished_run / "arms" / "cut_paste" / "evaluation"
    file = tmp_path / "detections.json"
    file.write_bytes((own / "detections.json").read_bytes())
    evaluate.main(Evaluate(run_dir=str(finished_run), predictions=str(file), prediction_pixels="prepared"))
    assert json.loads((tmp_path / "detections.test_metrics.json").read_text()) == json.loads(
        (own / "metrics.json").read_text()
    )


def test_arm_with_predictions_raises():
    with pytest.raises(InputError, match="not with --predictions"):
        evaluate.main(Evaluate(predictions="x.json", arm=("cut_paste",)))
