"""Each format is written here according to its specification; the reader must return the same boxes."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from tf_detectorgan.data import formats, image_files, medical_images, records, validation
from tf_detectorgan.errors import InputError
from tf_detectorgan.prepare import Prepare, prepare

# Two images of 40 x 20 px with boxes and one without: class and x, y, width, height.
TRUTH = {"a": [("crack", [4.0, 5.0, 8.0, 10.0]), ("hole", [0.0, 0.0, 40.0, 20.0])], "b": [("hole", [1.0, 2.0, 3.0, 4.0])], "c": []}  # fmt: skip  # noqa: E501


def write_images(folder: Path, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for number, stem in enumerate(TRUTH):
        pixels = np.full((20, 40), 100 + 10 * number, np.uint16 if suffix == ".mha" else np.uint8)
        path = folder / f"{stem}{suffix}"
        if suffix == ".mha":
            sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))
        else:
            Image.fromarray(pixels).save(path)


def write_coco(root):
    write_images(root / "images")
    names = ["crack", "hole"]
    boxes = [(i, b) for i, bs in enumerate(TRUTH.values()) for b in bs]
    document = {
        "images": [{"id": i, "file_name": f"images/{s}.png"} for i, s in enumerate(TRUTH)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": names.index(c), "bbox": b}
            for n, (i, (c, b)) in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(names)],
    }
    (root / "boxes.json").write_text(json.dumps(document))


def write_voc(root):
    write_images(root / "JPEGImages")
    (root / "Annotations").mkdir()
    for stem, boxes in TRUTH.items():
        objects = "".join(
            f"<object><name>{c}</name><bndbox><xmin>{x + 1:g}</xmin><ymin>{y + 1:g}</ymin>"
            f"<xmax>{x + w:g}</xmax><ymax>{y + h:g}</ymax></bndbox></object>"
            for c, (x, y, w, h) in boxes
        )
        xml = f"<annotation><filename>{stem}.png</filename>{objects}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(xml)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "train.txt").write_text("a\nb\nc\n")


def write_yolo(root):
    write_images(root / "images" / "train")
    (root / "labels" / "train").mkdir(parents=True)
    for stem, boxes in TRUTH.items():
        lines = [
            f"{('crack', 'hole').index(c)} {(x + w / 2) / 40} {(y + h / 2) / 20} {w / 40} {h / 20}\r\n"
            for c, (x, y, w, h) in boxes
        ]
        if lines:  # an image without objects has no label file
            (root / "labels" / "train" / f"{stem}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("train: images/train\nnames: {0: crack, 1: hole}\n")


def write_csv(root):
    write_images(root)
    lines = [f"{s}.png,{c},{x},{y},{x + w},{y + h}" for s, bs in TRUTH.items() for c, (x, y, w, h) in bs]
    text = "\r\n".join(["File_Name,class,xmin,ymin,xmax,ymax", *lines, "c.png,,,,,"])
    (root / "boxes.csv").write_text("\ufeff" + text, encoding="utf-8")


def write_node21(root):
    write_images(root / "images", ".mha")
    lines = [
        f"{n},{h},{s}.mha,1,{w},{x},{y}" for n, (s, bs) in enumerate(TRUTH.items()) for _, (x, y, w, h) in bs
    ]
    lines.append("9,0,c.mha,0,0,0,0")
    (root / "metadata.csv").write_text("\n".join([",height,img_name,label,width,x,y", *lines]) + "\n")


def write_dicom(root):
    (root / "images").mkdir()
    for number, stem in enumerate(TRUTH):
        dicom(root / "images" / stem, np.full((20, 40), 1000 + number, np.uint16), uid=f"1.2.{number}")
    uids = dict(zip(TRUTH, ("1.2.0", "b", "1.2.2"), strict=True))  # by SOPInstanceUID, or by file name
    lines = [f"{uids[s]},{c},{x},{y},{w},{h}" for s, bs in TRUTH.items() for c, (x, y, w, h) in bs]
    (root / "boxes.csv").write_text("\n".join(["image,class,x,y,width,height", *lines, "1.2.2,,,,,"]))


def dicom(path, pixels, *, uid="1.2.3", bits=12, **elements):
    """Writes a DICOM file with one grey image of unsigned 16-bit values."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, uid
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID, data.PatientID = CTImageStorage, uid, f"patient {uid}"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, bits, bits - 1, 0
    data.PixelData = pixels.astype("<u2").tobytes()
    for name, value in elements.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


