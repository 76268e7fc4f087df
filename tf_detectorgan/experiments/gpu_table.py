"""The table of `gpu_check`, and what in it did not hold, from the records of its processes."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

# Names of processes.
FIRST, AGAIN = "deterministic", "deterministic, again"
FREE, BFLOAT16, GRADCHECK = "not deterministic", "bfloat16", "gradcheck"
PHASES = ("pretrain_gan", "pretrain_detector", "joint", "synthesize", "detect")

Records = Mapping[str, Mapping[str, Any]]


def first_line(gpus: int) -> str:
    """What is checked on a machine with so many GPUs."""
    if gpus:
        return f"gpu_check: {gpus} GPU{'s' if gpus > 1 else ''} found; the first one is checked"
    return (
        "gpu_check: no GPU was found. Checked on the CPU: that a seed repeats its bits, Eqn 3, and by "
        "TensorFlow's registrations what a GPU would refuse or lack. Not checked: GPU kernels, time and "
        "memory"
    )


def last_line(broken: list[str], out: str) -> str:
    """The verdict, and where the table is."""
    where = f"table: {out}" if out else "table: above; write it with --out=FILE"
    if broken:
        return f"gpu_check: did NOT hold: {'; '.join(broken)}. {where}"
    return f"gpu_check: all that was checked held. {where}"


def failed(code: int, output: str) -> str:
    """Why a process ended with exit code `code`, in one line: the last line of its standard error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    said = lines[-1] if lines else "it said nothing"
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (a lack of memory does that): {said}"
    return f"exit code {code}: {said}"


def failures(records: Records) -> list[str]:
    """What did not hold, one line each; records as `gpu_check.run_all` returns them."""
    broken = [f"{name}: {record['error']}" for name, record in records.items() if "error" in record]
    first, again = (records[name].get("phases") for name in (FIRST, AGAIN))
    for phase in PHASES:
        if first and again and first[phase]["result"] != again[phase]["result"]:
            broken.append(f"{phase} gave other bits when it ran again with the same seed")
        if first and first[phase]["faults"]:
            broken.append(f"{phase} has {first[phase]['faults']} ops that a deterministic GPU would not run")
    check = records[GRADCHECK]
    if not check.get("exact", True):
        broken.append(f"gradcheck: {check['said']}")
    return broken


def table(gpus: int, described: str, records: Records) -> str:
    """Markdown: the machine, a row for each phase, Eqn 3, and what went wrong."""
    machine = next((dict(r["machine"]) for r in records.values() if "machine" in r), {})
    devices = machine.pop("GPUs", [])
    lines = [first_line(gpus), "", f"`gpu_check {described}`", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in machine.items()]
    lines += [
        f"| GPU {i} | {', '.join(f'{key} {value}' for key, value in one.items())} |"
        for i, one in enumerate(devices)
    ]
    lines += [
        f"| Eqn 3, float64 | {_eqn_3(records[GRADCHECK])} |",
        "",
        "| phase | same bits twice | ops a deterministic GPU would not run | copies to the host a step "
        f"| s a step or batch, {FIRST} | {FREE} | {BFLOAT16} |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_row(phase, records) for phase in PHASES]
    peaks = [_memory(records[name]) for name in (FIRST, FREE, BFLOAT16)]
    lines += [f"| peak memory, MiB | | | | {' | '.join(peaks)} |", ""]
    lines += [f"- {fault}" for fault in _first_faults(records)]
    lines += [
        f"- {name}: {record[kind]}"
        for name, record in records.items()
        for kind in ("error", "refused")
        if kind in record
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(phase: str, records: Records) -> str:
    first, again, *others = (
        records[name].get("phases", {}).get(phase) for name in (FIRST, AGAIN, FREE, BFLOAT16)
    )
    same = "not known"
    if first and again:
        same = "yes" if first["result"] == again["result"] else "NO"
    counts = [str(first[key]) if first else "none" for key in ("faults", "transfers")]
    seconds = [f"{one['seconds']:.3g}" if one else "none" for one in (first, *others)]
    return f"| {' | '.join([phase, same, *counts, *seconds])} |"


def _memory(record: Mapping[str, Any]) -> str:
    """Of the GPU's memory where there is one, else of the process."""
    held = record.get("memory")
    if held is None:
        return "none"
    return str(held.get("gpu_peak_memory_mib", held["peak_memory_mib"]))


def _eqn_3(record: Mapping[str, Any]) -> str:
    if "error" in record:
        return "failed"
    return f"{'exact' if record['exact'] else 'NOT exact'}, relative error {record['relative error']}"


def _first_faults(records: Records) -> list[str]:
    phases = records[FIRST].get("phases", {})
    return [f"{name}: {fault}" for name, phase in phases.items() for fault in phase["first_faults"]]
