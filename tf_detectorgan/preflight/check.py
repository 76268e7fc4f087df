"""Decides whether a run needs a preflight, and runs it in a child process; raises an error if it fails."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tf_detectorgan import checkpoints, config, progress
from tf_detectorgan.cluster.devices import gpus
from tf_detectorgan.data import records
from tf_detectorgan.preflight import child, kernel, outcome, plan
from tf_detectorgan.preflight.outcome import Ended
from tf_detectorgan.preflight.plan import PhasePlan
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training import run_directory
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.settings import Train

LONG = 1.0  # hours; a longer run gets a preflight
POLL_SECONDS = 0.2
MIN_AVAILABLE = 0.03  # share of memory; the child is killed if less is available
EXPENDABLE = "1000"  # oom_score_adj, proc(5): the kernel kills such a process first


def before(
    settings: Train, environment: Mapping[str, str] = os.environ, *, runs: int = 1, processes: int = 1
) -> None:
    """Runs the preflight of a run if it is due, and writes preflight.json if it passes.

    Call it before TensorFlow runs any op: the child needs the memory of the GPUs.

    Args:
      settings: of the run.
      environment: of the child.
      runs: number of runs of this size, including this one.
      processes: number of concurrent runs.

    Raises:
      InputError: memory or disk is too small, or the child reports bad flags or data.
      OSError: the child could not write.
      Interrupted: a signal was received.
      RuntimeError: the child failed for another reason.
    """
    layout = RunLayout(Path(settings.run_dir))
    home = layout.short_run
    # Left by a killed process; `train` would count its phases as phases of the run.
    shutil.rmtree(home, ignore_errors=True)
    if not due(settings, environment, runs):
        return
    run_directory.same_settings(layout.config, settings, run_directory.FREE)
    home.mkdir(parents=True)
    print(
        f"preflight: running a few steps of each phase in {home}, in a child process; its log is "
        f"{layout.preflight_log}; --preflight=false skips the preflight",
        flush=True,
    )
    try:
        _checked(settings, home, environment, runs, processes)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def due(settings: Train, environment: Mapping[str, str], runs: int = 1) -> bool:
    """Returns whether --preflight requires a preflight, and none has passed in the run directory.

    --preflight=auto requires one in Kubernetes, or if the steps are estimated to take over an hour, unless
    every chosen arm has been started.
    """
    layout = RunLayout(Path(settings.run_dir))
    if settings.preflight == "false" or _passed(layout.preflight, settings):
        return False
    if settings.preflight == "true":
        return True
    if all(layout.arm(name).path.is_dir() for name in settings.arm):
        return False
    return "KUBERNETES_SERVICE_HOST" in environment or runs * plan.hours(settings) > LONG


def _passed(file: Path, settings: Train) -> bool:
    """Returns whether a preflight has passed with these arms and settings; those in `FREE` may differ."""
    if not file.exists():
        return False
    old = json.loads(file.read_text(encoding="utf-8"))["settings"]
    new = json.loads(config.to_json(settings))
    same = all(old.get(name) == value for name, value in new.items() if name not in run_directory.FREE)
    return same and set(new["arm"]) <= set(old["arm"])


def _checked(settings: Train, home: Path, environment: Mapping[str, str], runs: int, processes: int) -> None:
    """Runs the child, prints the table, and writes preflight.json or raises an error."""
    layout, short = RunLayout(Path(settings.run_dir)), plan.in_short(settings, str(home))
    folders = plan.phases(short, 1)
    log = layout.preflight_log
    ended = watch(start(short, environment, log), home, folders, log)
    found = _results(settings, short, home)
    others = outcome.size(home) - sum(outcome.size(home / phase.folder) for phase in folders)
    if found:
        same = f"\nper run; {runs} runs" if runs > 1 else ""
        print(outcome.text(found, others) + same, flush=True)
    if ended.code:
        phase = _unfinished(home, folders)
        raise outcome.of_end(ended, phase, settings, *_devices(home), log)
    free = shutil.disk_usage(layout.path).free + outcome.size(home)
    outcome.require_memory(found, processes, ended.total)
    outcome.require_disk(found, others, runs, free, settings.run_dir)
    rows = [row._asdict() | {"phase": row.phase.name, "amount": row.phase.amount} for row in found]
    passed = {"settings": json.loads(config.to_json(settings)), "rows": rows, "other_bytes": others}
    checkpoints.write_text(layout.preflight, json.dumps(passed, indent=1))


def start(short: Train, environment: Mapping[str, str], log: Path) -> subprocess.Popen:
    """Starts the child and returns its process, which the kernel kills before this one if memory runs out."""
    command = [sys.executable, "-m", child.__name__, *config.to_flags(short)]
    own = {name: value for name, value in environment.items() if name != "TF_CONFIG"}
    with log.open("wb") as out:
        own = {"TQDM_MININTERVAL": "30"} | own | kernel.variable()
        process = subprocess.Popen(command, stdout=out, stderr=out, env=own)
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/oom_score_adj").write_text(EXPENDABLE)
    return process


def watch(process: subprocess.Popen, home: Path, folders: Sequence[PhasePlan], log: Path) -> Ended:
    """Shows the child's phases until it ends, kills it if memory is nearly used up, and returns its outcome.

    Otherwise the kernel would kill the container of a pod, including this process, without a message.

    Raises:
      Interrupted: a signal was received; the child has been killed.
    """
    peak, memory = 0, kernel.available_memory()
    try:
        with (
            _signals() as stop,
            progress.bar(
                total=len(folders), desc="preflight", unit="phase", dynamic_ncols=True, smoothing=0
            ) as bar,
        ):
            while process.poll() is None:
                stop.check("preflight")
                peak, memory = max(peak, kernel.resident(process.pid)), kernel.available_memory()
                if memory.available < MIN_AVAILABLE * memory.total:
                    process.kill()
                    process.wait()
                _show(bar, home, folders)
                time.sleep(POLL_SECONDS)
            _show(bar, home, folders)
        stop.check("preflight")  # a signal since the last check, while the child was ending
    finally:
        process.kill()
        process.wait()
    output = log.read_text(encoding="utf-8", errors="replace")
    return Ended(process.returncode, output, peak, memory.total)


@contextlib.contextmanager
def _signals() -> Iterator[StopSignal]:
    """Records SIGTERM and SIGINT inside the block, and restores the previous handlers after it."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield StopSignal().install()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _show(bar, home: Path, folders: Sequence[PhasePlan]) -> None:
    done = sum(checkpoints.finished(home / phase.folder) is not None for phase in folders)
    if done != bar.n or not bar.postfix:
        bar.n = done
        bar.set_postfix_str(_unfinished(home, folders).name)  # redraws the bar


