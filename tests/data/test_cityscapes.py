"""Crops of drawn street scenes in the publishers' folder layout: pixels and boxes equal the full image."""

import collections
import json
import re

import numpy as np
import pytest
from PIL import Image

from tf_detectorgan.data import cityscapes, records
from tf_detectorgan.errors import InputError
from tf_detectorgan.prepare import Prepare, prepare

HEIGHT, WIDTH = 512, 1024
CITIES = {"train": ("aachen", "bochum", "zurich"), "val": ("lindau",)}
PEDESTRIAN = (500.0, 200.0, 30.0, 90.0)  # x, y, width, height
NEIGHBOUR = (540.0, 210.0, 30.0, 80.0)
SMALL = (100.0, 300.0, 24.0, 100.0)  # one pixel too narrow
GIANT = (700.0, 100.0, 100.0, 300.0)  # taller than a crop
RIDER = (900.0, 200.0, 60.0, 120.0)


def polygon(box):
    """A diamond whose bounding box is `box`."""
    x, y, w, h = box
    return [[x + w / 2, y], [x + w, y + h / 2], [x + w / 2, y + h], [x, y + h / 2]]


def objects(kind, people):
    if kind == "gtFine":
        names = {"pedestrian": "person", "rider": "rider"}
        rows = [{"label": names[label], "polygon": polygon(box)} for label, box in people]
        return [*rows, {"label": "road", "polygon": polygon((0, 0, WIDTH, HEIGHT))}]
    return [{"label": label, "instanceId": 24000, "bbox": box, "bboxVis": box} for label, box in people]


class Streets:
    """Two images per city; the first of each has people."""

    def __init__(self, root, kind):
        self.root, self.kind = root, kind
        ending = {"gtFine": "_gtFine_polygons", "gtBboxCityPersons": "_gtBboxCityPersons"}[kind]
        crowd = [("pedestrian", b) for b in (PEDESTRIAN, NEIGHBOUR, SMALL, GIANT)] + [("rider", RIDER)]
        for official, cities in CITIES.items():
            for city in cities:
                for frame, people in enumerate((crowd, [])):
                    stem = f"{official}/{city}/{city}_000000_{frame:06d}"
                    self.write(f"leftImg8bit/{stem}_leftImg8bit.png", self.pixels(city, frame))
                    document = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects(kind, people)}
                    self.write(f"{kind}/{stem}{ending}.json", document)

    def write(self, name, content):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict):
            path.write_text(json.dumps(content))
        else:
            Image.fromarray(content).save(path, compress_level=1)

    @staticmethod
    def pixels(city, frame):
        """Draws blocks of random colour; the lower bits encode the position inside a block."""
        blocks = np.random.default_rng([*city.encode(), frame]).integers(
            0, 16, (HEIGHT // 16, WIDTH // 16, 3)
        )
        y, x = np.mgrid[:HEIGHT, :WIDTH] % 16
        return (16 * blocks.repeat(16, 0).repeat(16, 1) + np.stack([x, y, x], -1)).astype(np.uint8)

    def first(self, pattern):
        return sorted(self.root.rglob(pattern))[0]


@pytest.fixture(scope="module", params=["gtBboxCityPersons", "gtFine"])
def streets(request, tmp_path_factory):
    return Streets(tmp_path_factory.mktemp("streets") / "cityscapes", request.param)


def intersects(box, crop):
    x0, y0, x1, y1 = box[0], box[1], box[0] + box[2], box[1] + box[3]
    return x0 < crop.left + 256 and x1 > crop.left and y0 < crop.top + 256 and y1 > crop.top


def test_labelled_crops_contain_their_pedestrians_and_clean_crops_no_person(streets):
    plan, notes = cityscapes.divide(streets.root, shares=(0.6, 0.4, 0.0))
    assert any(streets.kind in note and "12 pedestrians of 8 images" in note for note in notes)
    assert "4 pedestrians do not fit into 256 pixels and have no crop" in notes
    crops = [crop for rows in plan.values() for crop in rows]
    assert len({crop.image_id for crop in crops}) == len(crops)
    labelled = [crop for crop in crops if crop.boxes]
    for crop in crops:
        assert 0 <= crop.left <= WIDTH - 256
        assert 0 <= crop.top <= HEIGHT - 256
    for crop in labelled:
        offset = np.array([crop.left, crop.top])
        expected = []
        for x, y, w, h in (PEDESTRIAN, NEIGHBOUR):
            low = np.clip(np.array([x, y]) - offset, 0, 256)
            high = np.clip(np.array([x + w, y + h]) - offset, 0, 256)
            if (high - low).prod() >= w * h / 2:
                expected.append((*low, *high))
        giant = [box for box in crop.boxes if box not in expected]  # partly visible
        assert [box for box in crop.boxes if box in expected] == expected
        assert all(box[3] - box[1] >= 150 for box in giant)
        assert any(intersects(box, crop) for box in (PEDESTRIAN, NEIGHBOUR))
    whole = collections.Counter()
    for crop in labelled:
        for box in (PEDESTRIAN, NEIGHBOUR):
            x, y, w, h = box
            if (x - crop.left, y - crop.top, x + w - crop.left, y + h - crop.top) in crop.boxes:
                whole[crop.path, box] += 1
    assert len(whole) == 8  # both pedestrians of each crowded image are whole in some crop
    assert len([crop for crop in crops if not crop.boxes]) == 8
    for crop in crops:
        if not crop.boxes and "_000000_000000_" in crop.path.name:
            assert not any(intersects(box, crop) for box in (PEDESTRIAN, NEIGHBOUR, SMALL, GIANT, RIDER))


def test_cities_are_not_divided_and_official_validation_is_the_test_split(streets):
    tests, crops = [], []
    for seed in range(4):
        plan, _ = cityscapes.divide(streets.root, shares=(0.6, 0.4, 0.0), seed=seed)
        cities = collections.defaultdict(set)
        for split, rows in plan.items():
            cities[split.split("_")[0]] |= {crop.group for crop in rows}
        assert cities["test"] == {"lindau"}
        assert cities["train"] | cities["validation"] == set(CITIES["train"])
        assert not cities["train"] & cities["validation"]
        tests.append(tuple(sorted(cities["validation"])))
        crops.append([(crop.left, crop.top) for crop in plan["test_labelled"]])
    assert len(set(tests)) > 1
    assert crops[0] != crops[1]
    again, _ = cityscapes.divide(streets.root, shares=(0.6, 0.4, 0.0), seed=0)
    assert [(crop.left, crop.top) for crop in again["test_labelled"]] == crops[0]


def test_prepared_crops_equal_the_image_pixel_by_pixel(streets, tmp_path, capsys):
    out = tmp_path / "set"
    prepare(Prepare(images=str(streets.root), out=str(out), splits=(0.6, 0.4, 0.0)))
    dataset = records.open_dataset(out)
    assert (dataset.image_shape, dataset.class_names) == ((256, 256, 3), ("pedestrian",))
    assert "non-commercial" in dataset.citation
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"found Cityscapes in {streets.root}: train_labelled ")
    assert any(line.startswith("test_labelled  ") for line in printed[1:])
    checked = 0
    splits = [f"{part}_{stream}" for part in records.SPLITS for stream in records.STREAMS]
    for split in splits:
        for serialized in dataset.serialized(split):
            record = dataset.decode(serialized)
            name, _, place = record.file_name.numpy().decode().partition("@")
            left, top = map(int, place.split(","))
            city, frame = name.split("/")[0], int(name.split("_")[2])
            whole = streets.pixels(city, frame)
            stored = records.to_stored(record.image.numpy(), 8)
            np.testing.assert_array_equal(stored, whole[top : top + 256, left : left + 256])
            assert record.groups.numpy().tolist() == [city.encode()]
            assert (len(record.boxes) > 0) == split.endswith("labelled")
            checked += 1
    assert checked == sum(map(dataset.count, splits)) >= 12  # 8 clean ones, and 4 crowds