WRITERS = {
    "coco": write_coco,
    "voc": write_voc,
    "yolo": write_yolo,
    "csv": write_csv,
    "node21": write_node21,
    "dicom": write_dicom,
}


def read(root, kind="auto", **options):
    location = formats.locate(kind, None, root)
    return validation.check(location.read(), location.images, **{"keys": validation.Keys()} | options)


@pytest.mark.parametrize("kind", WRITERS)
def test_format_is_recognised_and_its_boxes_are_read(tmp_path, kind):
    WRITERS[kind](tmp_path)
    location = formats.locate("auto", None, tmp_path)
    assert location.kind == kind
    assert formats.locate(kind, None, tmp_path) == location
    assert formats.locate("auto", location.annotations, location.images) == location
    folder = validation.check(location.read(), location.images, keys=validation.Keys())
    assert [Path(s.file_name).stem for s in folder.sources] == list(TRUTH)
    for source, (stem, boxes) in zip(folder.sources, TRUTH.items(), strict=True):
        assert len(source.boxes) == len(boxes), stem
        for label, corners, (name, (x, y, w, h)) in zip(source.labels, source.boxes, boxes, strict=True):
            assert folder.class_names[label] == ("nodule" if kind == "node21" else name)
            assert corners == pytest.approx((x, y, x + w, y + h)), stem
    assert [s.stream for s in folder.sources] == ["labelled", "labelled", "clean"]
    assert not any(note.startswith("skipped") for note in folder.notes)


def test_groups_are_dicom_patients_and_splits_are_those_of_voc_and_yolo(tmp_path):
    for kind in ("dicom", "voc", "yolo"):
        (tmp_path / kind).mkdir()
        WRITERS[kind](tmp_path / kind)
    assert [s.group for s in read(tmp_path / "dicom").sources] == [f"patient 1.2.{i}" for i in range(3)]
    for kind in ("voc", "yolo"):
        sources = read(tmp_path / kind, keys=validation.Keys(split="split")).sources
        assert [s.split for s in sources] == ["train"] * 3


def test_coco_images_without_group_key_are_grouped_by_dicom_patient(tmp_path):
    for number in (1, 2):
        dicom(tmp_path / f"{number}.dcm", np.zeros((20, 40), np.uint16), uid=f"1.{number}", PatientID="p")
    Image.new("L", (40, 20)).save(tmp_path / "3.png")
    images = [{"id": n, "file_name": name} for n, name in ((1, "1.dcm"), (2, "2.dcm"), (3, "3.png"))]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "nodule"}]}
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"3.png \(image 3\): no 'split_group' and no PatientID"):
        read(tmp_path)
    assert [s.group for s in read(tmp_path, skip_bad=True).sources] == ["p", "p"]
    for image in images:
        image["split_group"] = f"own {image['id']}"
    file.write_text(json.dumps(document))
    assert [s.group for s in read(tmp_path).sources] == ["own 1", "own 2", "own 3"]


def test_other_csv_columns_become_keys_if_the_lines_of_an_image_agree(tmp_path):
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,patient,reader,clean\na,1,1,5,5,p7,r1,\na,2,2,6,6,p7,r2,\nb,1,1,5,5,p7,r1,\nc,,,,,p8,r1,FALSE\n"
    )
    folder = read(tmp_path, keys=validation.Keys(group="patient"))
    assert [s.group for s in folder.sources] == ["p7", "p7", "p8"]
    assert [s.stream for s in folder.sources] == ["labelled", "labelled", "unboxed"]
    with pytest.raises(InputError, match="a.png.*no 'reader'"):
        read(tmp_path, keys=validation.Keys(group="reader"))