def _unfinished(home: Path, folders: Sequence[PhasePlan]) -> PhasePlan:
    """Returns the phase that the child is running, or was running when it ended."""
    if not RunLayout(home).devices.exists():
        return PhasePlan(Path("shared/start-up"), "start-up", 0)
    left = (phase for phase in folders if checkpoints.finished(home / phase.folder) is None)
    return next(left, PhasePlan(Path("shared/report"), "report", 0))


def _results(settings: Train, short: Train, home: Path) -> list[outcome.PhaseCost]:
    """Returns the costs of the finished phases."""
    data_dir = Path(settings.data_dir).expanduser() if settings.data_dir else RunLayout(home).phantom
    if not records.is_dataset(data_dir):
        return []
    dataset = records.open_dataset(data_dir)
    view = dataset.limited(plan.limits(short.detector_batch))
    whole, measured = (
        plan.phases(s, plan.evaluated_images(one, "test")) for s, one in ((settings, dataset), (short, view))
    )
    pairs = list(zip(whole, measured, strict=True))
    return outcome.rows(home, pairs, settings, plan.evaluated_images(dataset, "validation"))


def _devices(home: Path) -> tuple[int, bool]:
    """Returns the number of replicas of the child, and whether they are GPUs."""
    file = RunLayout(home).devices
    if not file.exists():
        return 1, bool(gpus(os.environ))
    found = json.loads(file.read_text(encoding="utf-8"))
    return found["replicas"], found["gpu"]
