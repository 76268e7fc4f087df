"""Tests with small processes that a child ends with its parent."""

import os
import subprocess
import sys
from pathlib import Path

from tf_detectorgan.errors import EXIT_INTERRUPTED
from tf_detectorgan.preflight import child, kernel

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import time
from tf_detectorgan.preflight import kernel
kernel.end_with_parent()
print("began", flush=True)
time.sleep(60)
print("outlived its parent", flush=True)
"""
PARENT = f"""
import os, subprocess, sys
from tf_detectorgan.preflight import kernel
subprocess.run([sys.executable, "-c", {CHILD!r}], env=os.environ | kernel.variable())
"""


def environment(**changes):
    return os.environ | {"PYTHONPATH": str(ROOT)} | changes


def test_child_is_killed_with_its_parent():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "began\n"
        process.kill()
        assert process.stdout.read() == ""  # returns when no process has the pipe open


def test_child_of_an_ended_parent_exits_before_importing_tensorflow(tmp_path):
    (name,) = kernel.variable()
    command = [sys.executable, "-X", "importtime", "-m", child.__name__]
    changed = environment(**{name: str(os.getppid())})
    ended = subprocess.run(command, cwd=tmp_path, env=changed, capture_output=True, text=True)
    assert ended.returncode == EXIT_INTERRUPTED
    assert "tf_detectorgan.errors" in ended.stderr
    assert "tensorflow" not in ended.stderr
    assert list(tmp_path.iterdir()) == []
