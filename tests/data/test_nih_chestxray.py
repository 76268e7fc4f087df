"""Tests of the NIH reader on the real tables, and on a small data set of 64 x 64 images."""

import collections
import csv
import html
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tf_detectorgan.data import image_builder, nih_chestxray, nih_tables, records, shards
from tf_detectorgan.errors import InputError
from tf_detectorgan.experiments import data_card

BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
LABEL_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,OriginalImage[Width,Height],"
BOXED = [f"{patient:08d}_000.png" for patient in range(1, 21)]
CLEAN = ["00000101_000.png", "00000101_001.png", "00000102_000.png"]
UNBOXED = ["00000103_000.png"]
OTHERS = ["00000104_000.png"]  # another finding: neither clean nor labelled
HIDDEN = ["00000021_000.png"]  # a nodule without a box, of a patient with boxes: not used
BOX = (512.0, 256.0, 128.0, 64.0)  # x, y, width, height in an image of 1024 pixels


class Collection:
    """20 boxed nodules of 20 patients, 3 clean images, and one image with a nodule but no box."""

    def __init__(self, root):
        self.root = root
        self.boxes = [BOX_HEADER, *(f"{name},Nodule,512.0,256.0,128.0,64.0" for name in BOXED)]
        self.boxes.append(f"{BOXED[0]},Mass,1,2,3,4")
        self.labels = [LABEL_HEADER, *(f"{name},Mass|Nodule,0,1,2500,2048," for name in BOXED)]
        self.labels += [f"{name},No Finding,0,1,2500,2048," for name in CLEAN]
        self.labels += [f"{name},Nodule,0,1,2500,2048," for name in UNBOXED + HIDDEN]
        self.labels += [f"{name},Hernia,0,1,2500,2048," for name in OTHERS]
        self.training = CLEAN + UNBOXED + OTHERS
        self.write_images("images_001", BOXED)
        self.write_images("images_012", self.training)

    def write_images(self, folder, names, mode="L"):
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            self.image(name).convert(mode).save(self.root / folder / name)

    @staticmethod
    def image(name):
        pixels = np.random.default_rng(int(name[:8] + name[9:12])).integers(0, 256, (64, 64))
        return Image.fromarray(pixels.astype(np.uint8))

    def write(self, encoding="utf-8", newline="\n"):
        for name, lines in (
            ("BBox_List_2017.csv", self.boxes),
            ("Data_Entry_2017_v2020.csv", self.labels),
            ("train_val_list.txt", self.training),
        ):
            (self.root / name).write_bytes((newline.join(lines) + newline).encode(encoding))

    def plan(self, finding="Nodule", **options):
        self.write()
        return nih_chestxray.divide(self.root, finding=finding, **options)


@pytest.fixture
def collection(tmp_path):
    return Collection(tmp_path / "nih")


def names(plan):
    return {split: [source.file_name for source in rows] for split, rows in plan.items()}


def test_division_of_nodules_on_the_real_tables_is_the_papers(real_data):
    """57, 9 and 13 images by patient for any seed; the streams equal sets computed from the tables here."""
    folder = real_data("nih_raw_sample")
    sources, notes = nih_chestxray._sources(folder, "Nodule")
    with (folder / "Data_Entry_2017_v2020.csv").open(newline="") as file:
        labels = {row["Image Index"]: row["Finding Labels"].split("|") for row in csv.DictReader(file)}
    offered = (folder / "train_val_list.txt").read_text().split()
    with (folder / "BBox_List_2017.csv").open(newline="") as file:
        boxed = {row[0] for row in csv.reader(file) if row[1] == "Nodule"}
    nodules = {name for name in offered if "Nodule" in labels[name]} - boxed
    clean = {name for name in offered if labels[name] == ["No Finding"]}
    assert (len(boxed), len(nodules), len(clean)) == (79, 4708, 50500)
    assert "6331 images are labelled Nodule, 6252 of them have no box" in notes[0]
    assert any("not normal" in note for note in notes)
    tests = []
    for seed in range(2):
        plan, _ = image_builder.divide(sources, nih_chestxray.SHARES, seed, 0, "")
        counts = {split: len(rows) for split, rows in plan.items()}
        assert counts == {
            "train_labelled": 57,
            "train_clean": 50500,
            "train_unboxed": 4708,
            "validation_labelled": 9,
            "test_labelled": 13,
        }
        assert {s.file_name for s in plan["train_clean"]} == clean
        assert {s.file_name for s in plan["train_unboxed"]} == nodules
        parts = collections.defaultdict(set)
        for split, rows in plan.items():
            for source in rows:
                parts[source.file_name[:8]].add(split.split("_")[0])
        assert {len(found) for found in parts.values()} == {1}
        tests.append(names(plan)["test_labelled"])
    assert tests[0] != tests[1]
    again, _ = image_builder.divide(sources, nih_chestxray.SHARES, 0, 0, "")
    assert names(again)["test_labelled"] == tests[0]


