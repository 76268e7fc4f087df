import io
import os
import signal
import sys
import time
from dataclasses import dataclass

import pytest
import tensorflow as tf
from absl import flags

from tf_detectorgan import command, config
from tf_detectorgan.errors import InputError, Interrupted

KEPT = "; finished phases are kept: check the disk and run it again"


@dataclass(frozen=True)
class Options:
    size: int = config.option(3, "a size", low=1)


@pytest.fixture(autouse=True)
def parsed(monkeypatch):
    monkeypatch.setattr(config, "read_flags", lambda options: options())
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("boxes.json: the file is empty"), 78, "error: boxes.json: the file is empty"),
        (Interrupted("saved at step 7"), 75, "interrupted: saved at step 7"),
        (OSError(28, "No space left on device", "a/b"), 74, f"error: a/b: No space left on device{KEPT}"),
        (
            tf.errors.ResourceExhaustedError(None, None, "{{node}} a/b; No space left on device [Op:SaveV2]"),
            74,
            f"error: a/b: No space left on device{KEPT}",
        ),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    ],
)
def test_expected_error_prints_one_line_and_returns_its_exit_code(capsys, error, code, line):
    def main(options):
        assert options.size == 3
        raise error

    assert command.guard(Options, main) == code
    assert capsys.readouterr().err == line + "\n"


def test_names_that_are_not_utf_8_can_be_printed(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    monkeypatch.setattr(sys, "stdout", stream)
    assert command.guard(Options, lambda options: print("found \udcff.csv")) == 0
    stream.flush()
    assert stream.buffer.getvalue() == b"found \\udcff.csv\n"


def test_success_prints_nothing_and_unexpected_errors_are_raised(capsys):
    assert command.guard(Options, lambda options: None) == 0
    assert capsys.readouterr().err == ""
    with pytest.raises(ZeroDivisionError):
        command.guard(Options, lambda options: 1 / 0)
    with pytest.raises(FileNotFoundError):
        command.guard(Options, lambda options: open("no such file"))


@pytest.mark.parametrize("given, code", [({}, 143), ({"terminated": 75}, 75)])
def test_sigterm_runs_finally_blocks(given, code):
    cleaned = []

    def main(options):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            cleaned.append(True)

    with pytest.raises(SystemExit) as caught:
        command.guard(Options, main, **given)
    assert caught.value.code == code
    assert cleaned


@pytest.mark.parametrize("argument, expected", [("--sise=3", "sise"), ("3", "'3' is not a flag")])
def test_unknown_flag_exits_with_bad_input(capsys, monkeypatch, argument, expected):
    values = flags.FlagValues()
    flags.DEFINE_integer("size", 3, "a size", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    with pytest.raises(SystemExit) as caught:
        command._parse({}, ["prepare", argument])
    assert caught.value.code == 78
    assert expected in capsys.readouterr().err


def test_help_exits_with_0_and_prints_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--size=0", "--help"])
    monkeypatch.setattr(sys.modules["__main__"], "__doc__", "What it does.")
    with pytest.raises(SystemExit) as left:
        command.run(Options, lambda options: pytest.fail("called"))
    assert left.value.code == 0
    assert capsys.readouterr().out == "What it does.\nFlags\n  --size=3\n      a size\n"
