"""Checks in about five minutes how this machine's GPU trains: python -m tf_detectorgan.gpu_check.

Every phase of `detectorgan` runs for a few steps on drawn images: twice with one seed, whose results must
be the same bits; without determinism and in bfloat16, for their time. Eqn 3 is checked in float64, as
tf_detectorgan.gradcheck does. Prints a table in Markdown for the report of a fault. Exit codes: 0 all that
was checked held; 1 not; 78 bad input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import tensorflow as tf

from tf_detectorgan import command, config, disk, progress
from tf_detectorgan.config import option
from tf_detectorgan.errors import InputError
from tf_detectorgan.preflight import trial
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training.settings import Train

# Runs by name, and how they differ: each is a process, as determinism and peaks of memory are a process's.
FIRST, AGAIN, FREE, BFLOAT16 = "deterministic", "deterministic, again", "not deterministic", "bfloat16"
RUNS = {FIRST: [], AGAIN: [], FREE: ["--deterministic=false"], BFLOAT16: ["--precision=mixed_bfloat16"]}
GRADCHECK = "gradcheck"
# Small enough that most of the time goes into tracing.
SMALL = (
    "--arm=detectorgan --phantom_train_images=8 --generator_filters=4 --generator_blocks=1 "
    "--discriminator_filters=4 --crop_size=16 --gan_batch=2 --detector_batch=2 --synthetic_count=64 "
    "--crossfit_folds=0 --distribution=one --log_every=1 --preflight=false"
).split()

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class GpuCheck:
    """Options of `python -m tf_detectorgan.gpu_check`."""

    detector: str = option("retinanet_small", "DET, as --detector of tf_detectorgan.train.")
    size: int = option(64, "Side of the drawn images.", low=32, high=1024)
    steps: int = option(8, "Steps of each training phase; the first is not timed.", low=2)
    out: str = option("", "File for the table (Markdown); empty: it is only printed.")


def main(options: GpuCheck) -> None:
    """Runs all processes, prints and writes the table; exit code 1 if a check did not hold."""
    out = Path(options.out).expanduser()
    if options.out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out={out}: not a file in a directory that exists; name one")
    words = train_flags(options)
    config.parse(Train, words)  # what is wrong with the flags is said before anything runs
    gpus = len(tf.config.list_physical_devices("GPU"))  # counts them; the children's processes use them
    print(first_line(gpus), flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as folder:
        records = run_all(words, Path(folder))
    described = f"--detector={options.detector} --size={options.size} --steps={options.steps}"
    text = table(gpus, described, records)
    print(text)
    if options.out:
        with disk.whole_file(out) as partial:
            partial.write_text(text, encoding="utf-8")
    where = f"table: {out}" if options.out else "table: above; write it with --out=FILE"
    if broken := failures(records):
        print(f"gpu_check: did NOT hold: {'; '.join(broken)}. {where}")
        sys.exit(1)
    print(f"gpu_check: all that was checked held. {where}")


def train_flags(options: GpuCheck) -> list[str]:
    """The flags of `train` that all processes get."""
    phases = ("pretrain_gan_steps", "joint_steps", "pretrain_detector_steps", "final_detector_steps")
    steps = [f"--{name}={options.steps}" for name in phases]
    return [*SMALL, *steps, f"--detector={options.detector}", f"--phantom_size={options.size}"]


def run_all(words: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """The record of each of RUNS and of gradcheck, by name; `words` are flags of `train`."""
    found: dict[str, dict[str, Any]] = {}
    data = f"--data_dir={folder / 'data'}"  # the first run draws it
    with progress.bar(total=len(RUNS) + 1, desc="gpu_check", unit="process", dynamic_ncols=True) as bar:
        for number, (name, more) in enumerate(RUNS.items()):
            found[name] = run_trial([*words, *more, data], folder / str(number))
            bar.update()
        found[GRADCHECK] = run_gradcheck([*words, data], folder / GRADCHECK)
        bar.update()
    return found


def run_trial(words: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """The record that `trial` writes, or why not: {"error"}, or {"refused"} by the settings."""
    try:
        config.parse(Train, words)
    except InputError as error:
        return {"refused": str(error)}
    done = _run(trial.__name__, *words, f"--run_dir={run_dir}")
    if done.returncode:
        return {"error": _failed(done.returncode, done.stderr)}
    return json.loads(RunLayout(run_dir).trial.read_text(encoding="utf-8"))


def run_gradcheck(words: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """{"exact": bool, "relative error", "said"} of tf_detectorgan.gradcheck, or {"error": why it failed}."""
    done = _run("tf_detectorgan.gradcheck", *words, f"--run_dir={run_dir}")
    lines = done.stdout.splitlines()
    errors = [line.split()[1] for line in lines if line.startswith("1 ")]  # of one unrolled step
    if done.returncode not in (0, 1) or not errors:
        said = done.stderr if done.returncode > 1 or not lines else done.stdout
        return {"error": _failed(done.returncode, said)}
    return {"exact": done.returncode == 0, "relative error": errors[0], "said": lines[-1]}


def _run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A module in a process of its own, which an exception here ends."""
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _failed(code: int, output: str) -> str:
    """Why a process ended with exit code `code`, in one line."""
    lines = progress.lines(output)
    lack = " (a lack of memory does that)" if code < 0 else ""
    return f"exit code {code}{lack}: {lines[-1] if lines else 'it said nothing'}"