def test_real_table_has_the_published_number_of_boxes(real_data):
    """The numbers of Wang et al. 2017: 984 boxes, 880 images, 726 patients."""
    boxes = nih_tables.read_boxes(real_data("nih_raw_sample") / "BBox_List_2017.csv")
    found = {finding: sum(map(len, rows.values())) for finding, rows in boxes.items()}
    assert found == dict(
        zip(nih_tables.FINDINGS, (180, 146, 153, 123, 85, 79, 120, 98), strict=True)
    )  # in alphabetical order
    images = {name for rows in boxes.values() for name in rows}
    assert (len(images), len({nih_tables.patient(name) for name in images})) == (880, 726)


def test_streams_and_splits_of_a_small_data_set(collection):
    plan, notes = collection.plan(shares=(0.7, 0.1, 0.2))
    counts = {split: len(rows) for split, rows in plan.items()}
    assert counts == {
        "train_labelled": 14,
        "train_clean": 3,
        "train_unboxed": 1,
        "validation_labelled": 2,
        "test_labelled": 4,
    }
    assert names(plan)["train_clean"] == CLEAN
    assert names(plan)["train_unboxed"] == UNBOXED
    assert "22 images are labelled Nodule, 2 of them have no box of it; 1 of those, and 3 images" in notes[0]
    assert plan["test_labelled"][0].boxes == [(32, 16, 40, 20)]  # scaled from 1024 to 64 pixels
    assert plan["train_clean"][0].group == "00000101"


@pytest.mark.parametrize("folder", ["images_003/images", "images", "images_002"])
def test_images_are_found_in_each_folder_layout(collection, folder):
    before = names(collection.plan()[0])
    for parent in ("images_001", "images_012"):
        target = collection.root / folder
        target.mkdir(parents=True, exist_ok=True)
        for path in (collection.root / parent).glob("*.png"):
            path.rename(target / path.name)
    plan, _ = collection.plan()
    assert names(plan) == before
    assert {source.path.parent for rows in plan.values() for source in rows} == {collection.root / folder}


@pytest.mark.parametrize(
    "encoding, newline, change",
    [
        ("utf-8-sig", "\n", lambda c: None),
        ("utf-8", "\r\n", lambda c: None),
        ("utf-8", "\n", lambda c: c.boxes.extend(c.boxes[1:4])),
        ("utf-8", "\n", lambda c: c.labels.extend(c.labels[1:4])),
        ("utf-8", "\n", lambda c: c.training.extend(c.training[:2])),
        ("utf-8", "\n", lambda c: c.boxes.__setitem__(slice(1, None), [f"{row},,," for row in c.boxes[1:]])),
        ("utf-8", "\n", lambda c: c.boxes.__setitem__(0, 'Image Index,Finding Label,"Bbox [x,y,w,h]"')),
        ("utf-8", "\n", lambda c: c.labels.__setitem__(1, f'"{BOXED[0]}","Mass|Nodule","a, quoted ""b""",1')),
        ("utf-8", "\n", lambda c: c.labels.insert(3, "")),
    ],
    ids="bom crlf boxes-twice labels-twice names-twice kaggle quoted-header quoted-field empty-line".split(),
)
def test_all_editions_of_the_tables_give_the_same_split(collection, encoding, newline, change):
    expected = names(collection.plan()[0])
    change(collection)
    collection.write(encoding, newline)
    plan, _ = nih_chestxray.divide(collection.root, finding="Nodule")
    assert names(plan) == expected
    assert all(len(source.boxes) == 1 for source in plan["train_labelled"])


