"""What `launch` asks of a Kubernetes API server, by the official client. Errors become one sentence each."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import urllib3
import websocket
from kubernetes import client, config, stream, utils
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
        if error.status:
            return f"{error.status} {error.reason}"
        # A refused websocket: the client puts headers and the Status object into one string.
        found = re.search(r'"message":\s*"((?:[^"\\]|\\.)*)"', str(error.reason))
        return found[1].replace("\\", "") if found else str(error.reason).split(" -+-+- ")[0]


class Cluster:
    """One namespace of the cluster that kubectl's configuration names."""

    def __init__(self, api: client.ApiClient, namespace: str):
        self.api, self.namespace = api, namespace
        self.batch: Any = client.BatchV1Api(api)
        self.core: Any = client.CoreV1Api(api)

    def create(self, resource: Resource) -> str:
        """Creates it, or says "kept". A ConfigMap that is there is replaced.

        Raises:
          InputError: the server refuses it.
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
                raise error from failed
        return "created"

    def find_job(self, name: str) -> Any:
        """The Job, or None."""
        with _one_sentence(f"Job {name}"):
            try:
                return self.batch.read_namespaced_job(name, self.namespace)
            except ApiException as error:
                if error.status == 404:
                    return None
                raise

    def job(self, name: str) -> Any:
        with _one_sentence(f"Job {name}"):
            return self.batch.read_namespaced_job(name, self.namespace)

    def pods(self, name: str) -> list[Any]:
        """The Job's pods, by name."""
        with _one_sentence(f"pods of {name}"):
            found = self.core.list_namespaced_pod(self.namespace, label_selector=f"{JOB_LABEL}={name}").items
        return sorted(found, key=lambda pod: pod.metadata.name)

    def resources(self, name: str) -> list[Resource]:
        """The Job and the ConfigMaps that its pods mount, as a manifest would have them."""
        job = self.api.sanitize_for_serialization(self.job(name)) | {"kind": "Job"}
        volumes = job["spec"]["template"]["spec"].get("volumes", [])
        found = [job]
        for file in (v["configMap"]["name"] for v in volumes if "configMap" in v):
            with _one_sentence(f"ConfigMap {file}"):
                read = self.core.read_namespaced_config_map(file, self.namespace)
            found.append(self.api.sanitize_for_serialization(read) | {"kind": "ConfigMap"})
        return found

    def node_of(self, claim: str) -> str:
        """The node that a volume is on; "" if any node may mount it.

        Raises:
          InputError: there is no such claim, or no volume for it yet.
        """
        with _one_sentence(f"PersistentVolumeClaim {claim}"):
            found = self.core.read_namespaced_persistent_volume_claim(claim, self.namespace)
        if found.status.phase != "Bound":
            raise InputError(f"PersistentVolumeClaim {claim} is {found.status.phase}: it has no volume yet")
        if {"ReadWriteMany", "ReadOnlyMany"} & set(found.status.access_modes or []):
            return ""
        with _one_sentence("pods"):
            pods = self.core.list_namespaced_pod(self.namespace).items
        users = [pod for pod in pods if pod.status.phase == "Running" and claim in _claims(pod)]
        return users[0].spec.node_name if users else ""

    @contextlib.contextmanager
    def temporary(self, resource: Resource) -> Iterator[str]:
        """Creates a Pod, gives its name and deletes it in the end, whatever happens."""
        with _one_sentence("Pod"):
            made = self.core.create_namespaced_pod(self.namespace, resource, field_validation="Strict")
        try:
            yield made.metadata.name
        finally:
            with _one_sentence(f"Pod {made.metadata.name}"):
                try:
                    self.core.delete_namespaced_pod(made.metadata.name, self.namespace)
                except ApiException as error:
                    if error.status != 404:  # gone with its node
                        raise

    def why_pod_waits(self, name: str) -> str:
        """Why a Pod does not run yet, in one sentence; "" if it does.

        Raises:
          InputError: it has ended.
        """
        with _one_sentence(f"Pod {name}"):
            pod = self.core.read_namespaced_pod(name, self.namespace)
        if pod.status.phase in ("Failed", "Succeeded"):
            raise InputError(f"Pod {name} has ended: {pod.status.message or pod.status.phase}")
        return self._pod_waits(pod)

    def execute(self, pod: str, command: list[str]) -> websocket.WebSocket:
        """Runs a command in a Pod, whose input and output are frames; their first byte is the channel."""
        with _one_sentence(f"exec in {pod}"):
            opened = stream.stream(
                self.core.connect_get_namespaced_pod_exec,
                pod,
                self.namespace,
                command=command,
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                _preload_content=False,
            )
        return opened.sock

    def suspend(self, name: str, suspended: bool) -> None:
        """Suspended, a Job's pods get SIGTERM; resumed, it makes new ones."""
        with _one_sentence(f"Job {name}"):
            self.batch.patch_namespaced_job(name, self.namespace, {"spec": {"suspend": suspended}})

    def why_waiting(self, name: str, one_is_enough: bool = False) -> str:
        """Why not all of the Job's pods run, or not even one, in one sentence; "" if they do or did."""
        job = self.job(name)
        for condition in job.status.conditions or []:
            if condition.type == "Failed" and condition.status == "True":
                return f"failed: {condition.message or condition.reason}"
        if job.spec.suspend:
            return "suspended: waits for its queue, or for launch resume"
        pods = self.pods(name)
        if not pods:
            if job.status.succeeded:
                return ""
            # What the Job controller was told when it made pods: quota, Pod Security, missing accounts.
            refused = self._last_warning("Job", name)
            return f"no pods: {refused}" if refused else "no pods yet"
        if one_is_enough and any(pod.status.phase == "Running" for pod in pods):
            return ""
        return next((reason for pod in pods if (reason := self._pod_waits(pod))), "")

    def _pod_waits(self, pod: Any) -> str:
        """Unschedulable, or an image or a volume that cannot be had; "" if the pod does not wait."""
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
            if waiting:  # a volume that is on another node is in the events only
                why = waiting.message or self._last_warning("Pod", name)
                return f"{name}: {waiting.reason}" + (f", {why}" if why else "")
        return f"{name} is pending"

    def _last_warning(self, kind: str, name: str) -> str:
        """The message of the newest event of type Warning; "" if there is none."""
        selector = f"involvedObject.kind={kind},involvedObject.name={name},type=Warning"
        with _one_sentence(f"events of {name}"):
            events = self.core.list_namespaced_event(self.namespace, field_selector=selector).items
        when = [str(e.last_timestamp or e.event_time or e.metadata.creation_timestamp) for e in events]
        return max(zip(when, (e.message for e in events), strict=True))[1] if events else ""

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


def _claims(pod: Any) -> list[str]:
    volumes = pod.spec.volumes or []
    return [v.persistent_volume_claim.claim_name for v in volumes if v.persistent_volume_claim]


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
