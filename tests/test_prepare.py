import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import command, config
from tf_detectorgan.data import image_files, records
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_INTERRUPTED, InputError
from tf_detectorgan.prepare import Prepare, prepare

COMMAND = [sys.executable, "-m", "tf_detectorgan.prepare"]
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def annotations(tmp_path):
    """30 images of 15 patients, every second image with a box."""
    images, rows = [], []
    for number in range(30):
        pixels = np.full((30, 30, 1), 5 * number, np.uint8)
        (tmp_path / f"{number}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        images.append({"id": number, "file_name": f"{number}.png", "split_group": number // 2})
        if number % 2:
            rows.append({"id": number, "image_id": number, "category_id": 1, "bbox": [3, 6, 9, 1.5]})
    path = tmp_path / "boxes.json"
    document = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "spot"}]}
    document |= {"info": {"by": "A. Nurse\ud800", "year": 2020}, "licenses": [{"id": 1, "name": "CC0"}, 3]}
    path.write_text(json.dumps(document))
    return path


def options(file, **changes):
    return Prepare(**{"annotations": str(file), "out": str(file.parent / "out")} | changes)


def test_prepare_writes_the_data_set_and_prints_its_contents(annotations, capsys):
    prepare(options(annotations, train_images=5, image_size=32))
    dataset = records.open_dataset(annotations.parent / "out")
    counts = [dataset.count(f"{part}_labelled") for part in records.SPLITS]
    assert counts[0] == 5
    assert sum(counts[1:]) in (4, 5)  # 30 % of 15
    assert sum(dataset.count(f"{part}_clean") for part in records.SPLITS) == 15
    assert dataset.citation == "by: A. Nurse?\nyear: 2020\nlicence: CC0"
    printed = capsys.readouterr().out
    assert "spot 5" in printed
    assert "labelled training images left out by --train_images" in printed
    assert "5 of 5 boxes are under 2 px" in printed


def test_overwrite_replaces_a_prepared_data_set_and_nothing_else(annotations):
    out = annotations.parent / "out"
    prepare(options(annotations))
    first = records.open_dataset(out).fingerprint()
    with pytest.raises(InputError, match="--overwrite"):
        prepare(options(annotations, seed=1))
    assert records.open_dataset(out).fingerprint() == first
    prepare(options(annotations, seed=1, overwrite=True))
    assert records.open_dataset(out).fingerprint() != first
    other = annotations.parent / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a prepared data set"):
        prepare(options(annotations, out=str(other), overwrite=True))
    assert (other / "thesis.tex").read_text() == "years of work"


def test_interrupted_prepare_keeps_finished_shards_and_resumes(annotations, monkeypatch, capsys):
    prepare(options(annotations, out=str(annotations.parent / "other")))
    before = sorted(os.listdir(annotations.parent))
    read, calls = image_files.AnnotatedImage.read, []

    def stopped(self):
        calls.append(self.image_id)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return read(self)

    monkeypatch.setattr(image_files.AnnotatedImage, "read", stopped)
    with pytest.raises(KeyboardInterrupt):
        prepare(options(annotations))
    assert len(calls) == 20
    assert sorted(os.listdir(annotations.parent)) == [".out.partial", *before]
    work = annotations.parent / ".out.partial"
    kept = sorted(path for path in work.rglob("*") if path.is_file() and path.name != "key")
    written = sum(records.check_records(path)[0] for path in kept)
    assert 10 < written < 20
    assert f"{len(kept)} of 6 record files are finished and kept in {work}" in capsys.readouterr().err
    kept[0].with_name(f".{kept[0].name}.0a1b2c3d.partial").write_bytes(b"half")  # as after SIGKILL

    prepare(options(annotations))
    assert len(calls) == 20 + 30 - written  # images in finished files are not read again
    assert sorted(os.listdir(annotations.parent)) == sorted([*before, "out"])
    out, other = (records.open_dataset(annotations.parent / name) for name in ("out", "other"))
    assert out.fingerprint() == other.fingerprint()


