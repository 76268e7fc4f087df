"""Reads and writes records on disk: one schema for real, phantom and synthetic images.

A prepared data set is one TFDS directory. Its splits are `{train,validation,test}_{labelled,clean,unboxed}`:
labelled images have boxes, clean images do not show the object, unboxed images show it but have no boxes.
A split without images is absent. Letters: H, W, C channels, k boxes, g groups.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tf_detectorgan import disk
from tf_detectorgan.errors import InputError

SPLITS = ("train", "validation", "test")
STREAMS = ("labelled", "clean", "unboxed")
SPLIT_NAMES = tuple(f"{part}_{stream}" for part in SPLITS for stream in STREAMS)
SCHEMA = 1  # increased when the features below change; a directory with another schema is an error
_STORED = {8: np.uint8, 16: np.uint16}  # bits per channel: type of the stored image
FRAME_BYTES = 16  # per record: its length and the checksums of the length and the data


class Record(NamedTuple):
    """One image with its boxes, as tensors; the fields are named like the features."""

    image: tf.Tensor  # [H, W, C] float32 in [-1, 1]; black padding at the right or the bottom
    image_id: tf.Tensor  # [] int64, unique in the data set
    file_name: tf.Tensor  # [] string
    groups: tf.Tensor  # [g] string: patient, scene, ...; of a synthetic image: background's, matched image's
    boxes: tf.Tensor  # [k, 4] float32, see boxes.py, stored pixels
    labels: tf.Tensor  # [k] int32
    valid_size: tf.Tensor  # [2] int32, height and width of the content inside the padding, stored pixels
    source_size: tf.Tensor  # [2] int32, height and width of the file the image came from
    provenance: tf.Tensor  # [] string, JSON: how a synthetic image was made; "" for others


class Listed(NamedTuple):
    """A record with an undecoded image; sizes are (height, width) as in `Record`."""

    image_id: int
    file_name: str
    groups: tuple[str, ...]
    boxes: np.ndarray  # [n, 4], see boxes.py
    labels: tuple[int, ...]
    valid_size: tuple[int, ...]
    source_size: tuple[int, ...]
    png: bytes


def listed(serialized: tf.data.Dataset) -> Iterator[Listed]:
    """Yields the serialized Examples in order, with undecoded images."""
    for example in serialized.as_numpy_iterator():
        feature = tf.train.Example.FromString(example).features.feature
        yield Listed(
            feature["image_id"].int64_list.value[0],
            feature["file_name"].bytes_list.value[0].decode(),
            tuple(group.decode() for group in feature["groups"].bytes_list.value),
            np.array(feature["boxes"].float_list.value).reshape(-1, 4),
            tuple(feature["labels"].int64_list.value),
            tuple(feature["valid_size"].int64_list.value),
            tuple(feature["source_size"].int64_list.value),
            feature["image"].bytes_list.value[0],
        )


def features(
    image_shape: tuple[int, int, int], bit_depth: int, class_names: Iterable[str]
) -> tfds.features.FeaturesDict:
    """Returns the schema for images [H, W, C] of `bit_depth` 8 or 16 bits per channel."""
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(
                shape=tuple(image_shape), dtype=_STORED[bit_depth], encoding_format="png"
            ),
            "image_id": tfds.features.Scalar(np.int64),
            "file_name": tfds.features.Text(),
            "groups": tfds.features.Sequence(tfds.features.Text()),
            "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=list(class_names))),
            "valid_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "source_size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
            "provenance": tfds.features.Text(),
        }
    )


def bit_depth_of(schema: tfds.features.FeaturesDict) -> int:
    """Returns the bits per channel of the stored image, 8 or 16."""
    return 8 * np.dtype(schema["image"].np_dtype).itemsize


def to_stored(image: np.ndarray, bit_depth: int) -> np.ndarray:
    """Converts float32 [..] in [-1, 1] to stored integers, rounded and clipped: inverse of `to_float`."""
    top = 2**bit_depth - 1
    levels = np.rint((np.asarray(image, np.float64) + 1.0) * (top / 2.0))
    return np.clip(levels, 0, top).astype(_STORED[bit_depth])


def to_float(image: tf.Tensor, bit_depth: int) -> tf.Tensor:
    """Converts stored integers [..] to float32 in [-1, 1]."""
    return tf.cast(image, tf.float32) * (2.0 / (2**bit_depth - 1)) - 1.0


def encode(schema: tfds.features.FeaturesDict, example: Mapping[str, Any]) -> bytes:
    """Returns a tf.train.Example of `Record`'s fields; `image` is stored integers or floats in [-1, 1]."""
    image = np.asarray(example["image"])
    if np.issubdtype(image.dtype, np.floating):
        image = to_stored(image, bit_depth_of(schema))
    values = {
        "image": image,
        "image_id": int(example["image_id"]),
        "file_name": tf.compat.as_text(np.asarray(example["file_name"]).item()),
        "groups": [tf.compat.as_text(group) for group in np.asarray(example["groups"]).tolist()],
        "boxes": np.asarray(example["boxes"], np.float32).reshape(-1, 4),
        "labels": np.asarray(example["labels"], np.int64).reshape(-1).tolist(),
        "valid_size": np.asarray(example["valid_size"], np.int32),
        "source_size": np.asarray(example["source_size"], np.int32),
        "provenance": tf.compat.as_text(np.asarray(example["provenance"]).item()),
    }
    serialized = schema.serialize_example(schema.encode_example(values))
    # Without `deterministic`, the order of features and so the fingerprint differ between processes.
    return tf.train.Example.FromString(serialized).SerializeToString(deterministic=True)


