"""Runs a command: reads its flags, and turns errors into one line on stderr and an exit code."""

from __future__ import annotations

import functools
import io
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from absl import app, flags, logging

from tf_detectorgan import config, disk
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_CANNOT_WRITE, EXIT_INTERRUPTED, InputError, Interrupted

T = TypeVar("T")
HELP = {"--help", "-help", "-h", "--helpfull", "--helpshort"}


def run(options: type[T], main: Callable[[T], None], terminated: int = 128 + signal.SIGTERM) -> None:
    """Defines the flags of `options`, reads them (also from --flagfile), calls `main` and exits.

    A flag on the command line overrides the same flag in a flagfile, in either order.
    Exit codes: 0; 74 full or read-only disk; 75 interrupted, with everything saved; 78 bad input;
    130 Ctrl-C; `terminated` after SIGTERM, unless the command has a handler of its own.
    """
    if HELP & set(sys.argv[1:]):
        print(f"{sys.modules['__main__'].__doc__}\n{config.help_text(options)}")
        sys.exit(0)
    config.define_flags(options)
    parse = functools.partial(_parse, config.renamed(options))
    app.run(lambda _: sys.exit(guard(options, main, terminated)), flags_parser=parse)


def guard(options: type[T], main: Callable[[T], None], terminated: int = 128 + signal.SIGTERM) -> int:
    """Calls `main` with the parsed flags and turns its errors into one line on stderr and an exit code."""
    # Runs every `finally`, so that no partial file remains.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(terminated))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # file names may not be UTF-8
    try:
        main(config.read_flags(options))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except Interrupted as error:
        print(f"interrupted: {error}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if (reason := disk.fault(error)) is None:
            raise
        print(f"error: {reason}; finished phases are kept: check the disk and run it again", file=sys.stderr)
        return EXIT_CANNOT_WRITE
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 128 + signal.SIGINT
    return 0


def check_target(out: Path, marker: str, what: str, overwrite: bool) -> None:
    """Raises InputError unless --out is free, or contains `what` (has the file `marker`) to overwrite."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / marker).is_file():
        raise InputError(f"--out={out}: exists and contains no {what}; choose another directory")
    if not overwrite:
        raise InputError(f"--out={out}: exists; use --overwrite to replace it")


def _parse(new_names: Mapping[str, config.NewName], argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS([argv[0], *config.files_first(argv[1:], new_names)])
    except (flags.Error, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    if len(rest) > 1:
        print(f"error: {rest[1]!r} is not a flag; write --name=value", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    if flags.FLAGS["verbosity"].using_default_value:
        # absl's default, INFO, prints many messages of libraries
        flags.FLAGS["verbosity"].value = logging.WARNING
        flags.FLAGS["verbosity"].using_default_value = False
    return rest
