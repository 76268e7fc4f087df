"""Tests that one process at a time uses a directory, and that others wait."""

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
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))  # as command.guard does
with disk.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(directory):
    command = [sys.executable, "-c", HOLD, directory]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_second_process_waits_until_the_first_is_killed(tmp_path):
    with holder(tmp_path) as first:
        assert first.stdout.readline() == "held\n"
        with holder(tmp_path) as second:
            assert second.stdout.readline() == f"waiting: another process is using {tmp_path}\n"
            first.kill()
            assert second.stdout.readline() == "held\n"
            second.stdin.close()
            assert second.wait(10) == 0


def test_waiting_process_ends_on_sigterm(tmp_path):
    with disk.held(tmp_path), holder(tmp_path) as second:
        assert second.stdout.readline().startswith("waiting: ")
        second.terminate()
        assert second.wait(10) == EXIT_INTERRUPTED


def test_train_locks_the_run_directory_before_reading_it(tmp_path, monkeypatch):
    def begin(settings, workers):
        with holder(tmp_path) as second:
            assert second.stdout.readline().startswith("waiting: ")
            second.kill()
        raise RuntimeError("begun")

    monkeypatch.setattr(run_directory, "begin", begin)
    with pytest.raises(RuntimeError, match="begun"):
        train.main(Train(run_dir=str(tmp_path), preflight="false"))


def test_file_system_without_locks_prints_a_note(tmp_path, monkeypatch, capsys):
    def flock(file, how):
        raise OSError(code, "")

    monkeypatch.setattr(fcntl, "flock", flock)
    code = errno.ENOLCK
    with disk.held(tmp_path):
        assert f"note: {tmp_path}: its file system has no locks" in capsys.readouterr().out
    code = errno.EIO
    with pytest.raises(OSError, match="Errno 5"), disk.held(tmp_path):
        pass
