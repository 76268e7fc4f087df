import collections
import json
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tf_detectorgan.data import image_builder, image_files, records, shards, validation
from tf_detectorgan.data.formats import coco_file
from tf_detectorgan.errors import InputError


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(pixels).numpy())


class Folder:
    """A COCO folder of six 40 x 20 images: 1 to 3 have a box, 4 to 6 are clean; patients have two images."""

    def __init__(self, root):
        self.root = root
        self.file = root / "annotations.json"
        self.document = {
            "categories": [{"id": 7, "name": "crack"}, {"id": 3, "name": "hole"}],
            "images": [
                {
                    "id": i,
                    "file_name": f"images/{i}.png",
                    "width": 40,
                    "height": 20,
                    "split_group": f"p{i // 2}",
                }
                for i in range(1, 7)
            ],
            "annotations": [
                {"id": 10 + i, "image_id": i, "category_id": (7, 3)[i % 2], "bbox": [4.0, 5.0, 8.0, 10.0]}
                for i in range(1, 4)
            ],
        }
        for image in self.document["images"]:
            write_png(root / image["file_name"], np.full((20, 40, 1), 10 * image["id"], np.uint8))

    def read(self, **options):
        self.file.write_text(json.dumps(self.document))
        return validation.check(
            coco_file.read(self.file, self.root), self.root, **{"keys": validation.Keys()} | options
        )


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_valid_folder_is_read_completely(folder):
    result = folder.read()
    assert result.class_names == ["hole", "crack"]  # in the order of the category ids
    assert [s.boxes for s in result.sources] == [[(4, 5, 12, 15)]] * 3 + [[]] * 3
    assert [s.labels for s in result.sources] == [[0], [1], [0], [], [], []]
    assert [s.stream for s in result.sources] == ["labelled"] * 3 + ["clean"] * 3
    assert [s.group for s in result.sources] == ["p0", "p1", "p1", "p2", "p2", "p3"]
    assert not any(note.startswith("skipped") for note in result.notes)


def test_note_counts_images_that_the_file_does_not_list(folder):
    assert not any("left out" in note for note in folder.read().notes)
    gone = folder.document["images"].pop()
    (note,) = [note for note in folder.read().notes if "left out" in note]
    assert note.startswith("1 images that annotations.json does not list are left out; ")
    folder.document["images"].append(gone | {"file_name": "6.png"})  # next to the annotation file
    assert any(note.startswith("1 images that") for note in folder.read(skip_bad=True).notes)


def box(values):
    def change(folder):
        folder.document["annotations"][1]["bbox"] = values

    return change


def edit(kind, index, **changes):
    def change(folder):
        folder.document[kind][index] |= changes

    return change


def repeat(kind):
    def change(folder):
        folder.document[kind].append(dict(folder.document[kind][0]))

    return change


def file(contents):
    def change(folder):
        path = folder.root / "images/2.png"
        path.unlink() if contents is None else path.write_bytes(contents)

    return change


