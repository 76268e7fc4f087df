"""What `launch` asks of a Kubernetes API server, by the official client. Errors become one sentence each."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
from kubernetes import client, config, utils
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException

from tf_detectorgan.cluster.manifests import Resource
from tf_detectorgan.errors import InputError

JOB_LABEL = "batch.kubernetes.io/job-name"  # the Job controller gives it to pods, since Kubernetes 1.27
KEPT = ("PersistentVolumeClaim", "Service")  # what is there already is used
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")


@contextlib.contextmanager
def _one_sentence(doing: str) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        raise InputError(f"{doing}: {_message(error)}") from error
    except urllib3.exceptions.HTTPError as error:
        raise InputError(f"{doing}: no answer from the API server ({error})") from error


def _message(error: ApiException) -> str:
    """The server's own words: `message` of the Status object that it answers with."""
    try:
        return json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        return f"{error.status} {error.reason}"


class Cluster:
    """One namespace of the cluster that kubectl's configuration names."""

    def __init__(self, api: client.ApiClient, namespace: str):
        self.api, self.namespace = api, namespace
        self.batch: Any = client.BatchV1Api(api)
        self.core: Any = client.CoreV1Api(api)

    def create(self, resource: Resource) -> str:
        """Creates it, or says "kept". A ConfigMap that is there is replaced.

        Raises:
          InputError: the server refuses it; a Job of this name exists, and Jobs cannot be changed.
        """
        kind, name = resource["kind"], resource["metadata"]["name"]
        with _one_sentence(f"{kind} {name}"):
            try:
                utils.create_from_dict(
                    self.api, resource, namespace=self.namespace, field_validation="Strict"
                )
            except utils.FailToCreateError as failed:
                error = failed.api_exceptions[0]
                if error.status != 409:
                    raise error from failed
                if kind == "ConfigMap":
                    self.core.replace_namespaced_config_map(name, self.namespace, resource)
                    return "replaced"
                if kind in KEPT:
                    return "kept"
                raise InputError(
                    f"Job {name} exists, and the specification of a Job cannot be changed: go on with "
                    f"launch resume --job={name}, or kubectl delete job {name} -n {self.namespace} "
                    "(runs stay on their volume) and submit again"
                ) from error
        return "created"

    def job(self, name: str) -> Any:
        with _one_sentence(f"Job {name}"):
            return self.batch.read_namespaced_job(name, self.namespace)

    def pods(self, name: str) -> list[Any]:
        """The Job's pods, by name."""
        with _one_sentence(f"pods of {name}"):
            found = self.core.list_namespaced_pod(self.namespace, label_selector=f"{JOB_LABEL}={name}").items
        return sorted(found, key=lambda pod: pod.metadata.name)

    def suspend(self, name: str, suspended: bool) -> None:
        """Suspended, a Job's pods get SIGTERM; resumed, it makes new ones."""
        with _one_sentence(f"Job {name}"):
            self.batch.patch_namespaced_job(name, self.namespace, {"spec": {"suspend": suspended}})

    def why_waiting(self, name: str) -> str:
        """Why not all of the Job's pods run, in one sentence; "" if they do or did."""
        job = self.job(name)
        for condition in job.status.conditions or []:
            if condition.type == "Failed" and condition.status == "True":
                return f"failed: {condition.message or condition.reason}"
        if job.spec.suspend:
            return "suspended: waits for its queue, or for launch resume"
        pods = self.pods(name)
        if not pods:
            return "" if job.status.succeeded else self._last_warning(name) or "no pods yet"
        return next((reason for pod in pods if (reason := _pod_waits(pod))), "")

    def _last_warning(self, name: str) -> str:
        """What the Job controller was told when it made pods: quota, Pod Security, missing accounts."""
        selector = f"involvedObject.kind=Job,involvedObject.name={name},type=Warning"
        with _one_sentence(f"events of {name}"):
            events = self.core.list_namespaced_event(self.namespace, field_selector=selector).items
        return f"no pods: {events[-1].message}" if events else ""

    def follow(self, name: str, write: Callable[[str], Any], follow: bool) -> None:
        """Passes every line of every pod's log to `write`, as "pod | line"; with `follow` until they end."""
        pods = [pod.metadata.name for pod in self.pods(name)]
        if not pods:
            raise InputError(f"Job {name} has no pods: {self.why_waiting(name) or 'it is finished'}")
        failures: list[InputError] = []

        def one(pod: str) -> None:
            try:
                with _one_sentence(f"log of {pod}"):
                    log = self.core.read_namespaced_pod_log(
                        pod, self.namespace, follow=follow, _preload_content=False
                    )
                    rest = b""
                    for chunk in log.stream():
                        *lines, rest = (rest + chunk).split(b"\n")
                        for line in lines:
                            write(f"{pod} | {line.decode(errors='replace')}")
                    if rest:
                        write(f"{pod} | {rest.decode(errors='replace')}")
            except InputError as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=[pod], daemon=True) for pod in pods]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def _pod_waits(pod: Any) -> str:
    """Unschedulable, or an image or a volume that cannot be had."""
    if pod.status.phase != "Pending":
        return ""
    name = pod.metadata.name
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"{name} has no node: {condition.message or condition.reason}"
    for container in pod.status.container_statuses or []:
        waiting = container.state.waiting
        if waiting and waiting.reason in NO_IMAGE:
            return f"{name} has no image: {waiting.message or waiting.reason}"
        if waiting:
            return f"{name}: {waiting.reason}" + (f", {waiting.message}" if waiting.message else "")
    return f"{name} is pending"


def connect(context: str, namespace: str) -> Cluster:
    """By kubectl's configuration; "" for its current context and that context's namespace.

    Raises:
      InputError: there is no configuration, or no such context.
    """
    try:
        contexts, active = config.list_kube_config_contexts()
        api = config.new_client_from_config(context=context or None)
    except ConfigException as error:
        raise InputError(f"kubectl's configuration: {error}") from error
    chosen = next((c for c in contexts if c["name"] == context), active)
    return Cluster(api, namespace or chosen["context"].get("namespace", "default"))