def test_csv_with_corners_may_give_the_image_size(tmp_path):
    write_images(tmp_path)
    header, line = "filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,40,20,hole,1,1,5,5"
    (tmp_path / "boxes.csv").write_text(f"{header}\n{line}\n")
    assert [s.boxes for s in read(tmp_path).sources] == [[(1.0, 1.0, 5.0, 5.0)]]
    (tmp_path / "boxes.csv").write_text(f"{header}\n{line.replace('40,20', '20,40')}\n")
    with pytest.raises(InputError, match="width 20 in the annotation file, 40 in the image file"):
        read(tmp_path)


def test_several_csv_lines_without_box_make_one_clean_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,reader\na,1,1,5,5,r1\nc,,,,,r1\nc,,,,,r2\nc,,,,,r3\n"
    )
    folder = read(tmp_path)
    assert [(s.file_name, s.stream) for s in folder.sources] == [("a.png", "labelled"), ("c.png", "clean")]


def test_csv_spellings_of_true_and_false(tmp_path):
    write_images(tmp_path)
    (tmp_path / "boxes.csv").write_text(
        "image,x1,y1,x2,y2,exclude,clean,weak\na,1,1,5,5,0,,TRUE\nb,,,,,No,0,\nc,,,,,yes,1,\n"
    )
    folder = read(tmp_path, keys=validation.Keys(training_only="weak=true"))
    assert [(s.file_name, s.stream, s.training_only) for s in folder.sources] == [
        ("a.png", "labelled", True),
        ("b.png", "unboxed", False),
    ]
    (tmp_path / "boxes.csv").write_text("image,x1,y1,x2,y2,exclude\na,1,1,5,5,1\nb,1,1,5,5,1\n")
    with pytest.raises(InputError, match="--exclude_key=exclude: excludes all 2 images of "):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["yolo", "voc"])
def test_exif_orientation_is_applied_to_pixels_and_boxes(tmp_path, kind):
    """Orientation 6: stored as 40 x 20, shown as 20 x 40 with the first stored row at the right."""
    WRITERS[kind](tmp_path)
    (path,) = tmp_path.rglob("b.png")
    pixels, turn = np.zeros((20, 40), np.uint8), Image.Exif()
    pixels[:2] = 200
    turn[0x0112] = 6
    Image.fromarray(pixels).save(path, exif=turn)
    if kind == "yolo":
        (tmp_path / "labels" / "train" / "b.txt").write_text("1 0.5 0.5 0.2 0.5\n")
    (source,) = (s for s in read(tmp_path).sources if s.path == path)
    assert (source.height, source.width) == (40, 20)
    assert source.boxes == [pytest.approx((8, 10, 12, 30) if kind == "yolo" else (1, 2, 4, 6))]
    shown = source.read()[..., 0]
    assert (shown[:, -2:] == 200).all()
    assert not shown[:, :-2].any()


def test_layouts_of_labelimg_and_label_studio_are_read(tmp_path):
    """LabelImg writes classes.txt into labels; Label Studio writes notes.json next to classes.txt."""
    write_yolo(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "labels" / "classes.txt").write_text("crack\nhole\n")
    assert len(read(tmp_path).sources) == 3
    (tmp_path / "labels" / "classes.txt").rename(tmp_path / "classes.txt")
    (tmp_path / "notes.json").write_text('{"categories": [{"id": 0, "name": "crack"}], "info": {}}')
    assert formats.locate("auto", None, tmp_path).kind == "yolo"
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(InputError, match=r"none of yolo: data.yaml, .* or obj.names"):
        read(tmp_path, "yolo")


def test_dicomdir_file_is_ignored(tmp_path):
    write_dicom(tmp_path)
    dicom(tmp_path / "DICOMDIR", np.zeros((2, 2)), uid="9", PatientID="")
    data = pydicom.dcmread(tmp_path / "DICOMDIR")
    del data.Rows, data.PixelData
    data.DirectoryRecordSequence = []
    data.save_as(tmp_path / "DICOMDIR")
    folder = read(tmp_path)
    assert [s.group for s in folder.sources] == [f"patient 1.2.{i}" for i in range(3)]
    assert not any("left out" in note for note in folder.notes)