def first_line(gpus: int) -> str:
    """What is checked on a machine with so many GPUs."""
    if gpus:
        return f"gpu_check: {gpus} GPU{'s' if gpus > 1 else ''} found; the first one is checked"
    return (
        "gpu_check: no GPU was found. Checked on the CPU: that a seed repeats its bits, Eqn 3, and by "
        "TensorFlow's registrations what a GPU would refuse or lack. Not checked: GPU kernels, time and "
        "memory"
    )


def failures(records: Records) -> list[str]:
    """What did not hold, one line each; records as `run_all` returns them."""
    broken = [f"{name}: {record['error']}" for name, record in records.items() if "error" in record]
    again = records[AGAIN].get("phases", {})
    for phase, one in records[FIRST].get("phases", {}).items():
        if phase in again and one["result"] != again[phase]["result"]:
            broken.append(f"{phase} gave other bits when it ran again with the same seed")
        if one["faults"]:
            broken.append(f"{phase} has {one['faults']} ops that a deterministic GPU would not run")
    if not records[GRADCHECK].get("exact", True):
        broken.append(f"gradcheck: {records[GRADCHECK]['said']}")
    return broken


def table(gpus: int, described: str, records: Records) -> str:
    """Markdown: the machine, a row for each phase, Eqn 3, and what went wrong."""
    machine = next((dict(r["machine"]) for r in records.values() if "machine" in r), {})
    machine |= {f"GPU {i}": name for i, name in enumerate(machine.pop("GPUs", []))}
    check = records[GRADCHECK]
    eqn_3 = "failed"
    if "error" not in check:
        eqn_3 = f"{'exact' if check['exact'] else 'NOT exact'}, relative error {check['relative error']}"
    lines = [first_line(gpus), "", f"`gpu_check {described}`", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in (machine | {"Eqn 3, float64": eqn_3}).items()]
    lines += [
        "",
        "| phase | same bits twice | ops a deterministic GPU would not run | copies to the host a step "
        f"| s a step or image, {FIRST} | {FREE} | {BFLOAT16} | MiB at most | {FREE} | {BFLOAT16} |",
        "|---" * 10 + "|",
    ]
    phases = {name: records[name].get("phases", {}) for name in RUNS}
    for phase, first in phases[FIRST].items():
        again = phases[AGAIN].get(phase)
        same = "not known" if again is None else "yes" if first["result"] == again["result"] else "NO"
        others = [phases[name].get(phase) for name in (FIRST, FREE, BFLOAT16)]
        row = [phase, same, str(first["faults"]), str(first["transfers"])]
        row += [f"{one['seconds']:.3g}" if one else "none" for one in others]
        row += [str(one["memory"]) if one else "none" for one in others]
        lines.append(f"| {' | '.join(row)} |")
    lines.append("")
    lines += [f"- {name}: {fault}" for name, p in phases[FIRST].items() for fault in p["first_faults"]]
    lines += [
        f"- {name}: {record[kind]}"
        for name, record in records.items()
        for kind in ("error", "refused")
        if kind in record
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    command.run(GpuCheck, main)