def decode(schema: tfds.features.FeaturesDict, serialized: tf.Tensor) -> Record:
    """Decodes one serialized Example ([] string), eagerly or inside tf.data: the inverse of `encode`."""
    values = schema.deserialize_example(serialized)
    values["image"] = to_float(values["image"], bit_depth_of(schema))
    values["labels"] = tf.cast(values["labels"], tf.int32)
    return Record(**values)


def write_records(path, examples: Iterable[Mapping[str, Any]], schema: tfds.features.FeaturesDict) -> int:
    """Writes examples (see `encode`) to one TFRecord file, under a temporary name until it is complete.

    Also writes the schema into the same directory. Returns the number of examples.
    """
    path, count = Path(path), 0
    with disk.whole_file(path) as partial:
        with tf.io.TFRecordWriter(str(partial)) as writer:
            for example in examples:
                writer.write(encode(schema, example))
                count += 1
        schema.save_config(str(path.parent))
    return count


def read_features(directory) -> tfds.features.FeaturesDict:
    """Returns the schema that `write_records` wrote into `directory`.

    Raises:
      InputError: the schema is missing or cannot be read.
    """
    try:
        return tfds.features.FeaturesDict.from_config(str(directory))
    except Exception as error:  # TFDS raises many kinds for a missing or broken features.json
        raise InputError(
            f"{Path(directory) / 'features.json'}: missing or no readable record schema ({error})"
        ) from error


def read_records(path) -> tf.data.Dataset:
    """Checks one TFRecord file; returns its serialized Examples ([] string) in the order written.

    Raises:
      InputError: the file is missing, truncated or damaged.
    """
    check_records(path)
    return tf.data.TFRecordDataset(str(path))


def check_records(path) -> tuple[int, str]:
    """Reads a TFRecord file through and returns its number of records and a hash of their contents.

    Raises:
      InputError: the file is missing, truncated or damaged (a record's checksum does not match).
    """
    path, count, digest = Path(path), 0, hashlib.sha256()
    if not path.is_file():
        raise InputError(f"{path}: no such record file; run the command that writes it again")
    try:
        for records in tf.data.TFRecordDataset(str(path)).batch(64).as_numpy_iterator():
            for record in records:
                digest.update(hashlib.sha256(record).digest())
            count += len(records)
    except tf.errors.DataLossError as error:
        raise InputError(
            f"{path}: truncated or damaged in or after record {count}; delete it and write it again"
        ) from error
    return count, digest.hexdigest()


