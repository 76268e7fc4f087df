import os

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import phantom, records, shards
from tf_detectorgan.errors import InputError

NAMES = ["hole", "crack"]


def example(image, **changes):
    fields = {
        "image": image,
        "image_id": 2**40 + 1,
        "file_name": "Bläschen/01.png",
        "groups": ["patient 7", "Ö"],
        "boxes": [[1.0, 2.5, 3.25, 7.0], [0.0, 0.0, 8.0, 6.0]],
        "labels": [1, 0],
        "valid_size": [6, 8],
        "source_size": [600, 800],
        "provenance": '{"seed": 3}',
    }
    return fields | changes


def noise(shape, bits, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(f"uint{bits}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("inside_tf_data", [False, True])
def test_decode_is_the_inverse_of_encode(bits, channels, inside_tf_data):
    schema = records.features((8, 8, channels), bits, NAMES)
    image = noise((8, 8, channels), bits)
    serialized = records.encode(schema, example(image))
    if inside_tf_data:
        dataset = tf.data.Dataset.from_tensors(serialized).map(lambda s: records.decode(schema, s))
        record = next(iter(dataset))
    else:
        record = records.decode(schema, serialized)
    np.testing.assert_array_equal(records.to_stored(record.image.numpy(), bits), image)
    np.testing.assert_allclose(record.image.numpy(), image / (2**bits - 1) * 2 - 1, atol=2e-7)
    assert record.image.dtype == tf.float32
    assert record.labels.dtype == tf.int32
    assert record.image_id.numpy() == 2**40 + 1
    assert record.file_name.numpy().decode() == "Bläschen/01.png"
    assert [g.decode() for g in record.groups.numpy()] == ["patient 7", "Ö"]
    np.testing.assert_array_equal(record.boxes, example(image)["boxes"])
    np.testing.assert_array_equal(record.labels, [1, 0])
    np.testing.assert_array_equal(record.valid_size, [6, 8])
    np.testing.assert_array_equal(record.source_size, [600, 800])
    assert record.provenance.numpy() == b'{"seed": 3}'
    assert records.encode(schema, {k: v.numpy() for k, v in record._asdict().items()}) == serialized


def test_an_image_without_boxes_has_boxes_of_shape_0_4():
    schema = records.features((8, 8, 1), 8, NAMES)
    record = records.decode(schema, records.encode(schema, example(noise((8, 8, 1), 8), boxes=[], labels=[])))
    assert record.boxes.shape == (0, 4)
    assert record.labels.shape == (0,)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_stored_level_is_unchanged_by_conversion_to_float_and_back(bits):
    levels = np.arange(2**bits).astype(f"uint{bits}")
    floats = records.to_float(levels, bits).numpy()
    assert floats[0] == -1.0
    assert floats[-1] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_array_equal(records.to_stored(floats, bits), levels)


def test_floats_outside_the_range_are_clipped_not_wrapped():
    np.testing.assert_array_equal(records.to_stored(np.array([-1.5, 1.5, -0.6]), 8), [0, 255, 51])


@pytest.fixture
def written(tmp_path):
    schema = records.features((8, 8, 1), 8, NAMES)
    path = tmp_path / "synthetic" / "synthetic.tfrecord"
    images = [noise((8, 8, 1), 8, seed) for seed in range(3)]
    assert records.write_records(path, (example(image) for image in images), schema) == 3
    return path, images


def test_written_records_are_read_back_in_order(written):
    path, images = written
    schema = records.read_features(path.parent)
    assert schema["labels"].feature.names == NAMES
    read = [records.decode(schema, serialized).image for serialized in records.read_records(path)]
    for stored, image in zip(read, images, strict=True):
        np.testing.assert_array_equal(records.to_stored(stored.numpy(), 8), image)


def test_truncated_damaged_or_missing_records_are_an_error_naming_the_file(written):
    path, _ = written
    contents = path.read_bytes()
    for broken in (contents[:-5], contents[:60] + b"\x00\xff" + contents[62:]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=f"{path}.*damaged"):
            records.read_records(path)
    path.unlink()
    with pytest.raises(InputError, match=f"{path}.*no such"):
        records.read_records(path)
    (path.parent / "features.json").unlink()
    with pytest.raises(InputError, match="features.json"):
        records.read_features(path.parent)


def test_an_interrupted_write_keeps_the_old_file_and_leaves_no_other(written):
    path, _ = written
    before, listing = path.read_bytes(), sorted(os.listdir(path.parent))

    def stopped():
        yield example(noise((8, 8, 1), 8))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(path, stopped(), records.read_features(path.parent))
    assert path.read_bytes() == before
    assert sorted(os.listdir(path.parent)) == listing


def build(out, seed=0, **changes):
    config = phantom.PhantomConfig(
        size=64,
        seed=seed,
        **{"train_images": 3, "clean_images": 2, "unboxed_images": 0, "validation_images": 0}
        | {"test_images": 2, "test_clean_images": 0}
        | changes,
    )
    shards.build(phantom.plan(config), out, overwrite=True)


@pytest.fixture
def prepared(tmp_path):
    build(tmp_path / "set")
    return tmp_path / "set"


def test_open_dataset_describes_the_set(prepared):
    dataset = records.open_dataset(prepared)
    assert (dataset.name, dataset.version, dataset.class_names) == ("phantom", "2.0.0", ("nodule",))
    assert (dataset.image_shape, dataset.bit_depth, dataset.max_boxes) == ((64, 64, 1), 8, 2)
    assert dataset.count("train_labelled") == 3
    assert dataset.count("train_unboxed") == 0
    assert list(dataset.serialized("train_unboxed")) == []
    ids = [[int(dataset.decode(s).image_id) for s in dataset.serialized("test_labelled")] for _ in range(2)]
    assert ids == [[6_000_000, 6_000_001]] * 2


def test_the_fingerprint_depends_on_the_contents_only(prepared, tmp_path):
    first = records.open_dataset(prepared).fingerprint()
    build(tmp_path / "same")
    assert records.open_dataset(tmp_path / "same").fingerprint() == first
    build(tmp_path / "other", seed=1)
    assert records.open_dataset(tmp_path / "other").fingerprint() != first


def test_a_damaged_truncated_or_missing_shard_is_an_error(prepared):
    dataset = records.open_dataset(prepared)
    file = next(prepared.glob("*train_clean*"))
    contents = file.read_bytes()
    file.write_bytes(contents[:40] + b"\x00\xff" + contents[42:])
    with pytest.raises(InputError, match=file.name):
        dataset.fingerprint()
    file.write_bytes(contents[:-1])
    with pytest.raises(InputError, match=f"{file.name}.*bytes instead of {len(contents)}"):
        records.open_dataset(prepared)
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name}: missing"):
        records.open_dataset(prepared)


def test_opening_a_missing_set_or_another_schema_is_an_error(prepared, tmp_path):
    with pytest.raises(InputError, match="nowhere.*prepare"):
        records.open_dataset(tmp_path / "nowhere")
    (prepared / "metadata.json").write_text('{"schema": 99, "max_boxes": 2}')
    with pytest.raises(InputError, match="schema 99"):
        records.open_dataset(prepared)
    (prepared / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        records.open_dataset(prepared)


def test_an_interrupted_build_keeps_the_old_set_and_leaves_no_other_file(prepared, monkeypatch):
    before = records.open_dataset(prepared).fingerprint()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(phantom, "draw", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(prepared)
    assert os.listdir(prepared.parent) == [prepared.name]
    assert records.open_dataset(prepared).fingerprint() == before


def test_a_limited_view_has_the_first_images_and_does_not_change_the_data_set(tiny_phantom):
    dataset = records.open_dataset(tiny_phantom("limited", test_images=4))
    view = dataset.limited({"test_labelled": 3, "train_clean": 100, "train_unboxed": 1})
    ids = {
        split: [image.image_id for image in dataset.listed(split)]
        for split in ("test_labelled", "train_clean")
    }
    assert [image.image_id for image in view.listed("test_labelled")] == ids["test_labelled"][:3]
    assert [image.image_id for image in view.listed("train_clean")] == ids["train_clean"]
    splits = ("test_labelled", "test_clean", "train_clean", "train_unboxed")
    assert [view.count(split) for split in splits] == [3, 2, 4, 0]
    assert [dataset.count(split) for split in splits] == [4, 2, 4, 0]
    assert view.fingerprint() == dataset.fingerprint()