NAN, INFINITY = float("nan"), float("inf")
BAD_ROWS = {  # reason: (change to the folder, parts of the error message)
    "missing image": (file(None), ["images/2.png", "image 2"]),
    "undecodable image": (file(b"no image"), ["images/2.png", "image 2"]),
    "undecodable image ": (file(b""), ["images/2.png", "image 2"]),
    "image of another size": (edit("images", 1, width=41), ["images/2.png", "image 2", "width 41", "40"]),
    "box outside the image": (box([4, 5, 38.5, 10]), ["annotation 12", "image 2", "38.5", "2.5 px"]),
    "box outside the image ": (box([-1.5, 5, 8, 10]), ["annotation 12", "-1.5", "1.5 px"]),
    "zero-area box": (box([4, 5, 0, 10]), ["annotation 12", "[4, 5, 0, 10]"]),
    "zero-area box ": (box([40.0, 5, 0.5, 10]), ["annotation 12", "[40.0, 5, 0.5, 10]"]),
    "negative box size": (box([4, 5, -8, 10]), ["annotation 12", "[4, 5, -8, 10]"]),
    "NaN or infinite box": (box([4, NAN, 8, 10]), ["annotation 12", "nan"]),
    "NaN or infinite box ": (box([4, 5, INFINITY, 10]), ["annotation 12", "inf"]),
    "malformed box": (box([4, 5, 8]), ["annotation 12", "[4, 5, 8]"]),
    "malformed box ": (box([4, 5, "8", 10]), ["annotation 12", "'8'"]),
    "malformed box  ": (box(None), ["annotation 12", "None"]),
    "unknown category": (edit("annotations", 1, category_id=99), ["annotation 12", "99", "[3, 7]"]),
    "unknown image id": (edit("annotations", 1, image_id=77), ["annotation 12", "77"]),
    "duplicate image id": (repeat("images"), ["image id 1", "images/1.png"]),
    "duplicate annotation id": (repeat("annotations"), ["annotation 11"]),
    "image without id or file_name": (edit("images", 1, id="two"), ["images[1]", "'two'"]),
    "name that is not UTF-8": (edit("images", 1, file_name="\udcff.png"), ["image 2", "udcff"]),
    "malformed annotation id": (edit("annotations", 1, id=[7]), ["annotation [7]", "image 2"]),
    "NaN or infinite box   ": (box([4, 10**400, 8, 10]), ["annotation 12", "exceeds 64 bits"]),
    "image without group": (edit("images", 1, split_group=None), ["images/2.png", "split_group"]),
    "missing image ": (edit("images", 1, file_name="9" * 300), ["9" * 300, "image 2"]),
    "file named twice": (edit("images", 1, file_name="images/../images/3.png"), ["image 2 and image 3"]),
    "clean image with boxes": (edit("images", 1, clean=True), ["images/2.png", "image 2", "has 1 boxes"]),
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_bad_row_error_names_file_id_and_value_and_row_can_be_skipped(folder, reason):
    change, expected = BAD_ROWS[reason]
    change(folder)
    with pytest.raises(InputError) as caught:
        folder.read()
    for part in [str(folder.file), "--skip_bad", *expected]:
        assert part in str(caught.value)
    result = folder.read(skip_bad=True)
    assert f"skipped 1 x {reason.strip()}" in result.notes
    # An image whose box was skipped shows an object, so it must not count as clean. (A box with an unknown
    # image id changes no image.)
    clean = {s.image_id for s in result.sources if s.stream == "clean"}
    assert clean == ({2, 4, 5, 6} if reason == "unknown image id" else {4, 5, 6})


def test_two_files_with_the_same_id_are_both_skipped(folder):
    edit("images", 1, id=1)(folder)
    assert [s.image_id for s in folder.read(skip_bad=True).sources] == [3, 4, 5, 6]


def test_all_problems_are_counted_and_ten_are_shown(folder):
    for image in folder.document["images"]:
        (folder.root / image["file_name"]).unlink()
    for number in range(20, 28):
        folder.document["annotations"].append(
            {"id": number, "image_id": 99, "category_id": 3, "bbox": [0, 0, 1, 1]}
        )
    with pytest.raises(
        InputError, match=r"14 problems(.|\n)*and 4 more; in total 8 x unknown image id, 6 x missing image"
    ) as caught:
        folder.read()
    assert len(str(caught.value).splitlines()) == 12


@pytest.mark.parametrize(
    "contents, expected",
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "'images'"),
        ('{"images": [], "annotations": [], "categories": []}', "'images' is empty"),
        ('{"images": [{"id": 1}], "annotations": 3, "categories": []}', "'annotations'"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "'categories' is empty"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": "x"}]}', "category"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": ""}]}', "name"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": " a"}]}', "spaces"),
        (
            '{"images": [{"id": 1}], "annotations": [], "categories": [{"id": 1, "name": "a\\nb"}]}',
            "one line",
        ),
    ],
)
def test_invalid_coco_file_is_an_error_even_with_skip_bad(tmp_path, contents, expected):
    path = tmp_path / "boxes.json"
    if contents is not None:
        path.write_text(contents)
    with pytest.raises(InputError, match=re.escape(expected)) as caught:
        validation.check(coco_file.read(path, tmp_path), tmp_path, keys=validation.Keys(), skip_bad=True)
    assert "boxes.json" in str(caught.value)