def edit(table, line, text):
    def change(collection):
        getattr(collection, table)[line] = text

    return change


BAD_TABLES = {
    "no header": (edit("boxes", 0, f"{BOXED[0]},Nodule,1,2,3,4"), ["BBox_List", "begins with"]),
    "five columns": (edit("boxes", 2, f"{BOXED[1]},Nodule,1,2,3"), ["BBox_List", "line 3", "5 columns"]),
    "no number": (edit("boxes", 2, f"{BOXED[1]},Nodule,1,2,3,four"), ["BBox_List", "line 3", "'four'"]),
    "NaN": (edit("boxes", 2, f"{BOXED[1]},Nodule,1,2,nan,4"), ["BBox_List", "line 3", "'nan'"]),
    "negative": (edit("boxes", 2, f"{BOXED[1]},Nodule,1,2,-3,4"), ["BBox_List", "line 3", "'-3'"]),
    "outside": (edit("boxes", 2, f"{BOXED[1]},Nodule,1000,2,30,4"), ["BBox_List", "line 3", "1024"]),
    "no finding": (edit("boxes", 2, f"{BOXED[1]},Nodul,1,2,3,4"), ["BBox_List", "line 3", "'Nodul'"]),
    "no name": (edit("boxes", 2, "2.png,Nodule,1,2,3,4"), ["BBox_List", "line 3", "'2.png'"]),
    "quote": (edit("boxes", 2, f'"{BOXED[1]},Nodule,1,2,3,4'), ["BBox_List", "cannot be read"]),
    "no column": (
        edit("labels", 0, "Image Index,Findings"),
        ["Data_Entry", "'Finding Labels'", "'Findings'"],
    ),
    "two columns": (edit("labels", 0, LABEL_HEADER + "Finding Labels"), ["Data_Entry", "'Finding Labels'"]),
    "short row": (edit("labels", 2, BOXED[1]), ["Data_Entry", "line 3", "1 columns"]),
    "two labels": (
        edit("labels", 2, f"{BOXED[0]},Nodule"),
        ["Data_Entry", "line 3", BOXED[0], "'Nodule'", "Mass|Nodule"],
    ),
    "not labelled": (edit("labels", 2, "00000999_000.png,Nodule"), ["Data_Entry", BOXED[1], "BBox_List"]),
    "no image name": (edit("training", 0, "not a name"), ["train_val_list", "line 1", "'not a name'"]),
    "unknown image": (edit("training", 0, "00000999_000.png"), ["Data_Entry", "00000999_000.png"]),
    "empty": (lambda c: c.training.clear(), ["train_val_list", "has no file name"]),
}


@pytest.mark.parametrize("fault", BAD_TABLES)
def test_bad_table_is_an_error_with_file_line_and_value(collection, fault):
    change, expected = BAD_TABLES[fault]
    change(collection)
    with pytest.raises(InputError) as caught:
        collection.plan()
    for part in expected:
        assert part in str(caught.value)


@pytest.mark.parametrize("table", ["BBox_List_2017.csv", "Data_Entry_2017_v2020.csv", "train_val_list.txt"])
def test_missing_or_unreadable_table_is_an_error_naming_it(collection, table):
    collection.write()
    (collection.root / table).write_bytes(b"\xff\xfe\x00Image Index")
    with pytest.raises(InputError, match=table):
        nih_chestxray.divide(collection.root, finding="Nodule")
    (collection.root / table).unlink()
    with pytest.raises(InputError, match=f"no file {table.replace('_v2020', '.')}"):
        nih_chestxray.divide(collection.root, finding="Nodule")
    with pytest.raises(InputError, match="no such directory"):
        nih_chestxray.divide(collection.root / "absent", finding="Nodule")