class Dataset:
    """A prepared data set, opened by `open_dataset`."""

    def __init__(self, builder: tfds.core.DatasetBuilder):
        schema = builder.info.features
        self.directory = Path(builder.data_dir)
        self.name: str = builder.name
        self.version: str = str(builder.version)
        self.description: str = builder.info.description
        self.citation: str = builder.info.citation
        self.features: tfds.features.FeaturesDict = schema
        self.image_shape: tuple[int, int, int] = tuple(schema["image"].shape)
        self.bit_depth: int = bit_depth_of(schema)
        self.class_names: tuple[str, ...] = tuple(schema["labels"].feature.names)
        self.max_boxes: int = max(int(builder.info.metadata["max_boxes"]), 1)
        self._splits = builder.info.splits
        self._limits: Mapping[str, int] = {}

    def limited(self, limits: Mapping[str, int]) -> Dataset:
        """Returns a view of this data set with at most the first `limits[split]` images of each split."""
        view = copy.copy(self)
        view._limits = dict(limits)
        return view

    def count(self, split: str) -> int:
        """Returns the number of images in a split, for example "train_labelled"; 0 if it is absent."""
        stored = int(self._splits[split].num_examples) if split in self._splits else 0
        return min(stored, self._limits.get(split, stored))

    def serialized(self, split: str) -> tf.data.Dataset:
        """Returns the split's serialized Examples ([] string) in a fixed order; empty if it is absent."""
        if not self.count(split):
            return tf.data.Dataset.from_tensor_slices(tf.zeros([0], tf.string))
        stored = tf.data.TFRecordDataset([str(path) for path in self._splits[split].filepaths])
        return stored.take(self.count(split)) if split in self._limits else stored

    def listed(self, split: str) -> Iterator[Listed]:
        """Yields the split's records in order, with undecoded images; none if the split is absent."""
        return listed(self.serialized(split))

    def pixels(self, image: Listed) -> np.ndarray:
        """Returns the stored image [H, W, C], uint8 or uint16."""
        return tf.io.decode_png(image.png, dtype=_STORED[self.bit_depth]).numpy()

    def decode(self, serialized: tf.Tensor) -> Record:
        """Decodes one serialized Example, eagerly or inside tf.data."""
        return decode(self.features, serialized)

    def fingerprint(self) -> str:
        """Returns a hash of the schema and all records. It reads all files, so call it once per run.

        Raises:
          InputError: a record file is missing, truncated or damaged.
        """
        digest = hashlib.sha256(f"{self.name} {self.version} {self.image_shape} {self.bit_depth}".encode())
        digest.update(json.dumps(self.class_names).encode())
        for split in sorted(self._splits):
            for path, expected in zip(
                self._splits[split].filepaths, self._splits[split].shard_lengths, strict=True
            ):
                count, contents = check_records(path)
                if count != expected:
                    raise InputError(
                        f"{path}: {count} records instead of {expected}; prepare the data set again"
                    )
                digest.update(f"{split} {count} {contents}".encode())
        return digest.hexdigest()

    def check_sizes(self) -> None:
        """Checks the record files' sizes, which finds truncated files without reading them.

        Raises:
          InputError: a file is missing or has another size.
        """
        for split, info in self._splits.items():
            paths = [Path(path) for path in info.filepaths]
            for path in paths:
                if not path.is_file():
                    raise InputError(f"{path}: missing; prepare the data set again")
            expected = int(info.num_bytes) + FRAME_BYTES * info.num_examples
            found = sum(path.stat().st_size for path in paths)
            if found != expected:
                raise InputError(
                    f"{', '.join(map(str, paths))}: {found} bytes instead of {expected} (split {split}): "
                    "truncated or changed; prepare the data set again"
                )


def open_dataset(data_dir) -> Dataset:
    """Opens a directory that `prepare` wrote; reads the description and the file sizes, but no images.

    Raises:
      InputError: the directory is missing, not a prepared data set, incomplete, or has another schema.
    """
    directory = Path(data_dir).expanduser()
    if not is_dataset(directory):
        raise InputError(
            f"{directory}: not a prepared data set (no dataset_info.json); write one with "
            "`python -m tf_detectorgan.prepare --out=...`"
        )
    try:
        builder = tfds.builder_from_directory(directory)
        schema = builder.info.metadata.get("schema")
        dataset = Dataset(builder) if schema == SCHEMA else None
    except Exception as error:  # TFDS raises many kinds for a broken description
        raise InputError(
            f"{directory}: the data set's description cannot be read ({error!r}); prepare it again"
        ) from error
    if dataset is None:
        raise InputError(
            f"{directory}: has record schema {schema}, but this version reads {SCHEMA}; prepare it again"
        )
    dataset.check_sizes()
    return dataset


def is_dataset(directory) -> bool:
    """Returns whether `directory` contains a TFDS data set."""
    return (Path(directory) / "dataset_info.json").is_file()
