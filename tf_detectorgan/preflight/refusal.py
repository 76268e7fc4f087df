"""Why a run is refused by its preflight: one sentence that names the phase and what helps."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import NamedTuple

from tf_detectorgan.errors import EXIT_BAD_INPUT
from tf_detectorgan.preflight.plan import Phase
from tf_detectorgan.preflight.table import GIB, Row
from tf_detectorgan.training.settings import ARMS, Train

_NO_MEMORY = re.compile(
    r"ResourceExhausted|RESOURCE_EXHAUSTED|OUT_OF_MEMORY|out of memory|bad_alloc|MemoryError|\bOOM\b"
)


class Ended(NamedTuple):
    """How the short run ended."""

    code: int  # as `subprocess` has it: minus the signal's number
    said: str  # on standard output and standard error
    held: int  # most bytes that were seen resident
    total: int  # bytes of memory that there are
    watched: bool  # whether it was ended because little was left of them


def of_end(ended: Ended, phase: Phase, settings: Train, replicas: int, gpu: bool, log: Path) -> str:
    """Why a short run ended in `phase`. `replicas`, `gpu`: its devices; `log`: where all it said is."""
    last = _last_line(ended.said)
    if ended.code == EXIT_BAD_INPUT:
        return last
    memory = f"{ended.held / GIB:.1f} GiB of {ended.total / GIB:.1f} GiB of memory held"
    helps = "; try " + ", ".join(remedies(phase, settings, replicas, gpu))
    if ended.watched:
        return f"preflight: {phase.name} needs more memory than there is ({memory}){helps}"
    if ended.code == -signal.SIGKILL:
        return f"preflight: {phase.name} was killed, as for want of memory ({memory}){helps}"
    if _NO_MEMORY.search(ended.said):
        where = "the GPU has" if gpu else "there is"
        return f"preflight: {phase.name} needs more memory than {where}{helps}"
    return f"preflight: {phase.name} failed: {last[:500]} (all that was said: {log})"


def remedies(phase: Phase, settings: Train, replicas: int, gpu: bool) -> list[str]:
    """Flags that let a phase do with less memory."""
    s, found = settings, []
    arm = ARMS.get(phase.folder.split("/")[1])
    if phase.kind in ("gan", "joint") and s.gan_batch > replicas * s.workers:
        found.append(f"a lower --gan_batch than {s.gan_batch}")
    if phase.kind == "detector" and s.detector_batch > replicas * s.workers:
        found.append(f"a lower --detector_batch than {s.detector_batch}")
    eqn_3 = phase.kind == "joint" and arm is not None and bool(arm.real_sign)
    if eqn_3 and s.unroll in ("exact", "k_steps") and not s.unroll_recompute:
        found.append("--unroll_recompute")
    rounds = s.detector != "retinanet_kerashub" and s.unroll != "finite_difference"  # `Train` refuses those
    if gpu and s.precision == "float32" and rounds:
        found.append("--precision=mixed_bfloat16")
    return found or ["smaller images, smaller networks (--generator_filters, --detector), or more memory"]


def of_processes(found: list[Row], processes: int, total: int) -> str | None:
    """Why several runs at a time do not fit into `total` bytes of memory; None: they do."""
    most = max(found, key=lambda row: row.resident)
    if processes == 1 or processes * most.resident * 2**20 <= total:
        return None
    return (
        f"preflight: {processes} runs at a time need {processes * most.resident / 1024:.1f} GiB of memory in "
        f"{most.phase.name}, but there are {total / GIB:.1f} GiB; give a lower --workers"
    )


def of_disk(found: list[Row], others: int, runs: int, free: int, run_dir: str) -> str | None:
    """Why `runs` runs do not fit into `free` bytes of disk; None: they do."""
    needed = runs * (others + sum(row.disk for row in found))
    if needed <= free:
        return None
    most = max(found, key=lambda row: row.disk)
    fewer = ", lower --synthetic_count" if most.phase.kind == "images" else ""
    return (
        f"preflight: about {needed / GIB:.1f} GiB of disk are needed, most of it by {most.phase.name}, but "
        f"{free / GIB:.1f} GiB are free at {run_dir}; make room, choose another --run_dir{fewer}"
    )


def _last_line(said: str) -> str:
    """The last line that an error begins, of ours or at the end of a traceback; else the last line."""
    lines = [line.strip() for line in said.replace("\r", "\n").split("\n") if line.strip()]
    errors = [line for line in lines if re.match(r"error: |[\w.]*(Error|Exception)\b", line)]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")
