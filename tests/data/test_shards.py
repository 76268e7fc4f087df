"""Building a data set in shards of a few records each, also after a failure."""

import pytest

from tf_detectorgan.data import phantom, records, shards
from tf_detectorgan.errors import InputError

COUNTS = {"train_images": 5, "clean_images": 3, "unboxed_images": 0, "validation_images": 1}
CONFIG = phantom.PhantomConfig(size=32, **COUNTS, test_images=2, test_clean_images=0)


def build(out, **options):
    shards.build(phantom.plan(CONFIG), out, **options)
    return records.open_dataset(out)  # checks the sizes of the files


def contents(dataset):
    splits = ("train_labelled", "train_clean", "validation_labelled", "test_labelled")
    return [[bytes(record) for record in dataset.serialized(split).as_numpy_iterator()] for split in splits]


def test_many_shards_contain_the_records_of_one_in_the_same_order(tmp_path, monkeypatch):
    whole = build(tmp_path / "whole")
    monkeypatch.setattr(shards, "_SHARD_BYTES", 2 * 32 * 32)  # two images
    divided = build(tmp_path / "divided")
    assert contents(divided) == contents(whole)
    files = sorted(path.name.split("-", 1)[1] for path in divided.directory.glob("*tfrecord*"))
    assert files == sorted(
        [f"train_labelled.tfrecord-0000{i}-of-00003" for i in range(3)]
        + [f"train_clean.tfrecord-0000{i}-of-00002" for i in range(2)]
        + ["validation_labelled.tfrecord-00000-of-00001", "test_labelled.tfrecord-00000-of-00001"]
    )


def test_a_failure_or_kill_between_the_renames_keeps_the_old_set(tmp_path, monkeypatch):
    before = build(tmp_path / "set").fingerprint()
    rename = type(tmp_path).rename

    def fails(self, target):
        if target == tmp_path / "set" and self.name != "old":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", fails)
        with pytest.raises(OSError, match="Input/output"):
            build(tmp_path / "set", overwrite=True)
    assert records.open_dataset(tmp_path / "set").fingerprint() == before
    # After a kill between the two renames, the next call restores the old set.
    work = tmp_path / ".set.partial"
    assert work.is_dir()  # with the finished files
    (tmp_path / "set").rename(work / "old")
    with pytest.raises(InputError, match="--overwrite"):
        build(tmp_path / "set")
    assert records.open_dataset(tmp_path / "set").fingerprint() == before
