import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan import checkpoints, synthesize
from tf_detectorgan.data import formats, image_files, records, validation
from tf_detectorgan.errors import InputError
from tf_detectorgan.synthesize import Synthesize
from tf_detectorgan.training import build, phases, run_directory


@pytest.fixture
def run_dir(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def make(run_dir, arm="cut_paste", **options):
    synthesize.main(Synthesize(run_dir=str(run_dir), arm=arm, **options))


def images(folder):
    schema = records.read_features(folder)
    strings = records.read_records(folder / "synthetic.tfrecord")
    return np.stack([records.decode(schema, one).image.numpy() for one in strings])


def test_seed_of_the_run_gives_the_images_of_the_run(run_dir, tmp_path, capsys):
    make(run_dir, count=5, seed=0, out=str(tmp_path / "again"), export=("voc", "yolo", "node21"))
    again = images(tmp_path / "again")
    assert len(again) == 5
    np.testing.assert_array_equal(again[:3], images(run_dir / "arms" / "cut_paste" / "synthetic"))
    assert f"5 images of cut_paste in {tmp_path / 'again'}" in capsys.readouterr().out

    coco = json.loads((tmp_path / "again" / "annotations.json").read_text("utf-8"))
    stored = np.asarray(Image.open(tmp_path / "again" / coco["images"][3]["file_name"]))
    np.testing.assert_array_equal(stored, records.to_stored(again[3, ..., 0], 8))
    for kind in ("voc", "yolo", "node21"):
        place = formats.locate(kind, None, tmp_path / "again" / kind)
        sources = validation.check(place.read(), place.images, keys=validation.Keys()).sources
        for image, annotation, source in zip(again, coco["annotations"], sources, strict=True):
            x, y, w, h = annotation["bbox"]
            np.testing.assert_allclose(source.boxes, [(x, y, x + w, y + h)], atol=1e-5)
            np.testing.assert_array_equal(image_files.read_image(source.path), records.to_stored(image, 8))


def provenances(folder):
    return [i["provenance"] for i in json.loads((folder / "annotations.json").read_text("utf-8"))["images"]]


def test_objects_flag_adds_objects_and_keeps_the_first(run_dir, tmp_path):
    make(run_dir, count=5, seed=0, objects=3, export=("yolo",), out=str(tmp_path / "three"))
    three = [image["objects"] for image in provenances(tmp_path / "three")]
    one = [image["objects"] for image in provenances(run_dir / "arms" / "cut_paste" / "synthetic")]
    assert [objects[:1] for objects in three[:3]] == one
    assert 5 < sum(map(len, three)) <= 15
    rows = [len(file.read_text().splitlines()) for file in sorted((tmp_path / "three/yolo").rglob("0*.txt"))]
    assert rows == [len(objects) for objects in three]


def test_default_seed_gives_other_images_and_min_audit_leaves_some_out(run_dir, capsys):
    make(run_dir, count=6)
    more = run_dir / "arms" / "cut_paste" / "more"
    own = images(run_dir / "arms" / "cut_paste" / "synthetic")
    assert (images(more)[:3] != own).any(axis=(1, 2, 3)).all()
    assert {image["seed"] for image in provenances(more)} == {1}
    with pytest.raises(InputError, match="use --overwrite"):
        make(run_dir, count=2)
    scores = [one["audit"] for image in provenances(more) for one in image["objects"]]
    least = sorted(scores)[3]
    make(run_dir, count=6, min_audit=least, overwrite=True)
    kept = sum(score >= least for score in scores)
    assert len(images(more)) == kept
    assert (
        f"{kept} images of cut_paste, {6 - kept} without an object above --min_audit in"
        in capsys.readouterr().out
    )

    file = run_dir / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | {"crossfit_folds": 0}), "utf-8")
    with pytest.raises(InputError, match="needs a run with --crossfit_folds"):
        make(run_dir, count=6, min_audit=0.5, overwrite=True)


