"""Reads the logs of all pods of a Job, line by line, each line after the name of its pod."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tf_detectorgan.cluster.answers import Later
from tf_detectorgan.cluster.kubernetes import Cluster, ended
from tf_detectorgan.errors import InputError


def show(cluster: Cluster, job: str, write: Callable[[str], Any]) -> None:
    """Passes every line to `write`, as "pod | line".

    Raises:
      InputError: there are no pods, or a log cannot be read; all other logs have been written.
    """
    failures: list[InputError] = []
    for pod in _pods(cluster, job):
        try:
            for line in cluster.log(pod):
                write(f"{pod} | {line}")
        except InputError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def follow(cluster: Cluster, job: str, write: Callable[[str], Any], poll: float) -> None:
    """Passes lines to `write`, also of later pods, until the Job ends or is suspended; polls every `poll` s.

    Raises:
      InputError: there are no pods yet.
    """
    threads: dict[str, threading.Thread] = {}
    pods, has_ended = _pods(cluster, job), False
    while True:
        for pod in pods:
            if pod not in threads:
                threads[pod] = threading.Thread(
                    target=_follow_one, args=[cluster, pod, write, poll], daemon=True
                )
                threads[pod].start()
        if has_ended and not any(thread.is_alive() for thread in threads.values()):
            return
        time.sleep(poll)
        try:
            found = cluster.find_job(job)  # before listing pods: no pod starts after the end
            has_ended = not found or bool(ended(found) or found.spec.suspend)
            pods = [pod.metadata.name for pod in cluster.pods(job)]
        except Later:
            has_ended = False


def _pods(cluster: Cluster, job: str) -> list[str]:
    pods = [pod.metadata.name for pod in cluster.pods(job)]
    if not pods:
        raise InputError(f"Job {job} has no pods: {cluster.why_waiting(job) or 'it is finished'}")
    return pods


def _follow_one(cluster: Cluster, pod: str, write: Callable[[str], Any], poll: float) -> None:
    """Reads the log until the Pod ends. After a lost connection, lines of the last second are repeated."""
    printed, last, ending = "", 0.0, False
    while True:
        cut = False
        try:
            since = int(time.monotonic() - last) + 1 if last else 0
            for line in cluster.log(pod, follow=True, since=since):
                write(f"{pod} | {line}")
                last = time.monotonic()
        except Later as error:
            if str(error) != printed:
                write(f"{pod} | ({error})")
            printed, cut = str(error), True
        except InputError as error:
            write(f"{pod} | ({error})")
            return
        try:
            phase = cluster.phase(pod)
        except InputError:
            phase = "Running"
        pod_ended = phase in ("Succeeded", "Failed")
        if not phase or (pod_ended and (ending or not cut)):
            return
        ending = pod_ended  # a log that was cut at the end is read once more
        time.sleep(poll)
