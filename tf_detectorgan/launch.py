"""Runs Jobs on Kubernetes: python -m tf_detectorgan.launch submit|status|logs|stop|resume|fetch|reproduce.

  submit     fills in a manifest, creates its resources, waits for the pods and prints why they wait
  status     prints the state of the Job and its pods
  logs       prints the logs of all pods of the Job, each line after the name of its pod; with --follow or
             -f until the Job ends, with exit code 0 if the Job is complete
  stop       suspends the Job: its pods receive SIGTERM, save and end; waits until they have ended
  resume     resumes a stopped Job from its checkpoint
  fetch      copies the output of the Job from the volume of runs to this machine
  reproduce  submits a table with one pod per arm and seed; with --gather, a pod that writes the table

`launch submit --help` lists the flags. Requires pip install 'tf_detectorgan[k8s]', and connects to the
cluster of kubectl's configuration. Exit codes: 78 bad input, a request that the API server has rejected, or
a failed Job; 75 still waiting after --wait seconds, or a stopped Job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from tf_detectorgan.command import HELP
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, InputError, Interrupted

if __name__ == "__main__" and (HELP & set(sys.argv[1:2]) or not find_spec("kubernetes")):
    if HELP & set(sys.argv):
        print(__doc__)
        sys.exit(0)
    print("error: launch requires the Kubernetes client: pip install 'tf_detectorgan[k8s]'", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)

import yaml

from tf_detectorgan import command, progress
from tf_detectorgan.cluster import fetch as copying
from tf_detectorgan.cluster import kubernetes, manifests, pod_logs, table_job
from tf_detectorgan.cluster.answers import Later
from tf_detectorgan.config import flagfile_lines, option
from tf_detectorgan.experiments.tables import TABLES

POLL = 2.0  # seconds between two requests
SAVED = (0, EXIT_INTERRUPTED)


@dataclass(frozen=True)
class Where:
    """Options of every action."""

    context: str = option("", "Context of kubectl's configuration; empty: the current one.")
    namespace: str = option("", "Namespace; empty: the context's.")


@dataclass(frozen=True)
class Sent(Where):
    """Options of `submit` and `reproduce`."""

    image: str = option("", "Image of all containers; empty: that of the manifest.")
    gpus: int = option(0, "GPUs of each pod; 0: as in the manifest.", low=0)
    queue: str = option("", "Kueue queue that starts the Job; empty: none.")
    wait: int = option(300, "Seconds to wait until the pods run; 0: do not wait.", low=0)
    dry_run: bool = option(False, "Print the manifest instead of submitting it; no cluster is needed.")


@dataclass(frozen=True)
class Submit(Sent):
    """Options of `submit`."""

    manifest: str = option("train-nih", "Name of a manifest in k8s/, or a file with one Job.")
    train_flags: str = option("", "Flagfile whose lines replace flags of the same name in the manifest.")
    workers: int = option(0, "Number of pods that train together; 0: as in the manifest.", low=0)


@dataclass(frozen=True)
class SubmitTable(Sent):
    """Options of `reproduce`."""

    table: str = option("1", "Table, as --table of `python -m tf_detectorgan.reproduce`.", tuple(TABLES))
    config: str = option("", "Flagfile of `train` for all cells; empty: a small run on drawn data.")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), "Seeds; each arm is trained once with each.")
    parallel: int = option(0, "Concurrent pods; 0: one per seed, to avoid repeated pretraining.", low=0)
    gather: bool = option(False, "Submit one pod that writes the table, after all cells are trained.")
    memory: str = option("", "Memory of each pod, such as 16Gi; empty: as in the manifest.")
    runs_claim: str = option("", "Claim of the volume of runs; empty: as in the manifest, ReadWriteMany.")
    data_claim: str = option("", "Claim of a volume to mount at /data; empty: none.")


@dataclass(frozen=True)
class OneJob(Where):
    """Options of `status`, `stop` and `resume`."""

    job: str = option("", "The Job's name.")
    wait: int = option(600, "For stop: seconds to wait until the pods have saved and ended.", low=0)


@dataclass(frozen=True)
class Logs(OneJob):
    """Options of `logs`."""

    follow: bool = option(False, "Continue until the Job ends, also with pods that start later; or: -f.")


@dataclass(frozen=True)
class Fetch(Where):
    """Options of `fetch`."""

    job: str = option("", "The Job's name.")
    manifest: str = option("", "If the Job has been deleted: its manifest, by name in k8s/ or as a file.")
    path: str = option("", "Folder on the volume of runs; empty: the output folder of the Job.")
    to: str = option("", "New folder on this machine; empty: the last part of --path in this folder.")
    without: tuple[str, ...] = option((), "Names of files or folders to skip, such as ckpt-*,phantom.")
    image: str = option("", "Image with Python 3 for the copying pod; empty: that of the Job.")
    claim: str = option("", "Claim of the volume of runs; empty: that of the Job.")
    wait: int = option(300, "Seconds to wait until the pod runs.", low=0)
    limit: int = option(3600, "Seconds after which the cluster ends the pod.", low=1)


def submit(options: Submit) -> None:
    """Creates the resources of the manifest, the Job last, and waits for its pods."""
    flags = _text(options.train_flags)
    manifests.require_absolute("--train_flags", flags, ("data_dir", "run_dir", "images", "out"))
    resources = manifests.fill(
        manifests.read(options.manifest),
        image=options.image,
        flags=flags,
        gpus=options.gpus,
        workers=options.workers,
        queue=options.queue,
    )
    _send(resources, options, one_is_enough=False)


def reproduce(options: SubmitTable) -> None:
    """Submits a table, with one completion index per arm and seed, or the Job that writes the table."""
    if not options.seeds or len(set(options.seeds)) != len(options.seeds):
        raise InputError(f"--seeds={','.join(map(str, options.seeds))}: give one or more different numbers")
    config = _text(options.config)
    manifests.require_absolute("--config", config, ("data_dir",))
    resources = table_job.fill(
        manifests.read(table_job.TEMPLATE),
        table=options.table,
        config=config,
        seeds=options.seeds,
        cells=len(TABLES[options.table].rows) * len(options.seeds),
        parallel=options.parallel or len(options.seeds),
        gather=options.gather,
        memory=options.memory,
        runs_claim=options.runs_claim,
        data_claim=options.data_claim,
    )
    manifests.fill(
        resources, image=options.image, flags="", gpus=options.gpus, workers=0, queue=options.queue
    )
    if options.gather and not options.dry_run:
        cells = kubernetes.connect(options.context, options.namespace).find_job(
            table_job.name_of(options.table)
        )
        if cells and (cells.status.active or cells.status.terminating):
            raise Interrupted(
                f"Job {cells.metadata.name} is still training: {cells.status.succeeded or 0} of "
                f"{cells.spec.completions} cells are finished; use --gather after it has ended"
            )
    _send(resources, options, one_is_enough=True)


def _text(file: str) -> str:
    """Returns the lines of a flagfile and of the files that it includes; "" without a file."""
    return "\n".join([*flagfile_lines(Path(file)), ""]) if file else ""


def _send(resources: list[manifests.Resource], options: Sent, *, one_is_enough: bool) -> None:
    """Creates the resources, the Job last, and waits for all pods or for one. With --dry_run: prints them."""
    manifests.check_devices(resources)
    resources.sort(key=lambda resource: resource["kind"] == "Job")
    if options.dry_run:
        print(yaml.safe_dump_all(resources, sort_keys=False), end="")
        return
    cluster = kubernetes.connect(options.context, options.namespace)
    for kind, named in ((resource["kind"], resource["metadata"]) for resource in resources):
        if (other := named.get("namespace", cluster.namespace)) != cluster.namespace:
            raise InputError(
                f"{kind} {named['name']}: its manifest sets namespace {other}, but launch uses "
                f"{cluster.namespace}; give --namespace={other}, or remove that line from the manifest"
            )
    job = manifests.job_of(resources)["metadata"]["name"]
    if found := cluster.find_job(job):  # before anything is changed: its pods mount the ConfigMap
        stopped = found.spec.suspend and not kubernetes.ended(found)
        raise InputError(
            f"Job {job} exists, and the specification of a Job cannot be changed: "
            f"{f'resume it by launch resume --job={job}, or ' if stopped else ''}{cluster.to_delete(job)} "
            "and submit again (runs stay on their volume, finished phases are not repeated)"
        )
    for resource in resources:
        done = cluster.create(resource)
        print(f"{resource['kind']} {resource['metadata']['name']}: {done}")
    if options.wait:
        _wait_for_pods(cluster, job, options.wait, one_is_enough)
    print(f"Job {job} in namespace {cluster.namespace}; next: launch logs --job={job} --follow")


def _wait_for_pods(cluster: kubernetes.Cluster, job: str, seconds: int, one_is_enough: bool = False) -> None:
    def reason() -> str:
        found = cluster.why_waiting(job, one_is_enough)
        if found.startswith(kubernetes.FAILED):
            raise InputError(f"Job {job} {found}; launch logs --job={job} prints the cause")
        return found

    _wait(reason, seconds, f"Job {job} is submitted and")


def _wait(reason: Callable[[], str], seconds: int, subject: str) -> None:
    """Polls `reason` until it returns "", and prints each change; raises Interrupted after `seconds`."""

    def current() -> str:
        try:
            return reason()
        except Later as error:
            return str(error)

    end, printed = time.monotonic() + seconds, ""
    while why := current():
        if why != printed:
            print(why, flush=True)
            printed = why
        if time.monotonic() > end:
            raise Interrupted(f"{subject} still waits after {seconds} seconds: {why}")
        time.sleep(POLL)


def status(options: OneJob) -> None:
    """Prints the Job's counts, its pods, and why they wait."""
    cluster = _cluster(options)
    counts = cluster.job(options.job).status
    print(
        f"Job {options.job}: {counts.active or 0} active, {counts.succeeded or 0} succeeded, "
        f"{counts.failed or 0} failed"
    )
    for pod in cluster.pods(options.job):
        print(f"  {pod.metadata.name}: {pod.status.phase}, on {pod.spec.node_name or 'no node'}")
    if reason := cluster.why_waiting(options.job):
        print(reason)


