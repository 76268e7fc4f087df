"""Computes a table of the whole run from a short run, or an error message with remedies."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan import checkpoints, progress
from tf_detectorgan.errors import (
    EXIT_BAD_INPUT,
    EXIT_CANNOT_WRITE,
    EXIT_INTERRUPTED,
    InputError,
    Interrupted,
)
from tf_detectorgan.experiments.evaluation_table import aligned
from tf_detectorgan.preflight.plan import PhasePlan
from tf_detectorgan.run_layout import ANNOTATIONS, AUDIT, IMAGES, SYNTHETIC
from tf_detectorgan.training.settings import ARMS, Train

GIB = 2**30
KEPT = 2  # checkpoints of a phase
GROWING = (IMAGES, SYNTHETIC, ANNOTATIONS, AUDIT)  # in proportion to the synthetic images
_NO_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory|bad_alloc|MemoryError|\bOOM\b"
)
# Lines without a message: graph locations and log lines of TensorFlow, and the output of faulthandler.
_NOISE = re.compile(
    r"\[\[|\[Op:|File \"|Detected at|Stack|\d{4}-\d\d-\d\d \d\d:\d\d|[IWE]\d{4} |Fatal Python error"
    r"|Current thread|Thread 0x|Extension modules"
)


class PhaseCost(NamedTuple):
    """The estimated cost of a phase of the whole run."""

    phase: PhasePlan
    seconds: float | None  # per step or image; None if the short run had only one
    hours: float
    memory: int  # peak in MiB, of the GPU with the highest peak, or of the process without GPUs
    resident: int  # peak of the process in MiB
    disk: int  # bytes


def rows(
    home: Path, phases: Sequence[tuple[PhasePlan, PhasePlan]], settings: Train, validation_images: int
) -> list[PhaseCost]:
    """Returns the costs of the phases that are finished in `home`.

    The time of a phase is that of the short run, plus the time per step or image after tracing for the other
    steps or images. A validation detects `validation_images`. The time for checkpoints and for communication
    between workers is not included.

    Args:
      home: the directory of the short run.
      phases: pairs of a phase of the whole run and the same phase of the short run.
      settings, validation_images: those of the whole run.
    """
    found, image_seconds = [], _image_seconds(home, phases)
    for whole, short in phases:
        record = checkpoints.finished(home / whole.folder)
        if record is None:
            continue
        each = record.get("step_seconds", record.get("image_seconds"))
        seconds = record["seconds"] + (whole.amount - short.amount) * (each or 0.0)
        if whole.kind in ("joint", "detector"):
            validations = math.ceil(whole.amount / settings.validate_every)
            seconds += validations * validation_images * image_seconds
        resident = record["peak_memory_mib"]
        memory = record.get("gpu_peak_memory_mib", resident)
        disk = _disk(home, whole, short, settings)
        found.append(PhaseCost(whole, each, seconds / 3600, memory, resident, disk))
    return found


def _image_seconds(home: Path, phases: Sequence[tuple[PhasePlan, PhasePlan]]) -> float:
    """Returns the seconds of detection per image; 0 if nothing was evaluated."""
    records = (checkpoints.finished(home / whole.folder) for whole, _ in phases if whole.kind == "evaluation")
    return next((record["image_seconds"] for record in records if record), 0.0)


def _disk(home: Path, whole: PhasePlan, short: PhasePlan, settings: Train) -> int:
    folder, times = home / whole.folder, whole.amount / max(short.amount, 1)
    if whole.kind == "evaluation":
        return round(size(folder) * times)
    if whole.kind == "images":
        growing = sum(size(folder / name) for name in GROWING)
        return round(size(folder) + growing * (times - 1))
    return size(folder) * min(KEPT, max(1, math.ceil(whole.amount / settings.checkpoint_every)))


def size(path: Path) -> int:
    """Returns the bytes of a file, or of all files in a folder; 0 if there is none."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def text(found: Sequence[PhaseCost], others: int) -> str:
    """Returns the table as plain text. `others`: bytes of files that do not belong to a phase."""
    lines = [["phase", "seconds each", "steps or images", "hours", "peak memory", "disk"]]
    for row in found:
        seconds = "–" if row.seconds is None else f"{row.seconds:.3g}"
        numbers = f"{row.hours:.2f}", f"{row.memory / 1024:.2f} GiB", f"{row.disk / GIB:.2f} GiB"
        lines.append([row.phase.name, seconds, f"{row.phase.amount}", *numbers])
    lines.append(["other files", "", "", "", "", f"{others / GIB:.2f} GiB"])
    hours, memory = sum(row.hours for row in found), max((row.memory for row in found), default=0)
    disk = others + sum(row.disk for row in found)
    lines.append(["total", "", "", f"{hours:.2f}", f"{memory / 1024:.2f} GiB", f"{disk / GIB:.2f} GiB"])
    return aligned(lines)