def guarded(monkeypatch, chosen):
    monkeypatch.setattr(config, "read_flags", lambda _: chosen)
    return command.guard(Prepare, prepare)


def test_prepare_resumes_after_disk_full_error(annotations, small_disk, monkeypatch, capsys):
    prepare(options(annotations))
    chosen = options(annotations, out=str(small_disk / "set"))
    filler = small_disk / "filler"
    filler.write_bytes(bytes(4096))  # one of four blocks; the key and the first record files fill the others
    capsys.readouterr()
    assert guarded(monkeypatch, chosen) == EXIT_CANNOT_WRITE
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.match(rf"error: {small_disk}/.*: No space left on device; ", errors[0])
    assert sorted(os.listdir(small_disk)) == [".set.partial", "filler"]
    kept = [
        path for path in (small_disk / ".set.partial").rglob("*") if path.is_file() and path.name != "key"
    ]
    assert kept
    assert all(records.check_records(path)[0] for path in kept)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    prepare(chosen)
    assert sorted(os.listdir(small_disk)) == ["filler", "set"]
    made, whole = (records.open_dataset(place) for place in (chosen.out, annotations.parent / "out"))
    assert made.fingerprint() == whole.fingerprint()


def test_read_only_disk_is_one_error_before_images_are_read(annotations, small_disk, monkeypatch, capsys):
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert guarded(monkeypatch, options(annotations, out=str(small_disk / "set"))) == EXIT_CANNOT_WRITE
    printed = capsys.readouterr()
    assert re.fullmatch(rf"error: {small_disk}/\S+: Read-only file system; [^\n]+\n", printed.err)
    assert not printed.out  # the error is raised before any image is read
    assert os.listdir(small_disk) == []


def test_partial_files_of_other_settings_are_not_reused(annotations, monkeypatch):
    read = image_files.AnnotatedImage.read

    def stopped(self):
        if self.image_id % 2 == 0:  # the clean ones, written after the labelled ones of each split
            raise KeyboardInterrupt
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(image_files.AnnotatedImage, "read", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(options(annotations, image_size=32))
    prepare(options(annotations, image_size=64))
    assert records.open_dataset(annotations.parent / "out").image_shape == (64, 64, 1)
    assert not list(annotations.parent.glob(".*"))


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"out": ""}, "--out="),
        ({"annotations": ""}, "--annotations="),
        ({"images": "/no/such/place"}, "--images=/no/such/place"),
        ({"images": "x" * 300}, "--images=xxx.*: no such directory"),
        ({"out": "x" * 300}, "--out=.*xxx: a name has more than 200 bytes"),
        ({"out": "\udcff"}, "--out=.*: not valid UTF-8"),
        ({"out": "/"}, "--out=/: exists and is not a prepared data set"),
        ({"splits": (0.5, 0.2)}, "--splits=0.5,0.2"),
        ({"train_images": 57}, "--train_images=57"),
        ({"dataset": "phantom", "annotations": "", "image_size": 16}, "--image_size=16"),
        ({"dataset": "phantom"}, "--annotations: has no effect with --dataset=phantom"),
        ({"finding": "Mass"}, "--finding: has no effect with --dataset=auto, only with nih"),
        ({"phantom_test_images": 5}, "--phantom_test_images: has no effect"),
    ],
)
def test_invalid_option_is_an_error_before_anything_is_written(annotations, changes, expected):
    before = sorted(os.listdir(annotations.parent))
    with pytest.raises(InputError, match=expected):
        prepare(options(annotations, **changes))
    assert sorted(os.listdir(annotations.parent)) == before


def test_prepare_writes_the_phantom(tmp_path, capsys):
    small = {f"phantom_{name}_images": 2 for name in ("clean", "unboxed", "validation", "test", "test_clean")}
    prepare(Prepare(dataset="phantom", out=str(tmp_path / "set"), image_size=64, train_images=4, **small))
    assert records.open_dataset(tmp_path / "set").count("train_labelled") == 4
    assert "nodule" in capsys.readouterr().out