@given(
    line=st.integers(0, 22),
    column=st.integers(0, 60),
    cut=st.integers(0, 12),
    put=st.text(st.characters(codec="utf-8"), max_size=6),
)
@settings(max_examples=150)
def test_damaged_table_is_read_or_is_an_error_naming_it(tmp_path_factory, line, column, cut, put):
    path = tmp_path_factory.getbasetemp() / "damaged.csv"
    rows = [BOX_HEADER, *(f"{name},Nodule,512.0,256.0,128.0,64.0" for name in BOXED)]
    rows[line % len(rows)] = rows[line % len(rows)][:column] + put + rows[line % len(rows)][column + cut :]
    path.write_text("\n".join(rows), "utf-8")
    try:
        boxes = nih_tables.read_boxes(path)
    except InputError as error:
        boxes, message = {}, str(error)
    else:
        message = str(path)
    assert message.startswith(str(path))
    assert all(w > 0 and h > 0 for b in boxes.values() for r in b.values() for _, _, w, h in r)


def test_missing_images_are_one_error_and_can_be_skipped(collection):
    whole = names(collection.plan(shares=(0.7, 0.1, 0.2))[0])
    for name in [*BOXED[:12], *CLEAN[:1]]:
        next(collection.root.glob(f"images_*/{name}")).unlink()
    with pytest.raises(InputError, match="--skip_bad") as caught:
        collection.plan(shares=(0.7, 0.1, 0.2))
    message = str(caught.value)
    assert "13 problems" in message
    assert "1 x missing image of train_clean" in message
    assert sum(name in message for name in BOXED + CLEAN) == 10
    assert "and 3 more" in message
    plan, notes = collection.plan(shares=(0.7, 0.1, 0.2), skip_bad=True)
    assert "skipped 1 x missing image of train_clean" in notes
    gone = {*BOXED[:12], *CLEAN[:1]}
    assert names(plan) == {
        split: kept for split, rows in whole.items() if (kept := [n for n in rows if n not in gone])
    }


def test_undecodable_or_non_square_images_are_errors_and_can_be_skipped(collection):
    (collection.root / "images_001" / BOXED[3]).write_bytes(b"no image")
    Image.new("L", (64, 32)).save(collection.root / "images_012" / CLEAN[0])
    with pytest.raises(InputError, match=r"2 problems(.|\n)*--skip_bad") as caught:
        collection.plan()
    assert BOXED[3] in str(caught.value)
    assert "64 x 32" in str(caught.value)
    plan, notes = collection.plan(skip_bad=True)
    assert sum(map(len, plan.values())) == 22
    assert "skipped 1 x undecodable image" in notes
    assert "skipped 1 x image that is not square" in notes


