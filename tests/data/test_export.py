"""Exported boxes and pixels equal the originals, read by other readers and by this package's readers."""

import csv
import json
from xml.etree import ElementTree

import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf

from tf_detectorgan.data import formats, image_files, validation
from tf_detectorgan.data.formats import export
from tf_detectorgan.errors import InputError

WIDTH, HEIGHT = 40, 20
BOXES = {  # image: category id and x, y, width, height
    "000000": [(7, [1 / 3, 2.7182818, 11.25, 7.0]), (3, [0.0, 0.0, 40.0, 20.0])],
    "000001": [(3, [30.5, 10.123456, 9.5, 9.876544])],
    "000002": [],
}


@pytest.fixture(params=[(8, 1), (16, 1), (8, 3), (16, 3)], ids=lambda p: f"{p[0]}bit-{p[1]}")
def folder(request, tmp_path):
    """A COCO folder of noise images, its pixels and class names; grey images have one category."""
    depth, channels = request.param
    rng, pixels = np.random.default_rng(0), {}
    (tmp_path / "images").mkdir()
    categories = [{"id": 7, "name": "crack"}, {"id": 3, "name": "hole & Ä"}]
    document = {"images": [], "annotations": [], "categories": categories}
    if channels == 1:
        document["categories"] = [{"id": 1, "name": "nodule"}]
    for number, (stem, boxes) in enumerate(BOXES.items()):
        shape = (HEIGHT, WIDTH, channels)
        pixels[stem] = rng.integers(0, 2**depth, shape).astype(f"uint{depth}")
        (tmp_path / "images" / f"{stem}.png").write_bytes(tf.io.encode_png(pixels[stem]).numpy())
        name = f"images/{stem}.png"
        document["images"].append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        document["annotations"] += [
            {"image_id": number, "category_id": c if channels == 3 else 1, "bbox": box} for c, box in boxes
        ]
    for number, row in enumerate(document["annotations"]):
        row["id"] = number
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    return tmp_path, pixels, ("hole & Ä", "crack") if channels == 3 else ("nodule",)


def expected(stem, names):
    """Returns class names and corners from `BOXES`."""
    return [
        (names[{3: 0, 7: 1}[c]] if len(names) == 2 else names[0], (x, y, x + w, y + h))
        for c, (x, y, w, h) in BOXES[stem]
    ]


def assert_equal(found, stem, names):
    wanted = expected(stem, names)
    assert [name for name, _ in found] == [name for name, _ in wanted]
    for (_, box), (_, truth) in zip(found, wanted, strict=True):
        np.testing.assert_allclose(box, truth, atol=1e-6)


def read_voc(root, stem, names):
    """Reads boxes as the development kit defines them: pixels 1 to width; the corner of pixel 1 is at 0."""
    tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml")
    size = [int(tree.findtext(f"size/{key}")) for key in ("width", "height")]
    assert size == [WIDTH, HEIGHT]
    found = []
    for one in tree.iter("object"):
        a, b, c, d = (float(one.findtext(f"bndbox/{key}")) for key in ("xmin", "ymin", "xmax", "ymax"))
        found.append((one.findtext("name"), (a - 1, b - 1, c, d)))
    return found


def read_yolo(root, stem, names):
    found = []
    for line in (root / "labels/train" / f"{stem}.txt").read_text().splitlines():
        label, *shares = line.split(" ")
        x, y, w, h = (float(v) for v in shares)
        left, top = x - w / 2, y - h / 2
        box = (left * WIDTH, top * HEIGHT, (left + w) * WIDTH, (top + h) * HEIGHT)
        found.append((names[int(label)], box))
    return found


@pytest.mark.parametrize(
    "kind, reader, place", [("voc", read_voc, "JPEGImages"), ("yolo", read_yolo, "images/train")]
)
def test_exported_voc_and_yolo_have_the_same_boxes_and_pixels(folder, kind, reader, place):
    root, pixels, names = folder
    export.write(kind, root)
    for stem in BOXES:
        assert_equal(reader(root / kind, stem, names), stem, names)
        np.testing.assert_array_equal(
            image_files.read_image(root / kind / place / f"{stem}.png"), pixels[stem]
        )


def test_exported_node21_has_the_same_boxes_and_pixels(folder):
    root, pixels, names = folder
    if len(names) == 2:
        with pytest.raises(InputError, match="--export=node21.*3 channels of hole & Ä, crack"):
            export.check(["node21"], names, 3)
        return
    export.check(["node21"], names, 1)
    export.write("node21", root)
    with (root / "node21/metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for stem in BOXES:
        own = [row for row in rows if row["img_name"] == f"{stem}.mha"]
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(root / "node21/images" / f"{stem}.mha")))
        np.testing.assert_array_equal(image, pixels[stem][..., 0])
        assert {row["label"] for row in own} == {"1" if BOXES[stem] else "0"}
        sides = [
            [float(row[key]) for key in ("x", "y", "width", "height")] for row in own if row["label"] == "1"
        ]
        assert_equal([("nodule", (x, y, x + w, y + h)) for x, y, w, h in sides], stem, names)


@pytest.mark.parametrize("kind", export.WRITERS)
def test_export_and_import_are_inverse(folder, kind):
    root, pixels, names = folder
    if kind == "node21" and len(names) > 1:
        pytest.skip("node21 has one class")
    export.write(kind, root)
    location = formats.locate("auto", None, root / kind)
    assert location.kind == kind
    result = validation.check(location.read(), location.images, keys=validation.Keys())
    assert len(result.sources) == len(BOXES)
    for source in result.sources:
        stem = source.path.stem
        found = [(result.class_names[n], box) for n, box in zip(source.labels, source.boxes, strict=True)]
        assert_equal(found, stem, names)
        np.testing.assert_array_equal(image_files.read_image(source.path), pixels[stem])


def test_unknown_or_repeated_export_format_is_an_error():
    with pytest.raises(InputError, match="'vco' is not one of voc, yolo, node21"):
        export.check(["vco"], ["nodule"], 1)
    with pytest.raises(InputError, match="--export=voc,voc: names a format twice"):
        export.check(["voc", "voc"], ["nodule"], 1)