def edit(name, before, after):
    def change(root):
        path = root / name
        text = path.read_text("utf-8-sig")
        assert before in text
        path.write_text(text.replace(before, after, 1), "utf-8")

    return change


def raw(name, content):
    return lambda root: (root / name).write_bytes(content)


BAD = {  # (format, change to a valid folder, parts of the error message)
    "voc: damaged": ("voc", raw("Annotations/a.xml", b"<annotation>"), ["a.xml", "--skip_bad"]),
    "voc: bomb": (
        "voc",
        raw("Annotations/a.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'),
        ["a.xml", "Entities"],
    ),
    "voc: word": ("voc", edit("Annotations/b.xml", ">2<", ">two<"), ["b.xml, object 1", "two"]),
    "voc: nan": ("voc", edit("Annotations/b.xml", ">2<", ">nan<"), ["b.xml, object 1", "nan"]),
    "voc: other size": (
        "voc",
        edit("Annotations/b.xml", "<object>", "<size><width>20</width><height>40</height></size><object>"),
        ["b.png", "width 20 in the annotation file, 40 in the image file"],
    ),
    "voc: stale name": (
        "voc", edit("Annotations/b.xml", "b.png", "a.png"), ["a.png: is listed as image 1 and image 2"],
    ),
    "voc: no name": ("voc", edit("Annotations/b.xml", "<name>hole</name>", ""), ["b.xml, object 1"]),
    "yolo: columns": ("yolo", raw("labels/train/a.txt", b"0 0.5 0.5 0.1"), ["line 1", "0 0.5 0.5 0.1"]),
    "yolo: class": ("yolo", raw("labels/train/a.txt", b"2 .5 .5 .1 .1"), ["line 1", "class 2"]),
    "yolo: outside": ("yolo", raw("labels/train/a.txt", b"1 .9 .5 .4 .1"), ["a.txt, line 1", "4 px outside"]),
    "yolo: bytes": ("yolo", raw("labels/train/a.txt", b"\xff\xfe\x00"), ["a.txt"]),
    "yolo: stray": ("yolo", raw("labels/train/z.txt", b""), ["z.txt", "no image"]),
    "csv: word": ("csv", edit("boxes.csv", "4.0,5.0", "4.0,five"), ["line 2", "ymin 'five'"]),
    "csv: half": ("csv", edit("boxes.csv", "4.0,5.0", "4.0,"), ["line 2", "ymin ''"]),
    "csv: missing": ("csv", edit("boxes.csv", "b.png", "z.png"), ["z.png", "no such file"]),
    "csv: twice": ("csv", edit("boxes.csv", "c.png,,,,,", "b.png,hole,1.0,2.0,4.0,6.0"), ["line 5"]),
    "csv: swapped": ("csv", edit("boxes.csv", "1.0,2.0,4.0", "4.0,2.0,1.0"), ["line 4", "-3.0"]),
    "csv: no class": ("csv", edit("boxes.csv", "b.png,hole", "b.png,"), ["line 4", "class is empty"]),
    "csv: both": ("csv", edit("boxes.csv", "c.png", "b.png"), ["line 5: no box", "b.png", "another line"]),
    "node21: label": ("node21", edit("metadata.csv", "b.mha,1", "b.mha,7"), ["line 4", "'7'"]),
    "node21: none and one": (
        "node21", edit("metadata.csv", "9,0,c.mha", "9,0,b.mha"), ["line 5: b.mha", "another line"],
    ),
    "node21: word": ("node21", edit("metadata.csv", "b.mha,1,3.0", "b.mha,1,wide"), ["line 4", "wide"]),
    "node21: image": ("node21", raw("images/b.mha", b"ObjectType = Image\n"), ["b.mha", "cannot be decoded"]),
    "dicom: no patient": (
        "dicom",
        lambda r: dicom(r / "images" / "b", np.zeros((20, 40), np.uint16), uid="1.2.1", PatientID=""),
        ["images/b", "no 'split_group'"],
    ),
    "dicom: image": ("dicom", raw("images/b", b"\0" * 128 + b"DICM"), ["images/b", "cannot be decoded"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_entry_is_located_in_the_error_and_can_be_skipped(tmp_path, case):
    kind, change, expected = BAD[case]
    WRITERS[kind](tmp_path)
    change(tmp_path)
    with pytest.raises(InputError) as caught:
        read(tmp_path, kind)
    for part in expected:
        assert part in str(caught.value)
    folder = read(tmp_path, kind, skip_bad=True)
    assert any(note.startswith("skipped") for note in folder.notes)
    clean = {Path(s.file_name).stem for s in folder.sources if s.stream == "clean"}
    assert clean <= {"c"}  # an image with a skipped box must not count as clean


UNREADABLE = {
    "csv: columns": ("csv", edit("boxes.csv", "b.png,hole", "b.png,hole,5"), ["line 4", "6 fields, has 7"]),
    "csv: header": ("csv", edit("boxes.csv", "xmin", "left"), ["boxes.csv", "no column for a box", "left"]),
    "csv: repeated": ("csv", edit("boxes.csv", "class", "xmin"), ["names a column twice"]),
    "csv: empty": ("csv", raw("boxes.csv", b""), ["needs a header"]),
    "csv: bytes": ("csv", raw("boxes.csv", b"image\xff,x"), ["boxes.csv", "UTF-8"]),
    "yolo: yaml": ("yolo", raw("data.yaml", b"names: ["), ["data.yaml", "class names"]),
    "yolo: names": ("yolo", raw("data.yaml", b"names: {1: crack}"), ["data.yaml", "class names"]),
    "node21: columns": ("node21", edit("metadata.csv", "img_name", "image"), ["no column img_name"]),
    "dicom: uid": ("dicom", lambda r: dicom(r / "d", np.zeros((2, 2)), uid="1.2.0"), ["1.2.0"]),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_annotation_file_is_an_error(tmp_path, case):
    kind, change, expected = UNREADABLE[case]
    WRITERS[kind](tmp_path)
    change(tmp_path)
    file = {"yolo": "data.yaml", "node21": "metadata.csv"}.get(kind, "boxes.csv")
    with pytest.raises(InputError) as caught:
        formats.locate(kind, tmp_path / file, None).read()
    for part in expected:
        assert part in str(caught.value)


def test_folder_with_no_format_or_two_formats_is_an_error(tmp_path):
    with pytest.raises(InputError, match="none of coco: .*; voc: .*; yolo: .*classes.txt"):
        read(tmp_path)
    write_coco(tmp_path)
    (tmp_path / "classes.txt").write_text("crack")
    with pytest.raises(InputError, match=r"coco: .*boxes.json; yolo: .*classes.txt"):
        read(tmp_path)
    with pytest.raises(InputError, match="--annotations= is missing"):
        formats.locate("auto", None, None)


def test_coco_file_is_found_among_other_json_files(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "audit.json").write_text("{}")
    assert formats.locate("auto", None, tmp_path).annotations == tmp_path / "boxes.json"


def test_loop_of_symbolic_links_does_not_hang(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "images" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(read(tmp_path).sources) == 3


@pytest.mark.parametrize("suffix, name", [(".mha", "SimpleITK"), (".dcm", "pydicom")])
def test_missing_library_error_names_the_pip_extra(tmp_path, monkeypatch, suffix, name):
    write_node21(tmp_path) if suffix == ".mha" else write_dicom(tmp_path)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"{name} is not installed.*tf_detectorgan\[medical\]"):
        read(tmp_path)


# DICOM's linear window, PS3.3 C.11.2.1.2.1: ((v - (c - 0.5)) / (w - 1) + 0.5) of the range, clipped.
WINDOW = [
    0,
    round(((1000 - 1199.5) / 999 + 0.5) * 65535),
    round(((1500 - 1199.5) / 999 + 0.5) * 65535),
    65535,
]
GREY = {
    "whole range of 12 bits": ({}, [0, round(1000 / 4095 * 65535), round(1500 / 4095 * 65535), 65535]),
    "window": ({"WindowCenter": 1200, "WindowWidth": 1000}, WINDOW),
    "first of two windows": ({"WindowCenter": [1200, 9], "WindowWidth": [1000, 9]}, WINDOW),
    "window after rescaling": (
        {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 2300, "WindowWidth": 1999},
        [round(65535 * min(max((2 * v - 100 - 2299.5) / 1998 + 0.5, 0), 1)) for v in (0, 1000, 1500, 4095)],
    ),
}


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2047.5, "WindowWidth": 4096}])
def test_dicom_with_negative_rescale_slope_is_inverted(tmp_path, window):
    dicom(tmp_path / "a.dcm", np.array([[0, 4095]]), RescaleSlope=-1, RescaleIntercept=4095, **window)
    np.testing.assert_allclose(image_files.read_image(tmp_path / "a.dcm")[0, :, 0], [65535, 0], atol=20)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("case", GREY)
def test_dicom_grey_values_pass_rescale_window_and_monochrome1(tmp_path, case, inverse):
    elements, expected = GREY[case]
    if inverse:
        elements = {**elements, "PhotometricInterpretation": "MONOCHROME1"}
        expected = [65535 - v for v in expected]
    dicom(tmp_path / "a.dcm", np.array([[0, 1000, 1500, 4095]]), **elements)
    pixels = image_files.read_image(tmp_path / "a.dcm")
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels[0, :, 0], expected, atol=1)


def test_dicom_with_voi_lut_signed_values_or_8_bits(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 1, 10]
    table.LUTData = np.array([0, 100, 1000, 1023], "<u2").tobytes()
    dicom(tmp_path / "a.dcm", np.array([[0, 1, 2, 3, 4, 9]]), VOILUTSequence=[table])
    expected = np.rint(np.array([0, 0, 100, 1000, 1023, 1023]) / 1023 * 65535)
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "a.dcm")[0, :, 0], expected)
    dicom(tmp_path / "b.dcm", np.array([[-2048, 0, 2047]]).astype(np.int16), PixelRepresentation=1)
    expected = np.rint(np.array([0, 2048, 4095]) / 4095 * 65535)
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "b.dcm")[0, :, 0], expected)
    dicom(tmp_path / "c.dcm", np.array([[0, 7, 255]]), bits=8)
    assert image_files.read_image(tmp_path / "c.dcm").dtype == np.uint8
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "c.dcm")[0, :, 0], [0, 7, 255])
    dicom(tmp_path / "d.dcm", np.zeros((2, 2)), NumberOfFrames=2)
    with pytest.raises(ValueError, match="NumberOfFrames 2"):
        medical_images.read_dicom(tmp_path / "d.dcm")


