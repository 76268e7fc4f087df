import json

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data.placement_file import look_up, read_placements
from tf_detectorgan.errors import InputError

HEADER = "file_name,x,y,w,h,label\n"
GOOD = "{}.png,10,20,8,6,mass\n"


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(clean=3)  # ids 0 to 2, originals of 64x64, stored as 32x32


@pytest.fixture
def read(tmp_path, dataset):
    def read(text, name="boxes.csv"):
        (tmp_path / name).write_text(text)
        return read_placements(str(tmp_path / name), dataset)

    return read


def test_rows_become_boxes_of_the_stored_image(read):
    table = read(HEADER + GOOD.format(2) + GOOD.format(0) + "0.png,0,0,64,32,nodule\n" + GOOD.format(1))
    given = look_up(table, tf.constant([2, 0, 0], tf.int64), tf.constant([0.9, 0.1, 0.9]))
    # Half of the original's pixels.
    np.testing.assert_allclose(given.boxes, [[5, 10, 9, 13], [5, 10, 9, 13], [0, 0, 32, 16]])
    assert given.labels.numpy().tolist() == [1, 1, 0]


def test_json_and_image_ids_mean_the_same(read):
    rows = [{"image_id": i, "x": 10, "y": 20, "w": 8, "h": 6, "label": "mass"} for i in range(3)]
    as_json = read(json.dumps(rows), "boxes.json")
    as_csv = read(HEADER + "".join(GOOD.format(i) for i in range(3)))
    for one, other in zip(as_json, as_csv, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_about_other_images_are_not_looked_at(read):
    table = read(HEADER + "".join(GOOD.format(i) for i in (2, 1, 0)) + "elsewhere.png,-5,x,,,\n")
    assert table.boxes.shape == (3, 4)


@pytest.mark.parametrize(
    "row, named",
    [
        ("1.png,ten,20,8,6,mass", r"row 2: x='ten'"),
        ("1.png,10,,8,6,mass", r"row 2: y=''"),
        ("1.png,10,20,0,6,mass", r"row 2: w='0' is not a positive"),
        ("1.png,10,20,8,-6,mass", r"row 2: h='-6'"),
        ("1.png,10,20,8,nan,mass", r"row 2: h='nan'"),
        ("1.png,60,20,8,6,mass", r"row 2: box x,y,w,h=60,20,8,6 .*64x64"),
        ("1.png,-1,20,8,6,mass", r"row 2: box"),
        ("1.png,10,20,8,6,stone", r"row 2: label='stone' .*nodule, mass"),
        ("1.png,10,20,8,6", r"row 2: label=None"),
        (",10,20,8,6,mass", r"row 2: neither file_name nor image_id"),
    ],
)
def test_a_bad_row_is_named_with_field_and_value(read, row, named):
    with pytest.raises(InputError, match=r"boxes\.csv, " + named):
        read(HEADER + GOOD.format(0) + row + "\n" + GOOD.format(2))


def test_an_image_without_a_row_is_named(read):
    with pytest.raises(InputError, match=r"no box for 2 of 3 images of train_clean.*0\.png"):
        read(HEADER + GOOD.format(1))


@pytest.mark.parametrize(
    "text, name, named",
    [
        ("{", "boxes.json", "cannot be read"),
        ('{"a": 1}', "boxes.json", "must be a list"),
        (HEADER, "boxes.csv", "has no rows"),
        ("a\x00b,\x00\n1,2", "boxes.csv", "boxes.csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused(read, text, name, named):
    with pytest.raises(InputError, match=named):
        read(text, name)


def test_a_missing_file_is_named(dataset, tmp_path):
    with pytest.raises(InputError, match=r"none\.csv"):
        read_placements(str(tmp_path / "none.csv"), dataset)
