import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import disk, export_detector
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.records import from_coco_results
from tf_detectorgan.export_detector import Export
from tf_detectorgan.models.detectors.serving import ServedDetector

ROOT = Path(__file__).resolve().parents[1]
KERAS_FILE = """
import sys, keras, numpy as np
import tf_detectorgan.models.detectors.serving
model = keras.saving.load_model(sys.argv[1] + "/detector.keras", safe_mode=True)
np.savez(sys.argv[3], **{k: v.numpy() for k, v in model(np.load(sys.argv[2])).items()})
"""
SAVED_MODEL = """
import sys, numpy as np, tensorflow as tf
serve = tf.saved_model.load(sys.argv[1] + "/saved_model/1").signatures["serving_default"]
answers = [serve(images=tf.constant(batch)) for batch in np.split(np.load(sys.argv[2]), [1])]
assert not any(name.startswith("tf_detectorgan") for name in sys.modules)
np.savez(sys.argv[3], **{k: np.concatenate([a[k].numpy() for a in answers]) for k in answers[0]})
"""


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "detector"
    export_detector.main(Export(run_dir=str(finished_run), arm="cut_paste", out=str(out)))
    return out


@pytest.fixture(scope="module")
def images(finished_run):
    """Returns the ids and stored pixels of the run's test images."""
    data = json.loads((finished_run / "config.json").read_text())["data_dir"]
    dataset = records.open_dataset(data)
    rows = [dataset.decode(one) for s in ("test_labelled", "test_clean") for one in dataset.serialized(s)]
    pixels = [records.to_stored(row.image.numpy(), dataset.bit_depth) for row in rows]
    return [int(row.image_id) for row in rows], np.stack(pixels)


def test_full_disk_raises_one_error_and_leaves_no_files(finished_run, small_disk):
    with pytest.raises((OSError, tf.errors.OpError)) as caught:
        export_detector.main(Export(run_dir=str(finished_run), arm="cut_paste", out=str(small_disk / "out")))
    assert disk.fault(caught.value).endswith("No space left on device")
    assert os.listdir(small_disk) == []


@pytest.mark.parametrize("script", [KERAS_FILE, SAVED_MODEL], ids=["keras", "saved_model"])
def test_exported_detector_in_a_new_process_equals_evaluate(exported, images, finished_run, tmp_path, script):
    ids, pixels = images
    np.save(tmp_path / "images.npy", pixels)
    arguments = [str(exported), str(tmp_path / "images.npy"), str(tmp_path / "found.npz")]
    subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=True)
    served = np.load(tmp_path / "found.npz")
    results = json.loads((finished_run / "arms/cut_paste/evaluation/detections.json").read_text())
    assert sorted(served.files) == ["boxes", "classes", "num_detections", "scores"]
    for i, expected in enumerate(from_coco_results(results, ids)):
        count = served["num_detections"][i]
        assert count == len(expected.labels) > 0
        assert (served["classes"][i, count:] == -1).all()
        np.testing.assert_array_equal(served["classes"][i, :count], expected.labels)
        np.testing.assert_allclose(served["scores"][i, :count], expected.scores, rtol=1e-4)
        np.testing.assert_allclose(served["boxes"][i, :count], expected.boxes, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet_small", "fcos_small", "retinanet_kerashub"])
def test_registered_detectors_are_exported_in_both_formats(name, tmp_path):
    """With initial weights and two classes; other detectors have the same parts."""
    if name == "retinanet_kerashub":
        pytest.importorskip("keras_hub", reason="pip install -c constraints.txt '.[kerashub]'")
    model = ServedDetector(name, (64, 64, 3), 2, 8, {})
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    model.save(tmp_path / "detector.keras")
    export_detector.write_saved_model(model, tmp_path / "saved_model")
    again = keras.saving.load_model(tmp_path / "detector.keras", safe_mode=True)
    serve = tf.saved_model.load(str(tmp_path / "saved_model")).signatures["serving_default"]
    expected = model(images)
    assert (expected["num_detections"].numpy() > 0).all()
    for found in (again(images), serve(images=tf.constant(images))):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=2e-3, err_msg=key)


def test_signature_agrees_with_detector_json(exported):
    card = json.loads((exported / "detector.json").read_text())
    signature = tf.saved_model.load(str(exported / "saved_model/1")).signatures["serving_default"]
    (given,) = signature.structured_input_signature[1].values()
    assert given.name == card["input"]["name"] == "images"
    assert given.dtype.name == card["input"]["dtype"] == "uint8"
    assert given.shape.as_list() == card["input"]["shape"] == [None, 32, 32, 1]
    assert signature.structured_outputs.keys() == card["output"].keys()
    assert card["class_names"] == ["nodule"]


def test_overwrite_replaces_only_an_exported_detector(exported, finished_run, tmp_path):
    options = {"run_dir": str(finished_run), "arm": "cut_paste"}
    out = shutil.copytree(exported, tmp_path / "again")
    with pytest.raises(InputError, match="--overwrite"):
        export_detector.main(Export(**options, out=str(out)))
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="contains no exported detector"):
        export_detector.main(Export(**options, out=str(tmp_path), overwrite=True))


def test_export_of_an_unfinished_arm_raises(finished_run, tmp_path):
    with pytest.raises(InputError, match="no final detector of acgan; run"):
        export_detector.main(Export(run_dir=str(finished_run), arm="acgan", out=str(tmp_path / "x")))
