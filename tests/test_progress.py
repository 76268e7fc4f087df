"""Bars in a log: lines that have an end, as container runtimes and `tail -f` wait for one."""

import contextlib
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
from tf_detectorgan import progress
with progress.bar(total=4, desc="counting") as outer:
    for _ in range(2):
        for _ in progress.bar(range(2), desc="inside", leave=False):
            outer.update()
"""


def errors(**streams):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=os.environ | {"TQDM_MININTERVAL": "0", "TQDM_NCOLS": "80", "TQDM_NROWS": "24"},
        check=True,
        **streams,
    ).stderr


def test_in_a_log_every_update_is_a_line():
    log = errors(stderr=subprocess.PIPE, text=True)
    assert log.endswith("\n")
    assert "\r" not in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert all(re.match(r"(counting|inside): +\d+%", line) for line in lines)
    counts = [line.split("|")[2].split()[0] for line in lines if line.startswith("counting")]
    assert list(dict.fromkeys(counts)) == ["0/4", "1/4", "2/4", "3/4", "4/4"]


def test_on_a_terminal_a_bar_stays_in_its_line():
    ours, theirs = pty.openpty()
    errors(stderr=theirs)
    os.close(theirs)
    shown = ""
    with contextlib.suppress(OSError):  # a terminal's end
        while more := os.read(ours, 65536):
            shown += more.decode()
    os.close(ours)
    assert "\rcounting: 100%" in shown
    assert "\ncounting" not in shown


def test_all_bars_are_made_here():
    users = [
        path.name
        for path in (ROOT / "tf_detectorgan").rglob("*.py")
        if "import tqdm" in path.read_text("utf-8")
    ]
    assert users == ["progress.py"]
