"""The logs of all pods of a Job, line by line, each with its pod's name before it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from tf_detectorgan.cluster.answers import Later
from tf_detectorgan.cluster.kubernetes import Cluster, ended
from tf_detectorgan.errors import InputError


def show(cluster: Cluster, job: str, write: Callable[[str], Any]) -> None:
    """Passes every line that there is to `write`, as "pod | line".

    Raises:
      InputError: there are no pods, or a log cannot be read; the others' have been passed on.
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
    """As `show`, until the Job ends or is suspended; also of pods that come later, looked for every `poll` s.

    Raises:
      InputError: there are no pods yet.
    """
    threads: dict[str, threading.Thread] = {}
    pods, over = _pods(cluster, job), False
    while True:
        for pod in pods:
            if pod not in threads:
                threads[pod] = threading.Thread(
                    target=_follow_one, args=[cluster, pod, write, poll], daemon=True
                )
                threads[pod].start()
        if over and not any(thread.is_alive() for thread in threads.values()):
            return
        time.sleep(poll)
        try:
            found = cluster.find_job(job)  # asked first: when it is over, no pod comes after
            over = not found or bool(ended(found) or found.spec.suspend)
            pods = [pod.metadata.name for pod in cluster.pods(job)]
        except Later:
            over = False


def _pods(cluster: Cluster, job: str) -> list[str]:
    pods = [pod.metadata.name for pod in cluster.pods(job)]
    if not pods:
        raise InputError(f"Job {job} has no pods: {cluster.why_waiting(job) or 'it is finished'}")
    return pods


def _follow_one(cluster: Cluster, pod: str, write: Callable[[str], Any], poll: float) -> None:
    """Until the Pod ends. A log that was cut is read on from its last line, whose second comes twice."""
    said, last, ending = "", 0.0, False
    while True:
        cut = False
        try:
            since = int(time.monotonic() - last) + 1 if last else 0
            for line in cluster.log(pod, follow=True, since=since):
                write(f"{pod} | {line}")
                last = time.monotonic()
        except Later as error:
            if str(error) != said:
                write(f"{pod} | ({error})")
            said, cut = str(error), True
        except InputError as error:
            write(f"{pod} | ({error})")
            return
        try:
            phase = cluster.phase(pod)
        except InputError:
            phase = "Running"
        has_ended = phase in ("Succeeded", "Failed")
        if not phase or (has_ended and (ending or not cut)):
            return
        ending = has_ended  # what was cut at the very end is read once more
        time.sleep(poll)
