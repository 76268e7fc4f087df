"""Packs a folder as a tar archive on standard output. `launch fetch` sends this file's text to a pod.

So it imports the standard library alone, and the pod's image may hold any version of this package. Standard
error gets a line of JSON before the archive (how much there is) and one after it (what came of it). Then it
waits for a line on standard input: when a process ends, what has not been sent yet may be lost.
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
    """A file to write to that knows length and SHA-256 of what was written."""

    def __init__(self, file: BinaryIO):
        self.file, self.length, self.sha256 = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.length += len(data)
        self.sha256.update(data)
        return self.file.write(data)


def names(root: str, without: list[str]) -> Iterator[str]:
    """Files under `root`, relative to it, no links; no part of their paths matches a pattern of `without`."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(f for f in folders if not any(fnmatch.fnmatch(f, p) for p in without))
        for file in sorted(files):
            path = os.path.join(folder, file)
            if not any(fnmatch.fnmatch(file, p) for p in without) and not os.path.islink(path):
                yield os.path.relpath(path, root)


def pack(root: str, without: list[str], out: BinaryIO, log: TextIO) -> None:
    """Writes the archive to `out` and the two lines to `log`. What disappears meanwhile is left out."""
    found = list(names(root, without))
    total = sum(os.path.getsize(path) for n in found if os.path.exists(path := os.path.join(root, n)))
    print(json.dumps({"bytes": total}), file=log, flush=True)
    written, gone = Counted(out), list[str]()
    with tarfile.open(fileobj=written, mode="w|") as archive:  # type: ignore[call-overload]
        for name in found:
            try:
                file = open(os.path.join(root, name), "rb")
            except FileNotFoundError:  # a checkpoint that training has just replaced by the next
                gone.append(name)
                continue
            with file:  # a log that grows goes in as long as it was when it was opened
                archive.addfile(archive.gettarinfo(arcname=name, fileobj=file), file)
    out.flush()
    end = {"length": written.length, "sha256": written.sha256.hexdigest(), "gone": gone}
    print(json.dumps(end), file=log, flush=True)


if __name__ == "__main__":
    parent, name, *patterns = sys.argv[1:]
    if not os.path.isdir(os.path.join(parent, name)):
        there = ", ".join(sorted(os.listdir(parent))) or "nothing"
        sys.exit(f"no run {name!r} on the volume; there is {there}")
    pack(os.path.join(parent, name), patterns, sys.stdout.buffer, sys.stderr)
    sys.stdin.readline()
