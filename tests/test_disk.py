"""One process at a time works in a directory; the next waits."""

import errno
import fcntl
import subprocess
import sys

import pytest

from tf_detectorgan import disk, train
from tf_detectorgan.errors import EXIT_INTERRUPTED
from tf_detectorgan.training import run_directory
from tf_detectorgan.training.settings import Train

HOLD = """
import signal, sys
from pathlib import Path
from tf_detectorgan import disk
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # as command.guard has it
with disk.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(directory):
    command = [sys.executable, "-c", HOLD, directory]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_next_process_waits_until_the_first_is_killed(tmp_path):
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with holder(tmp_path) as second:
            assert second.stdout.readline() == f"waiting: another process works in {tmp_path}\n"
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.stdin.close()
            assert second.wait(10) == 0


def test_who_waits_hears_a_signal(tmp_path):
    with disk.held(tmp_path), holder(tmp_path) as second:
        assert second.stdout.readline().startswith("waiting: ")
        second.terminate()
        assert second.wait(10) == EXIT_INTERRUPTED


def test_a_run_is_held_before_it_is_looked_at(tmp_path, monkeypatch):
    def begin(settings, workers):
        with holder(tmp_path) as second:
            assert second.stdout.readline().startswith("waiting: ")
            second.kill()
        raise RuntimeError("looked at")

    monkeypatch.setattr(run_directory, "begin", begin)
    with pytest.raises(RuntimeError, match="looked at"):
        train.main(Train(run_dir=str(tmp_path), preflight="false"))


def test_where_there_are_no_locks_a_note_says_so(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(code, "")

    monkeypatch.setattr(fcntl, "flock", flock)
    code = errno.ENOLCK
    with disk.held(tmp_path):
        assert f"note: {tmp_path}: its file system has no locks" in capsys.readouterr().out
    code = errno.EIO
    with pytest.raises(OSError, match="Errno 5"), disk.held(tmp_path):
        pass
