"""Tests that progress bars write whole lines to a log, as container runtimes and `tail -f` require."""

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


def test_every_update_is_a_line_in_a_log():
    log = errors(stderr=subprocess.PIPE, text=True)
    assert log.endswith("\n")
    assert "\r" not in log
    assert "\x1b" not in log
    lines = log.splitlines()
    assert all(re.match(r"(counting|inside): +\d+%", line) for line in lines)
    counts = [line.split("|")[2].split()[0] for line in lines if line.startswith("counting")]
    assert list(dict.fromkeys(counts)) == ["0/4", "1/4", "2/4", "3/4", "4/4"]


def test_bar_stays_on_its_line_on_a_terminal():
    terminal, stderr = pty.openpty()
    errors(stderr=stderr)
    os.close(stderr)
    shown = ""
    with contextlib.suppress(OSError):  # end of the terminal
        while more := os.read(terminal, 65536):
            shown += more.decode()
    os.close(terminal)
    assert "\rcounting: 100%" in shown
    assert "\ncounting" not in shown


def test_only_progress_imports_tqdm():
    users = [
        path.name
        for path in (ROOT / "tf_detectorgan").rglob("*.py")
        if "import tqdm" in path.read_text("utf-8")
    ]
    assert users == ["progress.py"]