def test_12_bit_values_in_16_bit_files_are_scaled_and_noted(folder, tmp_path):
    write_png(folder.root / "images/2.png", np.full((20, 40, 1), 3000, np.uint16))
    result = folder.read()
    assert result.white == 4095
    assert any("brighter than 3000, so 4095 is used as white" in note for note in result.notes)
    _, rows = build(folder, tmp_path / "set", image_size=0, channels=1, white=result.white)
    image = records.to_stored(rows[2].image.numpy(), 16)[:20, :40]
    np.testing.assert_array_equal(image, round(3000 / 4095 * 65535))
    write_png(folder.root / "images/2.png", np.full((20, 40, 1), 40950, np.uint16))
    assert folder.read().notes == []


def test_8_bit_values_in_16_bit_files_are_scaled(folder):
    write_png(folder.root / "images/2.png", np.full((20, 40, 1), 250, np.uint16))
    assert folder.read().white == 255


def test_repeated_box_counts_once_and_is_noted(folder):
    folder.document["annotations"].append({**folder.document["annotations"][0], "id": 99})
    result = folder.read()
    assert result.sources[0].boxes == [(4, 5, 12, 15)]
    assert any("1 boxes repeat a box" in note for note in result.notes)
    other = 10 - folder.document["annotations"][0]["category_id"]  # 3 and 7
    folder.document["annotations"][-1]["category_id"] = other  # two objects in one place
    assert len(folder.read().sources[0].boxes) == 2


def test_box_up_to_one_pixel_outside_is_clipped(folder):
    box([-1.0, 5, 42.0, 15.9])(folder)
    assert folder.read().sources[1].boxes == [(0, 5, 40, 20)]


def test_stream_follows_clean_key_and_crowd_makes_an_image_unboxed(folder):
    edit("images", 3, clean=False)(folder)
    edit("images", 4, clean=True)(folder)
    edit("annotations", 0, iscrowd=1)(folder)
    result = folder.read()
    streams = [s.stream for s in result.sources]
    assert streams == ["unboxed", "labelled", "labelled", "unboxed", "clean", "clean"]
    assert result.sources[0].training_only
    assert any("iscrowd" in note for note in result.notes)


def test_label_filter_makes_images_of_other_classes_clean(folder):
    edit("images", 1, clean=False)(folder)
    result = folder.read(label_filter=["hole"])
    assert result.class_names == ["hole"]
    assert [s.stream for s in result.sources] == ["labelled", "clean", "labelled", "clean", "clean", "clean"]
    with pytest.raises(InputError, match="'holes' is not one of"):
        folder.read(label_filter=["holes"])


def test_excluded_images_are_left_out_with_their_boxes(folder):
    edit("images", 1, exclude=True)(folder)
    result = folder.read()
    assert [s.image_id for s in result.sources] == [1, 3, 4, 5, 6]
    assert any("1 images left out" in note for note in result.notes)


def test_each_image_is_its_own_group_by_default_and_unknown_group_key_is_an_error(folder):
    with pytest.raises(InputError, match="--group_key=patient"):
        folder.read(keys=validation.Keys(group="patient"))
    for image in folder.document["images"]:
        del image["split_group"]
    result = folder.read()
    assert len({s.group for s in result.sources}) == 6
    assert any("its own group" in note for note in result.notes)


def test_group_in_two_given_splits_is_an_error_naming_both(folder):
    for image, part in zip(
        folder.document["images"], ["train", "val", "train", "train", "test", "test"], strict=True
    ):
        image["part"] = part
    keys = validation.Keys(split="part")
    with pytest.raises(InputError, match="'p1'.*train and validation"):
        image_builder.divide(folder.read(keys=keys).sources, (0.7, 0.1, 0.2), 0, 0, "part")
    folder.document["images"][1]["part"] = "train"
    folder.document["images"][4]["part"] = "train"
    plan, _ = image_builder.divide(folder.read(keys=keys).sources, (0.7, 0.1, 0.2), 0, 0, "part")
    assert {split: [s.image_id for s in rows] for split, rows in plan.items()} == {
        "train_labelled": [1, 2, 3],
        "train_clean": [4, 5],
        "test_clean": [6],
    }
    folder.document["images"][0]["part"] = "training"
    with pytest.raises(InputError, match=r"images/1.png.*'training'"):
        folder.read(keys=keys)


@pytest.mark.parametrize("only", ["no_such=nih", "source=no_such"])
def test_train_only_without_matching_image_is_an_error(folder, only):
    edit("images", 1, source="nih")(folder)
    with pytest.raises(InputError, match=f"--train_only={only}"):
        folder.read(keys=validation.Keys(training_only=only))


