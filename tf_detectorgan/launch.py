"""Jobs on Kubernetes: python -m tf_detectorgan.launch submit|status|logs|stop|resume [flags].

  submit  fills a manifest, creates what it holds, waits for its pods and says what they wait for
  status  the Job and its pods
  logs    of all its pods, each line with the pod's name before it; --follow: until they end
  stop    suspends the Job: pods get SIGTERM, save and end; waits until they have
  resume  lets a stopped Job go on, from its checkpoint

`launch submit --help` lists the flags. Wants pip install 'tf_detectorgan[k8s]'; finds the cluster as kubectl
does. Exit codes: 78 bad input, or the API server's refusal; 75 still waiting when --wait was over.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tf_detectorgan import door
from tf_detectorgan.cluster import kubernetes, manifests
from tf_detectorgan.config import option
from tf_detectorgan.errors import EXIT_BAD_INPUT, InputError, Interrupted

POLL = 2.0  # seconds between two looks


@dataclass(frozen=True)
class Submit:
    """Options of `submit`."""

    manifest: str = option("train-nih", "A manifest of k8s/ by name, or a file with one Job.")
    train_flags: str = option("", "Flagfile whose lines replace the manifest's flags of the same name.")
    image: str = option("", "Image of all containers; empty: the manifest's.")
    gpus: int = option(0, "GPUs of each pod; 0: the manifest's.", low=0)
    workers: int = option(0, "Pods that train together; 0: the manifest's.", low=0)
    queue: str = option("", "Queue of Kueue that starts the Job; empty: none.")
    context: str = option("", "Context of kubectl's configuration; empty: the current one.")
    namespace: str = option("", "Namespace; empty: the context's.")
    wait: int = option(300, "Seconds to wait for pods to run; 0: do not.", low=0)
    dry_run: bool = option(False, "Print the manifest as it would be submitted; no cluster is asked.")


@dataclass(frozen=True)
class OneJob:
    """Options of `status`, `stop` and `resume`."""

    job: str = option("", "The Job's name.")
    context: str = option("", "Context of kubectl's configuration; empty: the current one.")
    namespace: str = option("", "Namespace; empty: the context's.")
    wait: int = option(600, "stop: seconds to wait for the pods to save and end.", low=0)


@dataclass(frozen=True)
class Logs(OneJob):
    """Options of `logs`."""

    follow: bool = option(False, "Go on until the pods end.")


def submit(options: Submit) -> None:
    """Creates what the manifest holds, the Job last, and waits for its pods."""
    flags = ""
    if options.train_flags:
        if not Path(options.train_flags).is_file():
            raise InputError(f"--train_flags={options.train_flags}: no such file")
        flags = Path(options.train_flags).read_text(encoding="utf-8")
    resources = manifests.fill(
        manifests.read(options.manifest),
        image=options.image,
        flags=flags,
        gpus=options.gpus,
        workers=options.workers,
        queue=options.queue,
    )
    resources.sort(key=lambda resource: resource["kind"] == "Job")
    if options.dry_run:
        print(yaml.safe_dump_all(resources, sort_keys=False), end="")
        return
    cluster = kubernetes.connect(options.context, options.namespace)
    for resource in resources:
        done = cluster.create(resource)
        print(f"{resource['kind']} {resource['metadata']['name']}: {done}")
    job = manifests.job_of(resources)["metadata"]["name"]
    if options.wait:
        _wait_for_pods(cluster, job, options.wait)
    print(f"Job {job} in namespace {cluster.namespace}; next: launch logs --job={job} --follow")


def _wait_for_pods(cluster: kubernetes.Cluster, job: str, seconds: int) -> None:
    """Says what the pods wait for whenever that changes."""
    end, said = time.monotonic() + seconds, ""
    while reason := cluster.why_waiting(job):
        if reason.startswith("failed: "):
            raise InputError(f"Job {job} {reason}; launch logs --job={job} says why")
        if reason != said:
            print(reason, flush=True)
            said = reason
        if time.monotonic() > end:
            raise Interrupted(f"Job {job} is submitted and waits after {seconds} seconds: {reason}")
        time.sleep(POLL)


def status(options: OneJob) -> None:
    """Prints the Job's counts, its pods, and what they wait for."""
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
    """Prints all pods' logs."""
    _cluster(options).follow(options.job, lambda line: print(line, flush=True), options.follow)


def stop(options: OneJob) -> None:
    """Suspends the Job and waits until no pod is left."""
    cluster = _cluster(options)
    cluster.suspend(options.job, True)
    end = time.monotonic() + options.wait
    while left := [p for p in cluster.pods(options.job) if p.status.phase in ("Pending", "Running")]:
        if time.monotonic() > end:
            names = ", ".join(pod.metadata.name for pod in left)
            raise Interrupted(f"Job {options.job} is suspended, but {names} has not ended yet")
        time.sleep(POLL)
    print(f"Job {options.job}: stopped, its steps are saved; to go on: launch resume --job={options.job}")


def resume(options: OneJob) -> None:
    """Lets a suspended Job make pods again."""
    _cluster(options).suspend(options.job, False)
    print(f"Job {options.job}: goes on from its checkpoint")


def _cluster(options: OneJob) -> kubernetes.Cluster:
    if not options.job:
        raise InputError("--job: which one? Give the Job's name")
    return kubernetes.connect(options.context, options.namespace)


ACTIONS: dict[str, tuple[Any, Any]] = {
    "submit": (Submit, submit),
    "status": (OneJob, status),
    "logs": (Logs, logs),
    "stop": (OneJob, stop),
    "resume": (OneJob, resume),
}


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ACTIONS:
        print(__doc__, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    door.run(*ACTIONS[sys.argv.pop(1)])
