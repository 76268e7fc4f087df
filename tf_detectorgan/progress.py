"""Progress bars that are readable in a log, too: if stderr is not a terminal, each update is a line."""

from __future__ import annotations

import os
import sys
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 10.0  # between two lines, unless TQDM_MININTERVAL, a variable of tqdm, is set


class Lines:
    """A text file that turns each update of a progress bar, which starts with a carriage return, into a line.

    Logs are read by lines; the log of a container is delivered up to the last line break.
    """

    def __init__(self, file: TextIO):
        self._file = file

    def write(self, text: str) -> None:
        line = text.replace("\x1b[A", "").strip("\r\n ")  # cursor up, with several bars
        if line:
            self._file.write(line + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def bar(*given: Any, **options: Any) -> tqdm:
    """Returns tqdm(*given, **options) on standard error."""
    if not sys.stderr.isatty():
        options["file"] = Lines(sys.stderr)
        options.setdefault("mininterval", float(os.environ.get("TQDM_MININTERVAL", SECONDS)))
    return tqdm(*given, **options)


def lines(log: str) -> list[str]:
    """Returns the stripped lines that are not empty; each update of a progress bar is a line."""
    return [line.strip() for line in log.replace("\r", "\n").split("\n") if line.strip()]
