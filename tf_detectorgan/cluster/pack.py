"""Packs a folder as a tar archive on standard output. `launch fetch` sends this file's text to a pod.

It imports only the standard library, so the pod's image may contain any version of this package. Writes a
line of JSON to standard error before the archive (its size) and another one after it (length, checksum and
missing files). Then waits for a line on standard input: when a process ends, unsent output may be lost.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, TextIO


class Counted:
    """A writable file that keeps the length and the SHA-256 of the written data."""

    def __init__(self, file: BinaryIO):
        self.file, self.length, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.length += len(data)
        self.sha256.update(data)
        return self.file.write(data)


def names(root: str, without: list[str]) -> Iterator[str]:
    """Yields relative paths of files under `root`, except links and what matches a pattern of `without`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not any(fnmatch.fnmatch(f, p) for p in without))
        for file in sorted(files):
            path = os.path.join(folder, file)
            if not any(fnmatch.fnmatch(file, p) for p in without) and not os.path.islink(path):
                yield os.path.relpath(path, root)


def pack(root: str, without: list[str], out: BinaryIO, log: TextIO) -> None:
    """Writes the archive to `out` and two lines to `log`. Files that disappear meanwhile are skipped."""
    found = list(names(root, without))
    total = sum(os.path.getsize(path) for n in found if os.path.exists(path := os.path.join(root, n)))
    print(json.dumps({"bytes": total}), file=log, flush=True)
    written, gone = Counted(out), list[str]()
    with tarfile.open(fileobj=written, mode="w|") as archive:  # type: ignore[call-overload]
        for name in found:
            try:
                file = open(os.path.join(root, name), "rb")
            except FileNotFoundError:  # a checkpoint that training has replaced meanwhile
                gone.append(name)
                continue
            with file:  # a growing log is cut to its size when opened
                archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), file)
    out.flush()
    end = {"length": written.length, "sha256": written.sha256.hexdigest(), "gone": gone}
    print(json.dumps(end), file=log, flush=True)


if __name__ == "__main__":
    parent, name, *patterns = sys.argv[1:]
    if not os.path.isdir(os.path.join(parent, name)):
        found = ", ".join(sorted(os.listdir(parent))) or "nothing"
        sys.exit(f"no run {name!r} on the volume; it contains {found}")
    pack(os.path.join(parent, name), patterns, sys.stdout.buffer, sys.stderr)
    sys.stdin.readline()