def test_box_at_the_image_border_is_clipped_before_the_size_filter(tmp_path):
    streets = Streets(tmp_path / "cityscapes", "gtBboxCityPersons")
    for path in streets.root.glob("gtBbox*/*/*/*_000000_gtBbox*.json"):
        document = json.loads(path.read_text())
        document["objects"] = objects(streets.kind, [("pedestrian", (-20.0, 450.0, 50.0, 100.0))])
        path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="no training images are labelled"):
        cityscapes.divide(streets.root)  # 62 of its 100 pixels are inside, fewer than 70
    for path in streets.root.glob("gtBbox*/*/*/*_000000_gtBbox*.json"):
        path.write_text(path.read_text().replace("450.0", "430.0"))
    plan, _ = cityscapes.divide(streets.root)
    (crop,) = plan["test_labelled"]
    assert crop.boxes == [(0 - crop.left, 430 - crop.top, 30 - crop.left, 512 - crop.top)]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"imgHeight": 512, "imgWidth": 1024, "objects": [{"label": "person"}]}',
     '{"imgHeight": 512, "imgWidth": 1024, "objects": [{"label": "person", "bbox": [1, 2, NaN, 4]}]}',
     '{"imgHeight": 512, "imgWidth": 1024, "objects": [{"label": "person", "bbox": [1, 2, 4]}]}',
     '{"imgHeight": 512, "imgWidth": 1024, "objects": [{"label": "person", "polygon": []}]}',
     '{"imgHeight": 100, "imgWidth": 1024, "objects": []}'],
)  # fmt: skip
def test_bad_or_missing_annotation_file_is_an_error_naming_it(tmp_path, content):
    streets = Streets(tmp_path / "cityscapes", "gtBboxCityPersons")
    path = streets.first("*_gtBboxCityPersons.json")
    path.write_text(content)
    with pytest.raises(InputError, match=path.name):
        cityscapes.divide(streets.root)
    path.unlink()
    with pytest.raises(InputError, match=f"{path.name}: no such file, one of 1"):
        cityscapes.divide(streets.root)


def test_bad_images_and_folders_are_errors(tmp_path):
    streets = Streets(tmp_path / "cityscapes", "gtFine")
    path = streets.first("*_leftImg8bit.png")
    path.write_bytes(b"no image")
    other = sorted(streets.root.rglob("*_leftImg8bit.png"))[1]
    Image.fromarray(np.zeros([300, 300, 3], np.uint8)).save(other)
    with pytest.raises(InputError, match=r"2 problems(.|\n)*--skip_bad") as caught:
        cityscapes.divide(streets.root)
    assert path.name in str(caught.value)
    assert re.search(rf"{other.name} \(image 1\): width \d+ in the annotation file, 300", str(caught.value))
    _, notes = cityscapes.divide(streets.root, skip_bad=True)
    assert "skipped 1 x undecodable image" in notes
    with pytest.raises(InputError, match="third share must be 0"):
        cityscapes.divide(streets.root, shares=(0.7, 0.1, 0.2))
    with pytest.raises(InputError, match="must contain leftImg8bit"):
        cityscapes.divide(streets.root / "gtFine")
