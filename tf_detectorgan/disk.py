"""What is written appears whole or not at all, and a disk that takes no more is told from a fault of ours."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_FAULTS = [
    os.strerror(code)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
]


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary name beside `path`: it becomes `path` at the end, or is removed after a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory beside `path`: it replaces `path`, or is removed after a failure."""
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def held(directory: Path) -> Iterator[None]:
    """Waits until no other process holds `directory`, then holds it; a killed one holds it no longer."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting: another process works in {directory}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            print(f"note: {directory}: its file system has no locks; see that one process works there alone")
        yield


def fault(error: BaseException) -> str | None:
    """What the disk has to say, with the file where it is known; None when the error is another one.

    Args:
      error: Python's OSError, or one of TensorFlow, which has a text in place of a number.
    """
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror if error.strerror in _FAULTS else None
        return f"{error.filename}: {said}" if said and error.filename else said
    if not isinstance(error, OSError) and not type(error).__module__.startswith("tensorflow"):
        return None
    for said in _FAULTS:
        if found := re.search(rf"(?:([^\s;]+); )?{re.escape(said)}", str(error)):
            return f"{found[1]}: {said}" if found[1] else said
    return None
