"""Writes a data set shard by shard, each a file of its own: in bounded memory, and resumable.

TFDS describes and names the files; it does not write them, because its writers hold what they write in memory
and begin anew after an interruption (docs/decisions/0010).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from tf_detectorgan import __version__, disk, progress
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError

_NAME_BYTES = 200  # of the usual 255; the hidden directory beside it has a longer one
_SHARD_BYTES = 64 << 20  # of decoded images: 256 grey ones of 512 pixels, some seconds of work


@dataclasses.dataclass(frozen=True)
class Part:
    """The examples of one shard; its text decides whether a finished shard is kept."""

    example: Callable[[Any], dict[str, Any]]  # an item to an example, see `records.encode`
    items: Sequence[Any]

    def __call__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """TFDS's form: numbered examples."""
        return enumerate(map(self.example, self.items))


def parts(
    example: Callable[[Any], dict[str, Any]], items: Sequence[Any], schema: tfds.features.FeaturesDict
) -> list[Part]:
    """Divides the items of a split into shards."""
    image = schema["image"]
    size = max(_SHARD_BYTES // (int(np.prod(image.shape)) * np.dtype(image.np_dtype).itemsize), 1)
    return [Part(example, items[start : start + size]) for start in range(0, len(items), size)]


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file to be written, all or nothing."""

    split: str
    path: Path
    part: Part
    schema: tfds.features.FeaturesDict

    def write(self, progress: Callable[[], object] = lambda: None) -> None:
        """Writes under a temporary name, then renames; a shard that is there already stays."""
        if self.path.is_file():
            return
        with disk.whole_file(self.path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
            for _, example in self.part():
                writer.write(records.encode(self.schema, example))
                progress()


class Builder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A builder of this project: `_shard_iterators_per_split` gives lists of `Part`; `build` runs it."""

    written: Sequence[Shard] = ()  # set by `build`

    def shards(self, directory: Path) -> list[Shard]:
        """What is to be written into `directory`, in order."""
        found = []
        for split, rows in self._shard_iterators_per_split(None).items():
            template = self._get_filename_template(split)
            for number, part in enumerate(rows):
                name = template.sharded_filepath(shard_index=number, num_shards=len(rows)).name
                found.append(Shard(split, directory / name, part, self.info.features))
        return found

    def _download_and_prepare(self, dl_manager, download_config=None) -> None:
        """Describes what is written; TFDS then writes the description."""
        infos = []
        for split, found in groupby(self.written, key=lambda shard: shard.split):
            files = [(shard.path.stat().st_size, len(shard.part.items)) for shard in found]
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[count for _, count in files],
                    num_bytes=sum(size - records.FRAME_BYTES * count for size, count in files),
                    filename_template=self._get_filename_template(split),
                )
            )
        self.info.set_splits(tfds.core.SplitDict(infos))


def build(make: Callable[[str], Builder], out, overwrite: bool = False) -> None:
    """Runs the builder `make(data_dir)` and puts its directory at `out`, whole or not at all.

    The work happens in a hidden directory beside `out`. After an interruption only finished shards are left
    there, and the same call goes on; a call with other images or settings deletes them.

    Args:
      make: the builder for a directory.
      out: where to put the data set.
      overwrite: replace the data set that is there.

    Raises:
      InputError: `out` exists and is not to be overwritten, or is no prepared data set.
    """
    out = Path(out).expanduser().absolute()
    work = out.with_name(f".{out.name}.partial")
    _put_back(work, out)
    check_target(out, overwrite)
    with _quiet():
        builder = make(str(work / "new"))
    shards = builder.shards(work / "shards")
    try:
        _keep_own(work, shards)
        _write(shards)
        builder.written = shards
        with _quiet():
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
        directory = Path(builder.data_dir)
        for shard in shards:
            shard.path.rename(directory / shard.path.name)
        if out.exists():
            out.rename(work / "old")
        directory.rename(out)
    except BaseException:
        _put_back(work, out)
        _clear(work, shards)
        raise
    shutil.rmtree(work)


def _put_back(work: Path, out: Path) -> None:
    """The old data set, where a process ended between two renames."""
    if (work / "old").exists() and not out.exists():
        (work / "old").rename(out)


def _keep_own(work: Path, shards: Sequence[Shard]) -> None:
    """Deletes what is left of another call, one with other images, settings or another version."""
    digest = hashlib.sha256(f"{__version__} {shards[0].schema}".encode())
    for shard in shards:
        digest.update(f"{shard.path.name} {shard.part}".encode())
    key = work / "key"
    if not key.is_file() or key.read_text("utf-8") != digest.hexdigest():
        shutil.rmtree(work, ignore_errors=True)
        (work / "shards").mkdir(parents=True)
        key.write_text(digest.hexdigest(), "utf-8")


def _clear(work: Path, shards: Sequence[Shard]) -> None:
    """After a failure: leaves finished shards only, and says so."""
    shutil.rmtree(work / "new", ignore_errors=True)
    if kept := sum(shard.path.is_file() for shard in shards):
        print(
            f"{kept} of {len(shards)} record files are finished and kept in {work}: "
            "the same command goes on from there",
            file=sys.stderr,
        )
    else:
        shutil.rmtree(work, ignore_errors=True)


def _write(shards: Sequence[Shard]) -> None:
    missing = [shard for shard in shards if not shard.path.is_file()]
    if len(missing) < len(shards):
        print(f"{len(shards) - len(missing)} of {len(shards)} record files were finished before")
    with progress.bar(total=sum(len(shard.part.items) for shard in missing), unit="image") as bar:
        for shard in missing:
            bar.set_description(f"writing {shard.split}")
            shard.write(bar.update)


@contextlib.contextmanager
def _quiet():
    """Drops what TFDS says: a download of unknown size, the builder's settings."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(before)


def check_target(out, overwrite: bool) -> None:
    """Refuses to write over anything but a prepared data set, and over that only when asked.

    Raises:
      InputError: as said, or no file can have this name.
      OSError: nothing can be written there.
    """
    try:
        str(out).encode("utf-8")  # TensorFlow takes no other names
    except UnicodeEncodeError as error:
        raise InputError(f"--out={out}: is no UTF-8; choose another name") from error
    out = Path(out).expanduser().absolute()
    if max(len(os.fsencode(part)) for part in out.parts) > _NAME_BYTES:
        raise InputError(f"--out={out}: a name of over {_NAME_BYTES} bytes; choose a shorter one")
    place = next((folder for folder in out.parents if folder.exists()), out)
    with tempfile.TemporaryFile(dir=place):  # now, and not after an hour of reading
        pass
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not records.is_dataset(out):
        raise InputError(f"--out={out}: exists and is no prepared data set; choose another directory")
    if not overwrite:
        raise InputError(f"--out={out}: already holds a data set; use --overwrite to replace it")
