"""Writes files and directories atomically, locks directories, and recognizes errors of the disk."""

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
    """Yields a temporary path in the same folder: renamed to `path` at the end, removed after a failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yields an empty directory in the same folder: replaces `path` at the end, removed after a failure."""
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
    """Locks `directory`, waiting for other processes; the lock of a killed process is released."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting: another process is using {directory}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            print(f"note: {directory}: its file system has no locks; make sure that only one process uses it")
        yield


def fault(error: BaseException) -> str | None:
    """Returns the disk's error message, with the file if it is known; None for any other error.

    Args:
      error: an OSError, or an error of TensorFlow, which has a text instead of an error number.
    """
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror if error.strerror in _FAULTS else None
        return f"{error.filename}: {reason}" if reason and error.filename else reason
    if not isinstance(error, OSError) and not type(error).__module__.startswith("tensorflow"):
        return None
    for reason in _FAULTS:
        if found := re.search(rf"(?:([^\s;]+); )?{re.escape(reason)}", str(error)):
            return f"{found[1]}: {reason}" if found[1] else reason
    return None