def logs(options: Logs) -> None:
    """Prints the logs of all pods."""
    cluster = _cluster(options)
    if options.follow:
        pod_logs.follow(cluster, options.job, lambda line: print(line, flush=True), POLL)
        how = kubernetes.ended(cluster.job(options.job))
        if not how:
            raise Interrupted(f"Job {options.job} is suspended; to resume: launch resume --job={options.job}")
        if how.startswith(kubernetes.FAILED):
            raise InputError(f"Job {options.job} {how}")
        print(f"Job {options.job} {how}")
    else:
        pod_logs.show(cluster, options.job, print)


def stop(options: OneJob) -> None:
    """Suspends the Job and waits until no pod is left."""
    cluster = _cluster(options)
    codes: dict[str, list[int]] = {}  # exit codes of the pods that run now

    def running() -> str:
        pods = cluster.pods(options.job)
        codes.update({p.metadata.name: kubernetes.exit_codes(p) for p in pods if p.metadata.name in codes})
        names = [pod.metadata.name for pod in pods if pod.status.phase in ("Pending", "Running")]
        return f"{', '.join(names)} has not ended yet" if names else ""

    codes |= {p.metadata.name: [] for p in cluster.pods(options.job) if p.status.phase == "Running"}
    cluster.suspend(options.job, True)
    _wait(running, options.wait, f"Job {options.job} is suspended and")
    print(f"Job {options.job}: stopped{_saved(codes)}; to resume: launch resume --job={options.job}")