def require_memory(found: list[PhaseCost], processes: int, total: int) -> None:
    """Raises InputError if `processes` concurrent runs need more than `total` bytes of memory."""
    most = max(found, key=lambda row: row.resident)
    if processes > 1 and processes * most.resident * 2**20 > total:
        raise InputError(
            f"preflight: {processes} concurrent runs need {processes * most.resident / 1024:.1f} GiB of "
            f"memory in {most.phase.name}, but there are {total / GIB:.1f} GiB; give lower --processes"
        )


def require_disk(found: list[PhaseCost], others: int, runs: int, free: int, run_dir: str) -> None:
    """Raises InputError if `runs` runs need more than `free` bytes of disk."""
    needed, most = runs * (others + sum(row.disk for row in found)), max(found, key=lambda row: row.disk)
    fewer = ", lower --synthetic_count" if most.phase.kind == "images" else ""
    if needed > free:
        raise InputError(
            f"preflight: about {needed / GIB:.1f} GiB of disk are needed, most of it by {most.phase.name}, "
            f"but {free / GIB:.1f} GiB are free at {run_dir}; free space, choose another --run_dir{fewer}"
        )


class Ended(NamedTuple):
    """The end of the short run."""

    code: int  # return code of `subprocess`: minus the number of a signal
    output: str  # standard output and standard error
    peak_resident: int  # bytes
    total: int  # bytes of memory of the machine or control group


def of_end(ended: Ended, phase: PhasePlan, settings: Train, replicas: int, gpu: bool, log: Path) -> Exception:
    """Returns the error for a short run that ended in `phase`; its type sets the exit code (`command.run`).

    InputError (78) if a second attempt would fail as well: bad flags or data, or too little memory. OSError
    (74): it could not write. Interrupted (75): a signal was received. RuntimeError (1): any other failure.

    Args:
      ended: the end of the short run.
      phase: the first unfinished phase.
      settings: those of the run.
      replicas, gpu: number of devices of the short run, and whether they are GPUs.
      log: the file with its output.
    """
    if ended.code == EXIT_INTERRUPTED:
        return Interrupted("the process of the preflight was ended by a signal; run the same command again")
    if ended.code == EXIT_BAD_INPUT:
        return InputError(_error_line(ended.output))
    if ended.code == EXIT_CANNOT_WRITE:
        return _disk_error(_error_line(ended.output))
    lines = _message_lines(ended.output)
    advice = "; try " + ", ".join(remedies(phase, settings, replicas, gpu))
    if ended.code == -signal.SIGKILL:  # by the kernel or by `check.watch`
        held = f"{ended.peak_resident / GIB:.1f} GiB of {ended.total / GIB:.1f} GiB of memory in use"
        why = "was killed, probably because memory ran out"
        return InputError(f"preflight: {phase.name} {why} ({held}){advice}")
    if _NO_MEMORY.search("\n".join(lines)):
        where = "the GPU has" if gpu else "there is"
        return InputError(f"preflight: {phase.name} needs more memory than {where}{advice}")
    by = f"ended by {signal.Signals(-ended.code).name}: " if ended.code < 0 else ""
    return RuntimeError(f"preflight: {phase.name} failed: {by}{lines[-1][:500]} (full log: {log})")


def remedies(phase: PhasePlan, settings: Train, replicas: int, gpu: bool) -> list[str]:
    """Returns changes of flags that reduce the memory of a phase."""
    s, found = settings, []
    arm = ARMS.get(phase.folder.parent.name)
    if phase.kind in ("gan", "joint") and s.gan_batch > replicas * s.workers:
        found.append(f"a lower --gan_batch than {s.gan_batch}")
    if phase.kind == "detector" and s.detector_batch > replicas * s.workers:
        found.append(f"a lower --detector_batch than {s.detector_batch}")
    eqn_3 = phase.kind == "joint" and arm is not None and bool(arm.real_sign)
    if eqn_3 and s.unroll_steps and not s.unroll_recompute:
        found.append("--unroll_recompute")
    if gpu and s.precision == "float32" and s.detector != "retinanet_kerashub":  # an error in `Train`
        found.append("--precision=mixed_bfloat16")
    return found or ["smaller images, smaller networks (--generator_filters, --detector), or more memory"]


def _error_line(output: str) -> str:
    """Returns the last line that starts with "error: ", without this prefix, or the last line."""
    lines = progress.lines(output)
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")


def _disk_error(line: str) -> OSError:
    """Returns the error for which `command` has printed `line`: "FILE: REASON; finished phases ..."."""
    file, _, reason = line.partition(";")[0].rpartition(": ")
    number = next((code for code in errno.errorcode if os.strerror(code) == reason), errno.ENOSPC)
    return OSError(number, os.strerror(number), file or None)


def _message_lines(output: str) -> list[str]:
    """Returns the lines of the last traceback, or of the whole output if there is none, without noise.

    Output before a traceback is not the cause: for example, TensorFlow's allocator logs a lack of memory even
    if it can continue.
    """
    lines = progress.lines(output.rpartition("Traceback")[2])
    return [line for line in lines if not _NOISE.match(line)] or ["no output"]