def test_missing_clean_or_labelled_training_images_are_an_error(folder):
    sources = folder.read().sources
    with pytest.raises(InputError, match="no training images are clean"):
        image_builder.divide(sources[:3], (1.0, 0.0, 0.0), 0, 0, "")
    with pytest.raises(InputError, match="no training images are labelled"):
        image_builder.divide(sources[3:], (1.0, 0.0, 0.0), 0, 0, "")


def source(number, group, boxes, training_only):
    one = image_files.AnnotatedImage(number, f"{number}.png", None, group, None, training_only, None, 20, 40)
    one.boxes, one.labels = [(0.0, 0.0, 1.0, 1.0)] * boxes, [0] * boxes
    return one


@given(
    images=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans()), min_size=8, max_size=80),
    seed=st.integers(0, 20),
)
@settings(max_examples=80)
def test_splits_never_share_a_group_and_lose_no_image(images, seed):
    sources = [source(i, f"g{g}", boxes, only) for i, (g, boxes, only) in enumerate(images)]
    sources += [source(1000, "l", 1, True), source(1001, "c", 0, True)]
    plan, notes = image_builder.divide(sources, (0.5, 0.2, 0.3), seed, 1, "")
    groups = collections.defaultdict(set)
    for split, rows in plan.items():
        for row in rows:
            groups[row.group].add(split.split("_")[0])
            assert not row.training_only or split.startswith("train")
    assert all(len(parts) == 1 for parts in groups.values())
    left_out = sum(int(note.split()[0]) for note in notes)
    assert sum(map(len, plan.values())) + left_out == len(sources)
    assert len(plan["train_labelled"]) == 1


def build(folder, out, **form):
    result = folder.read()
    division, _ = image_builder.divide(result.sources, (1.0, 0.0, 0.0), 0, 0, "")
    about = shards.About("coco", "1.0.0", "Images with boxes")
    shards.build(image_builder.plan(division, result.class_names, about, **form), out)
    dataset = records.open_dataset(out)
    rows = [dataset.decode(s) for split in division for s in dataset.serialized(split)]
    return dataset, {int(row.image_id): row for row in rows}


def test_stored_image_and_boxes_equal_hand_computed_values(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 100, 1)).astype(np.uint8)
    write_png(folder.root / "images/2.png", pixels)
    edit("images", 1, width=100, height=50)(folder)
    box([10, 20, 30.5, 25])(folder)
    dataset, rows = build(folder, tmp_path / "set", image_size=50, channels=1)
    assert dataset.image_shape == (64, 64, 1)  # the next multiple of 32
    row = rows[2]
    np.testing.assert_array_equal(row.boxes, [[5, 10, 20.25, 22.5]])  # halved
    np.testing.assert_array_equal(row.labels, [1])
    np.testing.assert_array_equal(row.valid_size, [25, 50])
    np.testing.assert_array_equal(row.source_size, [50, 100])
    assert row.file_name.numpy() == b"images/2.png"
    assert row.groups.numpy().tolist() == [b"p1"]
    stored = records.to_stored(row.image.numpy(), 8)
    means = pixels[..., 0].reshape(25, 2, 50, 2).mean((1, 3))
    np.testing.assert_allclose(stored[:25, :50, 0], means, atol=0.5 + 1e-4)
    assert stored[25:].max() == stored[:, 50:].max() == 0
    np.testing.assert_array_equal(rows[1].boxes, [[5, 6.25, 15, 18.75]])  # 40 x 20 grown to 50 x 25
    np.testing.assert_array_equal(records.to_stored(rows[1].image.numpy(), 8)[:25, :50], 10)


def test_16_bit_colour_among_8_bit_grey_is_stored_losslessly(folder, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 40, 3)).astype(np.uint16)
    write_png(folder.root / "images/2.png", pixels)
    dataset, rows = build(folder, tmp_path / "set", image_size=0, channels=3)
    assert (dataset.image_shape, dataset.bit_depth) == ((64, 64, 3), 16)
    np.testing.assert_array_equal(records.to_stored(rows[2].image.numpy(), 16)[:20, :40], pixels)
    np.testing.assert_array_equal(records.to_stored(rows[1].image.numpy(), 16)[:20, :40], 257 * 10)
    np.testing.assert_array_equal(rows[2].boxes, [[4, 5, 12, 15]])
