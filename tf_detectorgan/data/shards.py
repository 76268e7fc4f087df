"""Writes a data set shard by shard, one file each: in bounded memory, and resumable after an interruption.

TFDS names and describes the files. Its writers are not used, because they hold the data in memory and start
again after an interruption (docs/decisions/0010).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from tf_detectorgan import __version__, disk, progress
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError

_NAME_BYTES = 200  # of the usual 255; the name of the temporary directory is longer
_SHARD_BYTES = 64 << 20  # of decoded images: 256 grey images of 512 x 512 pixels, some seconds of work


class About(NamedTuple):
    """Name, version, description and citation of a data set."""

    name: str
    version: str
    description: str
    citation: str = ""  # source and licence, as the publisher states them


@dataclasses.dataclass(frozen=True)
class Plan:
    """A data set to be written."""

    about: About
    schema: tfds.features.FeaturesDict
    max_boxes: int  # of one image
    splits: Mapping[str, Sequence[Any]]  # items of each split
    example: Callable[[Any], dict[str, Any]]  # makes an item's example, see `records.encode`


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a data set, written completely or not at all."""

    split: str
    path: Path
    items: Sequence[Any]

    def write(self, plan: Plan, progress: Callable[[], object]) -> None:
        """Writes the file under a temporary name, then renames it."""
        with disk.whole_file(self.path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
            for item in self.items:
                writer.write(records.encode(plan.schema, plan.example(item)))
                progress()


def _template(plan: Plan, split: str, directory: Path) -> tfds.core.ShardedFileTemplate:
    return tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=plan.about.name, split=split, filetype_suffix="tfrecord"
    )


def _shards(plan: Plan, directory: Path) -> list[Shard]:
    """Returns the shards to be written into `directory`, in order."""
    image, found = plan.schema["image"], []
    size = max(_SHARD_BYTES // (int(np.prod(image.shape)) * np.dtype(image.np_dtype).itemsize), 1)
    for split, items in plan.splits.items():
        template, starts = _template(plan, split, directory), range(0, len(items), size)
        for number, start in enumerate(starts):
            path = Path(template.sharded_filepath(shard_index=number, num_shards=len(starts)))
            found.append(Shard(split, path, items[start : start + size]))
    return found


def _describe(plan: Plan, shards: Sequence[Shard], directory: Path) -> None:
    """Writes TFDS's description of the finished shards into `directory`."""
    splits = []
    for split, found in groupby(shards, key=lambda shard: shard.split):
        files = [(shard.path.stat().st_size, len(shard.items)) for shard in found]
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[count for _, count in files],
                num_bytes=sum(size - records.FRAME_BYTES * count for size, count in files),
                filename_template=_template(plan, split, directory),
            )
        )
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            plan.about.name, tfds.core.Version(plan.about.version), str(directory), __name__
        ),
        description=plan.about.description,
        features=plan.schema,
        citation=plan.about.citation,
        metadata=tfds.core.MetadataDict(schema=records.SCHEMA, max_boxes=plan.max_boxes),
        disable_shuffling=True,
        split_dict=tfds.core.SplitDict(splits),
    )
    info.set_file_format(tfds.core.FileFormat.TFRECORD)
    info.write_to_directory(directory)


def build(plan: Plan, out, overwrite: bool = False) -> None:
    """Writes a data set into the directory `out`, completely or not at all.

    Shards are written into a hidden directory next to `out`. After an interruption, finished shards stay
    there, and the same call continues. A call with other images or settings deletes them.

    Args:
      plan: the data set.
      out: its directory.
      overwrite: replace an existing data set.

    Raises:
      InputError: `out` exists and `overwrite` is false, or `out` is not a prepared data set.
    """
    out = Path(out).expanduser().absolute()
    work = out.with_name(f".{out.name}.partial")
    _restore_old(work, out)
    check_target(out, overwrite)
    directory = work / "shards"
    shards = _shards(plan, directory)
    try:
        _delete_stale(work, plan, shards)
        _write(plan, shards)
        _describe(plan, shards, directory)
        if out.exists():
            out.rename(work / "old")
        directory.rename(out)
    except BaseException:
        _restore_old(work, out)
        _clean_up(work, shards)
        raise
    shutil.rmtree(work)


def _restore_old(work: Path, out: Path) -> None:
    """Moves the old data set back to `out` if a process ended between the two renames."""
    if (work / "old").exists() and not out.exists():
        (work / "old").rename(out)


def _delete_stale(work: Path, plan: Plan, shards: Sequence[Shard]) -> None:
    """Deletes files that were left by a call with other images, settings or another version."""
    digest = hashlib.sha256(f"{__version__} {plan.schema} {plan.example}".encode())
    for shard in shards:
        digest.update(f"{shard.path.name} {shard.items}".encode())
    key = work / "key"
    if not key.is_file() or key.read_text("utf-8") != digest.hexdigest():
        shutil.rmtree(work, ignore_errors=True)
        (work / "shards").mkdir(parents=True)
        key.write_text(digest.hexdigest(), "utf-8")


def _clean_up(work: Path, shards: Sequence[Shard]) -> None:
    """Keeps finished shards after a failure and prints a note, or deletes `work` if there are none."""
    if kept := sum(shard.path.is_file() for shard in shards):
        print(
            f"{kept} of {len(shards)} record files are finished and kept in {work}: "
            "run the same command again to continue",
            file=sys.stderr,
        )
    else:
        shutil.rmtree(work, ignore_errors=True)


def _write(plan: Plan, shards: Sequence[Shard]) -> None:
    for partial in shards[0].path.parent.glob(".*.partial"):  # left by a killed process
        partial.unlink()
    missing = [shard for shard in shards if not shard.path.is_file()]
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} record files were already finished")
    with progress.bar(total=sum(len(shard.items) for shard in missing), unit="image") as bar:
        for shard in missing:
            bar.set_description(f"writing {shard.split}")
            shard.write(plan, bar.update)


def check_target(out, overwrite: bool) -> None:
    """Checks that a data set can be written to `out`.

    Raises:
      InputError: `out` is a data set and `overwrite` is false, or something else, or the name is invalid.
      OSError: the parent directory is not writable.
    """
    try:
        str(out).encode("utf-8")  # TensorFlow accepts no other names
    except UnicodeEncodeError as error:
        raise InputError(f"--out={out}: not valid UTF-8; choose another name") from error
    out = Path(out).expanduser().absolute()
    if max(len(os.fsencode(part)) for part in out.parts) > _NAME_BYTES:
        raise InputError(f"--out={out}: a name has more than {_NAME_BYTES} bytes; choose a shorter one")
    place = next((folder for folder in out.parents if folder.exists()), out)
    with tempfile.TemporaryFile(dir=place):  # fails now, not after an hour of reading
        pass
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not records.is_dataset(out):
        raise InputError(f"--out={out}: exists and is not a prepared data set; choose another directory")
    if not overwrite:
        raise InputError(f"--out={out}: already contains a data set; use --overwrite to replace it")
