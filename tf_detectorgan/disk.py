"""What is written appears whole or not at all, and a disk that takes no more is told from a fault of ours."""

from __future__ import annotations

import contextlib
import errno
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