def test_bad_input_ends_the_command_with_one_error_line_and_exit_code(annotations):
    annotations.write_text("")
    flagfile = annotations.parent / "bad.flags"
    flagfile.write_text(f"# comment\n--annotations=another.json\n--out={annotations.parent / 'out'}\n")
    command = [
        *COMMAND,
        f"--annotations={annotations}",
        "--flagfile",
        str(flagfile),
    ]  # the first one has precedence
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == EXIT_BAD_INPUT
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: --annotations={annotations}: the file is empty; give a COCO detection file"]
    assert "Traceback" not in done.stderr


def test_help_lists_every_option():
    done = subprocess.run([*COMMAND, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    for field in dataclasses.fields(Prepare):
        assert re.search(rf"^  --{field.name}=", done.stdout, re.MULTILINE), field.name
    assert "  --group_key=split_group\n" in done.stdout
    assert done.returncode == 0


@pytest.mark.slow
def test_sigterm_before_the_first_finished_shard_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        [
            *COMMAND,
            "--dataset=phantom",
            "--image_size=64",
            "--train_images=5000",
            f"--out={tmp_path / 'set'}",
        ],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 300
        while not list(tmp_path.rglob("*.tfrecord*.partial")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None, "the command ended before a partial file was found"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == EXIT_INTERRUPTED
    finally:
        process.kill()
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_magnetic_tiles_keep_groups_together_and_boxes_in_place(real_data, tmp_path):
    source = real_data("magnetic_tile_defects")
    prepare(Prepare(annotations=str(source / "annotations.json"), out=str(tmp_path / "set"), train_images=57))
    dataset = records.open_dataset(tmp_path / "set")
    assert dataset.class_names == ("Blowhole", "Break", "Crack")
    document = json.loads((source / "annotations.json").read_text())
    images = {image["id"]: image for image in document["images"]}
    boxes: dict[int, list] = {}
    for row in document["annotations"]:
        x, y, w, h = row["bbox"]
        boxes.setdefault(row["image_id"], []).append([x, y, x + w, y + h])
    groups: dict[str, str] = {}
    for split in (f"{part}_{stream}" for part in records.SPLITS for stream in records.STREAMS):
        for record in dataset.serialized(split).map(dataset.decode).as_numpy_iterator():
            image = images[int(record.image_id)]
            assert record.groups[0].decode() == image["split_group"]
            assert groups.setdefault(image["split_group"], split.split("_")[0]) == split.split("_")[0]
            scale = 128 / max(image["width"], image["height"])
            # Resized sides are rounded to whole pixels: an error of at most half a pixel of 128.
            np.testing.assert_allclose(
                record.boxes, np.reshape(boxes.get(image["id"], []), (-1, 4)) * scale, atol=0.51
            )
    assert dataset.count("train_labelled") == 57


def test_nih_sample_is_prepared_without_missing_images(real_data, tmp_path, capsys):
    """The sample has 48 of the 51,496 images that the tables list for Pneumonia."""
    prepare(
        Prepare(
            images=str(real_data("nih_raw_sample")),
            finding="Pneumonia",
            out=str(tmp_path / "set"),
            skip_bad=True,
            image_size=64,
        )
    )
    dataset = records.open_dataset(tmp_path / "set")
    counts = [dataset.count(f"train_{stream}") for stream in records.STREAMS]
    assert counts[1:] == [20, 8]
    assert counts[0] + dataset.count("validation_labelled") + dataset.count("test_labelled") == 20
    printed = capsys.readouterr().out
    skipped = re.findall(r"skipped (\d+) x missing image of", printed)
    assert sum(map(int, skipped)) == 51448
    assert printed.startswith(f"found NIH ChestX-ray in {real_data('nih_raw_sample')}: train_labelled ")
    assert "not normal" in printed
