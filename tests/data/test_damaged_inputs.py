"""Reading a damaged folder of images and annotations gives valid boxes or one InputError.

A thousand random damages are divided among the readers: all annotation formats, the folders of NIH and
Cityscapes, 16-bit PNG and TIFF files. Folders are small, so that most damages are in bytes that are read.
"""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data import test_cityscapes, test_formats, test_nih_chestxray
from tf_detectorgan.data import cityscapes, formats, nih_chestxray, records, validation
from tf_detectorgan.errors import InputError
from tf_detectorgan.prepare import Prepare, prepare

EXAMPLES = 1000  # over all kinds of folders
VALUES = ["nan", "-5", "1e308", "-inf", "", "abc", "9" * 30, "9" * 5000, '"a,b"', "\x00", "é", "0x10", "1e-9"]
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def truncate(path, data):
    content = path.read_bytes()
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])


def overwrite(path, data):
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    noise = data.draw(st.binary(min_size=1, max_size=8))
    path.write_bytes(content[:start] + noise + content[start + len(noise) :])


def other_value(path, data):
    """Replaces a number or word."""
    text = path.read_text("latin-1")
    words = list(re.finditer(r"[\w.-]+", text))
    if words:
        word = data.draw(st.sampled_from(words))
        path.write_text(
            text[: word.start()] + data.draw(st.sampled_from(VALUES)) + text[word.end() :], "latin-1"
        )


def other_json(path, data):
    """Replaces or deletes a value anywhere in a JSON file."""
    if path.suffix != ".json":
        return other_value(path, data)
    document = json.loads(path.read_text())

    def key():
        return data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))

    place = document
    for _ in range(data.draw(st.integers(0, 3))):
        inner = place[key()]
        if not isinstance(inner, (dict, list)) or not inner:
            break
        place = inner
    last = key()
    if data.draw(st.booleans()):
        place[last] = data.draw(JSON_VALUES)
    else:
        del place[last]
    path.write_text(json.dumps(document))


def lines(path, data):
    """Adds a byte order mark, changes line endings, repeats a line, or adds or removes a field."""
    content = path.read_bytes()
    rows = content.split(b"\n")
    number = data.draw(st.integers(0, len(rows) - 1))
    row = rows[number]
    changed = {
        "mark": b"\xef\xbb\xbf" + content,
        "wide": content.decode("latin-1").encode("utf-16"),
        "crlf": content.replace(b"\n", b"\r\n"),
        "cr": content.replace(b"\n", b"\r"),
        "twice": b"\n".join([*rows[: number + 1], *rows[number:]]),
        "more": b"\n".join([*rows[:number], row + b",1 1", *rows[number + 1 :]]),
        "less": b"\n".join([*rows[:number], re.sub(rb"[ ,][^ ,]*$", b"", row), *rows[number + 1 :]]),
        "quote": b"\n".join([*rows[:number], b'"' + row, *rows[number + 1 :]]),
    }
    path.write_bytes(changed[data.draw(st.sampled_from(sorted(changed)))])


def replace(path, data):
    """Removes or empties the file, or makes it a folder, a bad link or a file with a non-UTF-8 name."""
    how = data.draw(st.sampled_from(["missing", "folder", "loop", "dangling", "name", "empty"]))
    content = path.read_bytes()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how in ("loop", "dangling"):
        path.symlink_to(path if how == "loop" else path.with_name("nothing"))
    elif how == "name":
        strange = os.path.join(os.fsencode(path.parent), b"\xff" + os.fsencode(path.name))
        with open(strange, "wb") as file:
            file.write(content)
    elif how == "empty":
        path.touch()


def folders(path, data):
    """Links a folder into itself, or empties it."""
    if data.draw(st.booleans()):
        (path.parent / "again").symlink_to(path.parent, target_is_directory=True)
    else:
        shutil.rmtree(path.parent)
        path.parent.mkdir()


def write_16_bit_images(root, suffix):
    """Replaces the PNG files of a folder by 16-bit files, one of them in colour."""
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        shape = (20, 40, 3) if number == 1 else (20, 40)
        pixels = np.random.default_rng(number).integers(0, 65536, shape).astype(np.uint16)
        path.unlink()
        cv2.imwrite(str(path.with_suffix(suffix)), pixels)


def write_png16(root):
    test_formats.write_coco(root)
    write_16_bit_images(root, ".png")


def write_tiff(root):
    test_formats.write_csv(root)
    write_16_bit_images(root, ".tif")
    table = root / "boxes.csv"
    table.write_text(table.read_text("utf-8").replace(".png", ".tif"), "utf-8")


def write_nih(kind):
    def write(root):
        collection = test_nih_chestxray.Collection(root)
        collection.write()
        test_nih_chestxray.reannotation(root, kind, test_nih_chestxray.BOXED)

    return write


def write_streets(kind):
    """Keeps one city per official split, to save time."""

    def write(root):
        streets = test_cityscapes.Streets(root, kind)
        for city in test_cityscapes.CITIES["train"][1:]:
            shutil.rmtree(streets.root / kind / "train" / city)
            shutil.rmtree(streets.root / "leftImg8bit" / "train" / city)

    return write


def read_formats(kind):
    def read(root, data, skip_bad):
        location = formats.locate(data.draw(st.sampled_from(["auto", kind])), None, root)
        folder = validation.check(location.read(), location.images, keys=validation.Keys(), skip_bad=skip_bad)
        return folder.sources, len(folder.class_names)

    return read


