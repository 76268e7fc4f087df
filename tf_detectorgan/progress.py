"""Progress bars that a log shows as well: each update is a line where standard error is no terminal."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0  # between two lines; TQDM_MININTERVAL, tqdm's own variable, sets another


class Lines:
    """A bar goes back to the beginning of its line before each update; here it ends the line after it.

    Logs are read by lines: a container's is delivered up to the last line's end.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip("\r\n ")  # and where there are several, up to its own
        if line:
            self._file.write(line + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def bar(*given: Any, **options: Any) -> tqdm:
    """tqdm(*given, **options), on standard error."""
    if not sys.stderr.isatty():
        options["file"] = Lines(sys.stderr)
        options.setdefault("mininterval", float(os.environ.get("TQDM_MININTERVAL", SECONDS)))
    return tqdm(*given, **options)


def lines(log: str) -> list[str]:
    """Returns the lines that are not empty, without the space around them; each state of a bar is one."""
    return [line.strip() for line in log.replace("\r", "\n").split("\n") if line.strip()]
