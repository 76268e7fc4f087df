"""Turns the end of a short run into the error to raise: one sentence with the phase and what helps."""

from __future__ import annotations

import errno
import os
import re
import signal
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.errors import (
    EXIT_BAD_INPUT,
    EXIT_CANNOT_WRITE,
    EXIT_INTERRUPTED,
    InputError,
    Interrupted,
)
from tf_detectorgan.preflight.plan import Phase
from tf_detectorgan.preflight.table import GIB
from tf_detectorgan.training.settings import ARMS, Train

_NO_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory|bad_alloc|MemoryError|\bOOM\b"
)
# Lines without a message: TensorFlow's places in the graph, its log, and what faulthandler prints.
_NOISE = re.compile(
    r"\[\[|\[Op:|File \"|Detected at|Stack|\d{4}-\d\d-\d\d \d\d:\d\d|[IWE]\d{4} |Fatal Python error"
    r"|Current thread|Thread 0x|Extension modules"
)


class Ended(NamedTuple):
    """How the short run ended."""

    code: int  # as `subprocess` has it: minus the signal's number
    output: str  # standard output and standard error
    peak_resident: int  # bytes
    total: int  # bytes of memory that there are


def of_end(ended: Ended, phase: Phase, settings: Train, replicas: int, gpu: bool, log: Path) -> Exception:
    """Returns the error for a short run that ended in `phase`; its type decides the exit code (`door.run`).

    InputError (78) where a second attempt would fail as well: flags and data that the short run refused, and
    memory. OSError (74): it could not write. Interrupted (75): a signal came. RuntimeError (1): all else.

    Args:
      ended: how.
      phase: the first that is not finished.
      settings: of the run.
      replicas, gpu: devices of the short run.
      log: the file with all of its output.
    """
    if ended.code == EXIT_INTERRUPTED:
        return Interrupted("the preflight's process was ended by a signal: begins again with the next call")
    if ended.code == EXIT_BAD_INPUT:
        return InputError(_error_line(ended.output))
    if ended.code == EXIT_CANNOT_WRITE:
        return _disk_error(_error_line(ended.output))
    lines = _message_lines(ended.output)
    helps = "; try " + ", ".join(remedies(phase, settings, replicas, gpu))
    if ended.code == -signal.SIGKILL:  # by the kernel or by `check.watch`
        held = f"{ended.peak_resident / GIB:.1f} GiB of {ended.total / GIB:.1f} GiB of memory held"
        why = "was killed, probably because memory ran out"
        return InputError(f"preflight: {phase.name} {why} ({held}){helps}")
    if _NO_MEMORY.search("\n".join(lines)):
        where = "the GPU has" if gpu else "there is"
        return InputError(f"preflight: {phase.name} needs more memory than {where}{helps}")
    by = f"ended by {signal.Signals(-ended.code).name}: " if ended.code < 0 else ""
    return RuntimeError(f"preflight: {phase.name} failed: {by}{lines[-1][:500]} (full log: {log})")


def remedies(phase: Phase, settings: Train, replicas: int, gpu: bool) -> list[str]:
    """Returns the flags with which a phase needs less memory."""
    s, found = settings, []
    arm = ARMS.get(phase.folder.parent.name)
    if phase.kind in ("gan", "joint") and s.gan_batch > replicas * s.workers:
        found.append(f"a lower --gan_batch than {s.gan_batch}")
    if phase.kind == "detector" and s.detector_batch > replicas * s.workers:
        found.append(f"a lower --detector_batch than {s.detector_batch}")
    eqn_3 = phase.kind == "joint" and arm is not None and bool(arm.real_sign)
    if eqn_3 and s.unroll_steps and not s.unroll_recompute:
        found.append("--unroll_recompute")
    if gpu and s.precision == "float32" and s.detector != "retinanet_kerashub":  # `Train` refuses that
        found.append("--precision=mixed_bfloat16")
    return found or ["smaller images, smaller networks (--generator_filters, --detector), or more memory"]


def _error_line(output: str) -> str:
    """Returns the last line that `door` has printed for an error, without "error: "; else the last line."""
    lines = _lines(output)
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def _disk_error(line: str) -> OSError:
    """Returns the error for which `door` has printed `line`: "FILE: REASON; what was finished ..."."""
    file, _, reason = line.partition(";")[0].rpartition(": ")
    number = next((code for code in errno.errorcode if os.strerror(code) == reason), errno.ENOSPC)
    return OSError(number, os.strerror(number), file or None)


def _message_lines(output: str) -> list[str]:
    """Returns the lines of the last traceback, or of all output if there is none, without noise.

    Output before a traceback does not say why the process ended: TensorFlow's allocator, for one, reports a
    lack of memory that it has found a way around.
    """
    lines = _lines(output.rpartition("Traceback")[2])
    return [line for line in lines if not _NOISE.match(line)] or ["no output"]


def _lines(output: str) -> list[str]:
    """Returns the lines without the space around them; each state of a progress bar is one."""
    return [line.strip() for line in output.replace("\r", "\n").split("\n") if line.strip()]