def test_16_bit_colour_tiff_is_read_losslessly_and_multi_page_tiff_is_an_error(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.tif"), deep[..., ::-1])
    np.testing.assert_array_equal(image_files.read_image(tmp_path / "a.tif"), deep)
    Image.new("L", (4, 4)).save(tmp_path / "b.tif", save_all=True, append_images=[Image.new("L", (4, 4))])
    with pytest.raises(ValueError, match="2 pages"):
        image_files.read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("kind", ["voc", "dicom"])
def test_prepare_prints_the_format_and_scales_12_bits_to_16(tmp_path, capsys, kind):
    source = tmp_path / "source"
    source.mkdir()
    WRITERS[kind](source)
    prepare(Prepare(images=str(source), out=str(tmp_path / "set"), splits=(1.0, 0.0, 0.0), image_size=0))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"found {formats.FORMATS[kind].title}: 3 images and 3 boxes in ")
    dataset = records.open_dataset(tmp_path / "set")
    assert dataset.bit_depth == (16 if kind == "dicom" else 8)
    first = dataset.decode(next(iter(dataset.serialized("train_labelled"))))
    expected = 1000 / 4095 * 2 - 1 if kind == "dicom" else 100 / 255 * 2 - 1
    np.testing.assert_allclose(first.image[:20, :40], expected, atol=2e-5)