def reannotation(folder, kind, rows):
    """Writes two boxes for each image in `rows`, in pixels of 1024 (CSV) or 512 (COCO)."""
    if kind == "csv":
        path = folder / "extra.csv"
        lines = [f"{name},Nodule,{x},0,8,16" for name in rows for x in (0, 512)]
        path.write_text("\n".join([BOX_HEADER, *lines]))
        return path
    path = folder / "extra.json"
    images = [
        {"id": i, "file_name": f"any/{name}", "width": 512, "height": 512} for i, name in enumerate(rows)
    ]
    boxes = [
        {"id": 2 * i + (x > 0), "image_id": i, "category_id": 4, "bbox": [x, 0, 4, 8]}
        for i in range(len(rows))
        for x in (0, 256)
    ]
    categories = [{"id": 4, "name": "nodule"}, {"id": 5, "name": "mass"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return path


@pytest.mark.parametrize("kind", ["csv", "coco"])
def test_extra_annotations_replace_boxes_of_validation_and_test_only(collection, tmp_path, kind):
    before, _ = collection.plan()
    again = [*names(before)["test_labelled"][1:], names(before)["train_labelled"][0]]
    plan, notes = collection.plan(extra_annotations=reannotation(tmp_path, kind, again))
    assert names(plan) == names(before)
    old = (32, 16, 40, 20)
    new = [(0, 0, 0.5, 1), (32, 0, 32.5, 1)]  # in pixels of 64
    assert [s.boxes for s in plan["test_labelled"]] == [[old]] + [new] * (len(again) - 1)
    assert [s.labels for s in plan["test_labelled"]] == [[0]] + [[0, 0]] * (len(again) - 1)
    assert {tuple(s.boxes) for s in plan["train_labelled"]} == {(old,)}
    assert any(note.startswith("1 images of extra") and note.endswith("not used") for note in notes)
    _, notes = collection.plan(extra_annotations=reannotation(tmp_path, kind, [*again, "00009999_000.png"]))
    assert any("1 of them not in training either: 00009999_000.png" in note for note in notes)
    nothing = reannotation(tmp_path, kind, names(before)["train_labelled"])
    with pytest.raises(InputError, match="has no image of validation or test"):
        collection.plan(extra_annotations=nothing)


def test_test_image_without_extra_annotation_box_is_left_out(collection, tmp_path):
    before, _ = collection.plan()
    path = reannotation(tmp_path, "coco", names(before)["test_labelled"])
    document = json.loads(path.read_text())
    document["annotations"] = [row for row in document["annotations"] if row["image_id"]]
    path.write_text(json.dumps(document))
    plan, notes = collection.plan(extra_annotations=path)
    assert names(plan)["test_labelled"] == names(before)["test_labelled"][1:]
    assert any("extra.json has no box: 1" in note for note in notes)


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda d: d["categories"][0].update(name="lump"), "no category is named Nodule, only lump"),
        (lambda d: d["images"][0].update(file_name="1.png"), "image 0: '1.png'"),
        (lambda d: d["images"][0].update(id=1), "image 1 .*is given twice"),
        (lambda d: d["images"][0].update(width="wide"), "image .*width is 'wide'"),
        (lambda d: d["images"][0].update(height=0), "image 0 .*512 x 0"),
        (lambda d: d["annotations"][0].update(image_id=99), "annotation 0: image_id 99"),
        (lambda d: d["annotations"][0].update(bbox=[0, 0, -1, 1]), "annotation 0 .*negative"),
    ],
)
def test_bad_extra_annotations_are_an_error_with_file_and_entry(collection, tmp_path, change, expected):
    path = reannotation(tmp_path, "coco", BOXED)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=f"extra.json: {expected}"):
        collection.plan(extra_annotations=path)


def test_rgba_files_are_stored_as_grey_and_source_is_cited(collection, tmp_path):
    """Some files of the NIH data have four channels; stored pixels must be exact."""
    collection.write_images("images_001", BOXED, mode="RGBA")
    plan, _ = collection.plan()
    out = tmp_path / "set"
    shards.build(image_builder.plan(plan, ["Nodule"], nih_chestxray.ABOUT, image_size=64), out)
    dataset = records.open_dataset(out)
    assert (dataset.name, dataset.image_shape, dataset.class_names) == (
        "nih_chest_xray",
        (64, 64, 1),
        ("Nodule",),
    )
    assert '"No Finding" is not normal' in dataset.description
    assert "ChestX-ray8" in dataset.citation
    card = html.unescape(data_card.write(dataset).read_text("utf-8"))
    assert '"No Finding" is not normal' in card
    assert "Provided by the NIH Clinical Center without restrictions on use" in card
    for serialized in dataset.serialized("train_labelled"):
        record = dataset.decode(serialized)
        name = record.file_name.numpy().decode()
        assert int(record.image_id) == 1000 * int(name[:8])
        assert record.groups.numpy().tolist() == [name[:8].encode()]
        np.testing.assert_array_equal(record.boxes, [[32, 16, 40, 20]])
        stored = records.to_stored(record.image.numpy(), 8)[..., 0]
        np.testing.assert_array_equal(stored, np.asarray(collection.image(name)))