def prepare_or_fail(root, out, data):
    """Prepares the folder; asserts that the data set is complete and valid, or that no file is left."""
    shutil.rmtree(out, ignore_errors=True)
    options = {"out": str(out), "image_size": 16, "splits": (1.0, 0.0, 0.0), "seed": 1}
    dataset = "auto" if data.draw(st.booleans()) else "coco"
    try:
        prepare(Prepare(dataset=dataset, images=str(root), skip_bad=data.draw(st.booleans()), **options))
    except InputError:
        assert not any(path.name.startswith((out.name, f".{out.name}")) for path in out.parent.iterdir())
        return False
    written = records.open_dataset(out)
    written.fingerprint()
    for part in records.SPLITS:
        for image in written.listed(f"{part}_labelled"):
            assert all(0 <= label < len(written.class_names) for label in image.labels)
    return True


def read_nih(kind):
    def read(root, data, skip_bad):
        file = root / {"csv": "extra.csv", "coco": "extra.json"}[kind]
        plan, _ = nih_chestxray.divide(root, finding="Nodule", extra_annotations=file, skip_bad=skip_bad)
        return [source for rows in plan.values() for source in rows], 1

    return read


def read_streets(root, data, skip_bad):
    plan, _ = cityscapes.divide(root, shares=(1.0, 0.0, 0.0), skip_bad=skip_bad)
    return [source for rows in plan.values() for source in rows], 1


KINDS = {kind: (write, read_formats(kind)) for kind, write in test_formats.WRITERS.items()} | {
    "png16": (write_png16, read_formats("coco")),
    "tiff": (write_tiff, read_formats("csv")),
    "nih and csv": (write_nih("csv"), read_nih("csv")),
    "nih and coco": (write_nih("coco"), read_nih("coco")),
    "citypersons": (write_streets("gtBboxCityPersons"), read_streets),
    "gtfine": (write_streets("gtFine"), read_streets),
}
DAMAGES = [truncate, overwrite, other_value, other_json, lines, replace, folders]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_folder_gives_valid_boxes_or_an_input_error(tmp_path, kind):
    (tmp_path / "good").mkdir()
    write, read = KINDS[kind]
    write(tmp_path / "good")
    names = sorted(p.relative_to(tmp_path / "good") for p in (tmp_path / "good").rglob("*") if p.is_file())
    texts = [name for name in names if name.suffix in (".json", ".xml", ".txt", ".yaml", ".csv")]
    valid, errors = [], []

    @given(st.data())
    @settings(max_examples=EXAMPLES // len(KINDS) + 1)
    def damaged(data):
        root = tmp_path / "bad"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "good", root)
        name = data.draw(st.sampled_from(texts) | st.sampled_from(names))
        data.draw(st.sampled_from(DAMAGES))(root / name, data)
        before = sorted(os.listdir(os.fsencode(root)))
        try:
            sources, classes = read(root, data, data.draw(st.booleans()))
        except InputError as error:
            errors.append(str(error))
        else:
            valid.append(sources)
            for source in sources:
                assert source.file_name.encode("utf-8")
                assert source.group.encode("utf-8")
                corners = np.array(source.boxes).reshape(-1, 4)
                assert (corners >= 0).all()
                assert (corners <= [source.width, source.height] * 2).all()
                assert (corners[:, :2] < corners[:, 2:]).all()
                assert all(0 <= label < classes for label in source.labels)
        assert sorted(os.listdir(os.fsencode(root))) == before

    damaged()
    assert min(len(valid), len(errors)) > 5  # both outcomes occurred
    assert len(valid) + len(errors) >= EXAMPLES / len(KINDS)
    for message in errors:
        assert str(tmp_path / "bad") in message or message.startswith("no training images are ")


@pytest.mark.slow
def test_damaged_folder_is_prepared_completely_or_not_at_all(tmp_path):
    (tmp_path / "good").mkdir()
    test_formats.write_coco(tmp_path / "good")
    names = sorted(p.relative_to(tmp_path / "good") for p in (tmp_path / "good").rglob("*") if p.is_file())
    done = []

    @given(st.data())
    @settings(max_examples=60)
    def damaged(data):
        root = tmp_path / "bad"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / "good", root)
        name = data.draw(st.sampled_from(names))
        data.draw(st.sampled_from([truncate, overwrite, other_json, replace]))(root / name, data)
        done.append(prepare_or_fail(root, tmp_path / "set", data))

    damaged()
    assert min(done.count(True), done.count(False)) > 5


def test_damaged_prepared_data_set_is_read_or_is_an_input_error(tmp_path, tiny_phantom):
    good = tiny_phantom("to_be_damaged")
    whole = records.open_dataset(good).fingerprint()
    names = sorted(path.name for path in good.iterdir())
    errors = []

    @given(st.data())
    @settings(max_examples=20)
    def damaged(data):
        root = tmp_path / "bad"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(good, root)
        name = data.draw(st.sampled_from(names))
        data.draw(st.sampled_from([truncate, overwrite, other_json, replace]))(root / name, data)
        try:
            dataset = records.open_dataset(root)
            found = dataset.fingerprint()
        except InputError as error:
            errors.append(str(error))
        else:
            images = [record for part in records.SPLITS for record in dataset.listed(f"{part}_labelled")]
            assert found != whole or len(images) == 10

    damaged()
    assert len(errors) > 5
    assert all(str(tmp_path / "bad") in message for message in errors)