def test_generator_is_loaded_from_its_checkpoint(run_dir, tmp_path):
    """A residual generator with output 0 equals cut-and-paste; with output 0.5 it adds the residual scale."""
    run = run_directory.reopen(str(run_dir))
    gan = build.gan(run.settings, "cyclegan", run.dataset, run.strategy)
    gan.G_X.layers[-1].bias.assign([0.5])  # differs from the initial value
    phase = checkpoints.PhaseDirectory(run_dir / "arms" / "cyclegan_bbox" / "joint", gan.parts)
    phase.save(1)
    phase.finish({"steps": 1})
    out = tmp_path / "brighter"
    make(run_dir, "cyclegan_bbox", count=2, seed=0, residual_scale=(0.5, 0.9), out=str(out))
    brighter = images(out)
    change = brighter - images(run_dir / "arms" / "cut_paste" / "synthetic")[:2]
    coco = json.loads((out / "annotations.json").read_text("utf-8"))
    strengths = [one["residual_scale"] for image in provenances(out) for one in image["objects"]]
    assert 0.5 <= min(strengths) < max(strengths) <= 0.9
    for strength, annotation in zip(strengths, coco["annotations"], strict=True):
        x, y, w, h = annotation["bbox"]
        box = annotation["image_id"] - 1, slice(round(y), round(y + h)), slice(round(x), round(x + w))
        inside, saturated = change[box], brighter[box] == 1.0
        np.testing.assert_allclose(inside[~saturated], strength * 0.5, atol=1 / 127.5)
        assert (~saturated).any()
    assert (change == 0).mean() > 0.5
    weights = checkpoints.fingerprint(run_dir / "arms" / "cyclegan_bbox" / "joint")
    assert {image["checkpoint"] for image in provenances(out)} == {weights}


@pytest.mark.nightly
def test_boxes_only_has_the_boxes_of_superpose_and_no_objects(run_dir, tmp_path):
    def made(arm):
        make(run_dir, arm, count=4, seed=0, out=str(tmp_path / arm))
        coco = json.loads((tmp_path / arm / "annotations.json").read_text("utf-8"))
        return coco, json.loads((tmp_path / arm / "audit.json").read_text("utf-8"))["change_inside"]

    (control, nothing), (superposed, something) = made("boxes_only"), made("superpose")
    boxes = [[one["bbox"] for one in coco["annotations"]] for coco in (control, superposed)]
    assert boxes[0] == boxes[1]
    assert nothing == 0 < something


@pytest.mark.parametrize(
    "options, message",
    [
        ({"arm": "detectorgan"}, "the training of the generator of detectorgan is not finished"),
        ({"export": ("vco",)}, "'vco' is not one of voc, yolo, node21"),
        ({"out": "strange", "overwrite": True}, "contains no synthetic images"),
        ({"out": "run/arms/cut_paste/synthetic", "overwrite": True}, "a run was trained on these images"),
    ],
)
def test_invalid_options_raise_and_write_nothing(run_dir, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "thesis.tex").touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=message):
        make(run_dir, **options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_final_detector_raises_on_synthetic_images_of_a_test_group(run_dir):
    file = run_dir / "arms/cut_paste/synthetic/synthetic.tfrecord"
    run = run_directory.reopen(str(run_dir))
    (held_out,) = run.dataset.serialized("test_clean").take(1)
    schema = records.read_features(file.parent)
    made = [records.decode(schema, s)._asdict() for s in records.read_records(file)]
    made = [{name: value.numpy() for name, value in one.items()} for one in made]
    made[1]["groups"] = np.append(made[1]["groups"], run.dataset.decode(held_out).groups[0].numpy())
    records.write_records(file, made, schema)
    shutil.rmtree(run_dir / "arms/cut_paste/final_detector")
    with pytest.raises(InputError, match=rf"{file}: images/000001.png .*, which is in test"):
        phases.final_detector(run, "cut_paste", None)
    assert not (run_dir / "arms/cut_paste/final_detector").exists()