def _saved(codes: dict[str, list[int]]) -> str:
    """Returns whether stopped pods saved their steps, by their exit codes. A deleted pod has no codes."""
    bad = [f"{pod} ended with {code}" for pod, found in codes.items() for code in found if code not in SAVED]
    if bad:
        return f", but {', '.join(bad)}: steps after its last checkpoint are lost"
    if not all(codes.values()):
        return ", but its pods were deleted: the resumed Job will show whether the last steps were saved"
    return ", its steps are saved" if codes else ", no pod was running"


def resume(options: OneJob) -> None:
    """Resumes a suspended Job, which then creates pods again."""
    _cluster(options).suspend(options.job, False)
    print(f"Job {options.job}: continues from its checkpoint")


def fetch(options: Fetch) -> None:
    """Copies a run through a temporary pod that mounts the volume read-only."""
    if bool(options.job) == bool(options.manifest):
        raise InputError("give either --job or, if the Job has been deleted, --manifest")
    cluster = kubernetes.connect(options.context, options.namespace)
    resources = cluster.resources(options.job) if options.job else manifests.read(options.manifest)
    path = PurePosixPath(options.path or manifests.written_path(resources))
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"--path={path}: give a relative folder on the volume, such as nih")
    target = Path(options.to or path.name)
    if target.exists():
        raise InputError(f"{target}: exists; move it away, or give another folder by --to")
    pod_of_job = manifests.job_of(resources)["spec"]["template"]["spec"]
    claim = options.claim or manifests.runs_claim(pod_of_job)
    helper = copying.helper_pod(
        pod_of_job, image=options.image, claim=claim, node=cluster.node_of(claim), seconds=options.limit
    )
    with cluster.temporary(helper) as pod:
        _wait(lambda: cluster.why_pod_waits(pod), options.wait, f"Pod {pod}")
        socket = cluster.execute(pod, copying.command(str(path), options.without))
        with progress.bar(desc=f"fetch {path}", unit="B", unit_scale=True, dynamic_ncols=True) as bar:

            def show(done: int, expected: int) -> None:
                bar.total = expected or None
                bar.update(done - bar.n)

            count, gone = copying.unpack(socket, target, show)
    print(f"{target}: {count} files")
    if gone:
        print(f"not copied, because the run replaced them in the meantime: {', '.join(gone)}")


def _cluster(options: OneJob) -> kubernetes.Cluster:
    if not options.job:
        raise InputError("--job is required: give the name of the Job")
    return kubernetes.connect(options.context, options.namespace)


ACTIONS: dict[str, tuple[Any, Any]] = {
    "submit": (Submit, submit),
    "status": (OneJob, status),
    "logs": (Logs, logs),
    "stop": (OneJob, stop),
    "resume": (OneJob, resume),
    "fetch": (Fetch, fetch),
    "reproduce": (SubmitTable, reproduce),
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ACTIONS:
        print(__doc__, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    action = sys.argv.pop(1)
    sys.argv = ["--follow" if word == "-f" and action == "logs" else word for word in sys.argv]
    command.run(*ACTIONS[action])
