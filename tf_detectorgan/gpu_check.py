"""Checks in about five minutes how this machine's GPU trains: python -m tf_detectorgan.gpu_check.

Runs every phase of `detectorgan` for a few steps on drawn images: twice with one seed, where results must be
bit-identical; and without determinism and in bfloat16, to measure time. Checks Eqn 3 in float64, as
tf_detectorgan.gradcheck does. Prints a table in Markdown that can be pasted into a bug report. Exit codes:
0 all checks passed; 1 a check failed; 78 bad input.
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

# Name of each run, and its flags. Each is a process, as determinism and peak memory belong to a process.
FIRST, AGAIN, FREE, BFLOAT16 = "deterministic", "deterministic, again", "not deterministic", "bfloat16"
RUNS = {FIRST: [], AGAIN: [], FREE: ["--deterministic=false"], BFLOAT16: ["--precision=mixed_bfloat16"]}
GRADCHECK = "gradcheck"
# So small that most of the time is spent on tracing.
SMALL = (
    "--arm=detectorgan --phantom_train_images=8 --generator_filters=4 --generator_blocks=1 "
    "--discriminator_filters=4 --crop_size=16 --gan_batch=2 --detector_batch=2 --synthetic_count=64 "
    "--crossfit_folds=0 --distribution=one --log_every=1 --preflight=false"
).split()

Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class GpuCheck:
    """Options of `python -m tf_detectorgan.gpu_check`."""

    detector: str = option("retinanet_small", "Detector, as --detector of tf_detectorgan.train.")
    size: int = option(64, "Width and height of the drawn images, in pixels.", low=32, high=1024)
    steps: int = option(8, "Steps of each training phase; the first is not timed.", low=2)
    out: str = option("", "File for the table (Markdown); empty: the table is only printed.")


def main(options: GpuCheck) -> None:
    """Runs all processes, prints and writes the table; exits with 1 if a check failed."""
    out = Path(options.out).expanduser()
    if options.out and (out.is_dir() or not out.parent.is_dir()):
        raise InputError(f"--out={out}: give a file in an existing directory")
    words = train_flags(options)
    config.parse(Train, words)  # reports wrong flags before a process starts
    gpus = len(tf.config.list_physical_devices("GPU"))  # does not use them; the child processes do
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
    if failed := failures(records):
        print(f"gpu_check: FAILED: {'; '.join(failed)}. {where}")
        sys.exit(1)
    print(f"gpu_check: all checks passed. {where}")


def train_flags(options: GpuCheck) -> list[str]:
    """Returns the flags of `train` for all processes."""
    phases = ("pretrain_gan_steps", "joint_steps", "pretrain_detector_steps", "final_detector_steps")
    steps = [f"--{name}={options.steps}" for name in phases]
    return [*SMALL, *steps, f"--detector={options.detector}", f"--phantom_size={options.size}"]


def run_all(words: Sequence[str], folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the record of each of RUNS and of gradcheck, by name; `words` are flags of `train`."""
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
    """Returns the record of `trial`, {"error": reason}, or {"refused": reason} for invalid settings."""
    try:
        config.parse(Train, words)
    except InputError as error:
        return {"refused": str(error)}
    done = _run(trial.__name__, *words, f"--run_dir={run_dir}")
    if done.returncode:
        return {"error": _failed(done.returncode, done.stderr)}
    return json.loads(RunLayout(run_dir).trial.read_text(encoding="utf-8"))


def run_gradcheck(words: Sequence[str], run_dir: Path) -> dict[str, Any]:
    """Returns {"exact": bool, "relative error", "said": its last line} of gradcheck, or {"error": reason}."""
    done = _run("tf_detectorgan.gradcheck", *words, f"--run_dir={run_dir}")
    lines = done.stdout.splitlines()
    errors = [line.split()[1] for line in lines if line.startswith("1 ")]  # of one unrolled step
    if done.returncode not in (0, 1) or not errors:
        output = done.stderr if done.returncode > 1 or not lines else done.stdout
        return {"error": _failed(done.returncode, output)}
    return {"exact": done.returncode == 0, "relative error": errors[0], "said": lines[-1]}


def _run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a module in a process of its own, which ends if an exception is raised here."""
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _failed(code: int, output: str) -> str:
    """Returns the reason for which a process ended with exit code `code`, in one line."""
    lines = progress.lines(output)
    lack = " (a signal; possibly out of memory)" if code < 0 else ""
    return f"exit code {code}{lack}: {lines[-1] if lines else 'no output'}"


def first_line(gpus: int) -> str:
    """Returns a sentence that says what is checked on a machine with `gpus` GPUs."""
    if gpus:
        return f"gpu_check: {gpus} GPU{'s' if gpus > 1 else ''} found; the first one is checked"
    return (
        "gpu_check: no GPU found. Checked on the CPU: bit-identical results with one seed, Eqn 3, and by "
        "TensorFlow's kernel registry the ops that a GPU would not run. Not checked: GPU kernels, time and "
        "memory"
    )


def failures(records: Records) -> list[str]:
    """Returns a line for each failed check; `records` are those of `run_all`."""
    failed = [f"{name}: {record['error']}" for name, record in records.items() if "error" in record]
    again = records[AGAIN].get("phases", {})
    for phase, one in records[FIRST].get("phases", {}).items():
        if phase in again and one["result"] != again[phase]["result"]:
            failed.append(f"{phase}: two runs with the same seed are not bit-identical")
        if one["faults"]:
            failed.append(f"{phase}: {one['faults']} ops cannot run on a deterministic GPU")
    if not records[GRADCHECK].get("exact", True):
        failed.append(f"gradcheck: {records[GRADCHECK]['said']}")
    return failed


def table(gpus: int, described: str, records: Records) -> str:
    """Returns Markdown tables of the machine, Eqn 3 and each phase, and a list of errors."""
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
        "| phase | bit-identical | ops without a deterministic GPU kernel | copies to the host per step "
        f"| s per step or image, {FIRST} | {FREE} | {BFLOAT16} | peak MiB | {FREE} | {BFLOAT16} |",
        "|---" * 10 + "|",
    ]
    phases = {name: records[name].get("phases", {}) for name in RUNS}
    for phase, first in phases[FIRST].items():
        again = phases[AGAIN].get(phase)
        same = "unknown" if again is None else "yes" if first["result"] == again["result"] else "NO"
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
