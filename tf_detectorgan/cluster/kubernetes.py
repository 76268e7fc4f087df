"""Sends requests of `launch` to a Kubernetes API server by the official client, with one-sentence errors."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from typing import Any

import urllib3
import websocket
import yaml
from kubernetes import client, config, stream, utils
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException, kube_config

from tf_detectorgan.cluster.answers import Later, exists, message, one_sentence, or_none
from tf_detectorgan.cluster.manifests import Resource
from tf_detectorgan.errors import InputError

JOB_LABEL = "batch.kubernetes.io/job-name"  # set on pods by the Job controller since Kubernetes 1.27
KEPT = ("PersistentVolumeClaim", "Service")  # an existing object is used
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
KUEUE = {"group": "kueue.x-k8s.io", "version": "v1beta1", "plural": "workloads"}
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"  # Kueue starts and stops Jobs with this label
FAILED = "has failed: "
OWNER_LABEL = "kueue.x-k8s.io/job-uid"  # on the Workload that Kueue creates for a Job


class Cluster:
    """A namespace of a cluster in kubectl's configuration."""

    def __init__(self, api: client.ApiClient, namespace: str):
        self.api, self.namespace = api, namespace
        self.batch: Any = client.BatchV1Api(api)
        self.core: Any = client.CoreV1Api(api)

    def create(self, resource: Resource) -> str:
        """Creates a resource, replaces a ConfigMap or keeps a claim or Service; returns the verb.

        Raises:
          InputError: the server rejects the resource.
        """
        kind, name = resource["kind"], resource["metadata"]["name"]
        with one_sentence(f"{kind} {name}"):
            try:
                utils.create_from_dict(
                    self.api, resource, namespace=self.namespace, field_validation="Strict"
                )
            except utils.FailToCreateError as failed:
                error = failed.api_exceptions[0]
                if not exists(error):
                    raise error from failed
                if kind == "ConfigMap":
                    self.core.replace_namespaced_config_map(name, self.namespace, resource)
                    return "replaced"
                if kind in KEPT:
                    return "kept"
                raise error from failed
        return "created"

    def find_job(self, name: str) -> Any:
        """Returns the Job, or None."""
        return or_none(f"Job {name}", self.batch.read_namespaced_job, name, self.namespace)

    def job(self, name: str) -> Any:
        with one_sentence(f"Job {name}"):
            return self.batch.read_namespaced_job(name, self.namespace)

    def pods(self, name: str) -> list[Any]:
        """Returns the pods of the Job, sorted by name."""
        with one_sentence(f"pods of {name}"):
            found = self.core.list_namespaced_pod(self.namespace, label_selector=f"{JOB_LABEL}={name}").items
        return sorted(found, key=lambda pod: pod.metadata.name)

    def resources(self, name: str) -> list[Resource]:
        """Returns the Job and the ConfigMaps that its pods mount, in the form of a manifest."""
        job = self.api.sanitize_for_serialization(self.job(name)) | {"kind": "Job"}
        volumes = job["spec"]["template"]["spec"].get("volumes", [])
        found = [job]
        for file in (v["configMap"]["name"] for v in volumes if "configMap" in v):
            with one_sentence(f"ConfigMap {file}"):
                read = self.core.read_namespaced_config_map(file, self.namespace)
            found.append(self.api.sanitize_for_serialization(read) | {"kind": "ConfigMap"})
        return found

    def node_of(self, claim: str) -> str:
        """Returns the node that a volume is mounted on; "" if any node may mount it.

        Raises:
          InputError: the claim does not exist, or has no volume yet.
        """
        with one_sentence(f"PersistentVolumeClaim {claim}"):
            found = self.core.read_namespaced_persistent_volume_claim(claim, self.namespace)
        if found.status.phase != "Bound":
            raise InputError(f"PersistentVolumeClaim {claim} is {found.status.phase}: it has no volume yet")
        if {"ReadWriteMany", "ReadOnlyMany"} & set(found.status.access_modes or []):
            return ""
        with one_sentence("pods"):
            pods = self.core.list_namespaced_pod(self.namespace).items
        users = [pod for pod in pods if pod.status.phase == "Running" and claim in _claims(pod)]
        return users[0].spec.node_name if users else ""

    @contextlib.contextmanager
    def temporary(self, resource: Resource) -> Iterator[str]:
        """Creates a Pod, yields its name, and deletes it at the end, also after an error."""
        with one_sentence("Pod"):
            made = self.core.create_namespaced_pod(self.namespace, resource, field_validation="Strict")
        try:
            yield made.metadata.name
        finally:
            name = made.metadata.name  # the Pod may have been deleted with its node
            or_none(f"Pod {name}", self.core.delete_namespaced_pod, name, self.namespace)

    def why_pod_waits(self, name: str) -> str:
        """Returns the reason for which a Pod does not run yet, in one sentence; "" if it runs.

        Raises:
          InputError: the Pod has ended.
        """
        with one_sentence(f"Pod {name}"):
            pod = self.core.read_namespaced_pod(name, self.namespace)
        if pod.status.phase in ("Failed", "Succeeded"):
            raise InputError(f"Pod {name} has ended: {pod.status.message or pod.status.phase}")
        return self._pod_waits(pod)

    def execute(self, pod: str, command: list[str]) -> websocket.WebSocket:
        """Runs a command in a Pod. Input and output are frames, whose first byte is the channel."""
        with one_sentence(f"exec in {pod}"):
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
        """Suspends a Job, whose pods then receive SIGTERM, or resumes it with new pods.

        Raises:
          InputError: the Job has ended, or Kueue manages it and its Workload cannot be changed.
        """
        job = self.job(name)
        if how := ended(job):
            raise InputError(
                f"Job {name} {how}: it can be neither stopped nor resumed; {self.to_delete(name)} and submit "
                "it again (runs stay on their volume, finished phases are not repeated)"
            )
        if QUEUE_LABEL in (job.metadata.labels or {}):
            self._activate(job, not suspended)
            return
        with one_sentence(f"Job {name}"):
            self.batch.patch_namespaced_job(name, self.namespace, {"spec": {"suspend": suspended}})

    def to_delete(self, name: str) -> str:
        """Returns the command that deletes the Job."""
        return f"kubectl delete job {name} -n {self.namespace}"

    def _activate(self, job: Any, active: bool) -> None:
        """Changes the Workload of a Job: Kueue resets `suspend` of the Job itself to match the Workload."""
        custom: Any = client.CustomObjectsApi(self.api)
        change = {"spec": {"active": active}}
        try:
            owner = f"{OWNER_LABEL}={job.metadata.uid}"
            found = custom.list_namespaced_custom_object(
                namespace=self.namespace, label_selector=owner, **KUEUE
            )["items"]
            for workload in found:
                custom.patch_namespaced_custom_object(
                    namespace=self.namespace,
                    name=workload["metadata"]["name"],
                    body=change,
                    _content_type="application/merge-patch+json",
                    **KUEUE,
                )
            why = "" if found else "it has none"
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            why = message(error) if isinstance(error, ApiException) else str(error)
        if why:
            raise InputError(
                f"Job {job.metadata.name}: Kueue manages its queue {job.metadata.labels[QUEUE_LABEL]}; its "
                f"Workload cannot be changed ({why}); kubectl get workloads -n {self.namespace} lists it, "
                f"then kubectl patch workload NAME -n {self.namespace} --type=merge -p '{json.dumps(change)}'"
            )

    def why_waiting(self, name: str, one_is_enough: bool = False) -> str:
        """Returns a sentence on why not all pods run, or not even one; "" if they run or ran."""
        job = self.job(name)
        if how := ended(job):
            return how if how.startswith(FAILED) else ""
        if job.spec.suspend:
            return "suspended: waits for its queue, or for launch resume"
        pods = [pod for pod in self.pods(name) if pod.status.phase in ("Pending", "Running")]
        if one_is_enough and any(pod.status.phase == "Running" for pod in pods):
            return ""
        expected = _expected_pods(job)
        if len(pods) < expected:
            # The error of creating pods, from the Job controller: quota, Pod Security, missing accounts.
            missing = f"{expected - len(pods)} of {expected} pods missing" if pods else "no pods"
            rejected = self._last_warning("Job", job.metadata.uid)
            return f"{missing}: {rejected}" if rejected else f"{missing} yet" if not pods else missing
        return next((reason for pod in pods if (reason := self._pod_waits(pod))), "")

    def _pod_waits(self, pod: Any) -> str:
        """Returns why a pod waits: no node, or no image or volume; "" if it does not wait."""
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
            if waiting:  # only an event reports a volume on another node
                why = waiting.message or self._last_warning("Pod", pod.metadata.uid)
                return f"{name}: {waiting.reason}" + (f", {why}" if why else "")
        return f"{name} is pending"

    def _last_warning(self, kind: str, uid: str) -> str:
        """Returns the newest Warning on this object, by its uid and not its name; "" if there is none."""
        selector = f"involvedObject.kind={kind},involvedObject.uid={uid},type=Warning"
        try:
            events = self.core.list_namespaced_event(self.namespace, field_selector=selector).items
        except (ApiException, urllib3.exceptions.HTTPError):  # reading events may be forbidden
            return ""
        when = [str(e.last_timestamp or e.event_time or e.metadata.creation_timestamp) for e in events]
        return max(zip(when, (e.message for e in events), strict=True))[1] if events else ""

    def log(self, pod: str, follow: bool = False, since: int = 0) -> Iterator[str]:
        """Yields lines of a Pod's log, of the last `since` seconds if given. CR ends a line, too.

        Raises:
          Later: the container does not run yet, or the connection was lost.
          InputError: the server rejects the request.
        """
        last = {"since_seconds": since} if since else {}
        with one_sentence(f"log of {pod}"):
            try:
                log = self.core.read_namespaced_pod_log(
                    pod, self.namespace, follow=follow, _preload_content=False, **last
                )
            except ApiException as error:
                if error.status == 400:  # "is waiting to start"
                    raise Later(f"log of {pod}: {message(error)}") from error
                raise
            rest = b""
            for chunk in log.stream():
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                yield from (line.decode(errors="replace") for line in lines if line)
            if rest:
                yield rest.decode(errors="replace")

    def phase(self, pod: str) -> str:
        """Returns Pending, Running, Succeeded or Failed; "" if the Pod does not exist."""
        found: Any = or_none(f"Pod {pod}", self.core.read_namespaced_pod, pod, self.namespace)
        return found.status.phase if found else ""


def ended(job: Any) -> str:
    """Returns how a Job has ended: "is complete" or "has failed: REASON"; "" before its end."""
    for condition in job.status.conditions or []:
        if condition.status == "True" and condition.type == "Failed":
            return f"{FAILED}{condition.message or condition.reason}"
        if condition.status == "True" and condition.type == "Complete":
            return "is complete"
    return ""


def exit_codes(pod: Any) -> list[int]:
    """Returns the exit codes of a Pod's containers that have ended."""
    states = [container.state.terminated for container in pod.status.container_statuses or []]
    return [state.exit_code for state in states if state]


def _expected_pods(job: Any) -> int:
    """Returns the expected number of pods: the parallelism, or fewer if fewer completions are left."""
    spec, status = job.spec, job.status
    at_a_time = 1 if spec.parallelism is None else spec.parallelism
    done = status.succeeded or 0
    if spec.completions is None:
        return 0 if done else at_a_time
    return min(at_a_time, spec.completions - done - _count(status.failed_indexes or ""))


def _count(indexes: str) -> int:
    """Returns the number of completion indexes in a text such as "1,3-5"."""
    ranges = [part.split("-") for part in indexes.split(",") if part]
    return sum(int(part[-1]) - int(part[0]) + 1 for part in ranges)


def _claims(pod: Any) -> list[str]:
    volumes = pod.spec.volumes or []
    return [v.persistent_volume_claim.claim_name for v in volumes if v.persistent_volume_claim]


def connect(context: str, namespace: str) -> Cluster:
    """Returns a namespace of a cluster in kubectl's configuration.

    Args:
      context: context of the configuration; "": the current one.
      namespace: the namespace; "": that of the context.

    Raises:
      InputError: the configuration or the context does not exist, or cannot be read.
    """
    try:
        contexts, active = config.list_kube_config_contexts()
        api = config.new_client_from_config(context=context or None)
    except ConfigException as error:
        raise InputError(f"kubectl's configuration: {error}") from error
    except (yaml.YAMLError, OSError, LookupError, TypeError, ValueError, AttributeError) as error:
        why = " ".join(str(error).split())
        places = kube_config.KUBE_CONFIG_DEFAULT_LOCATION.replace(os.pathsep, ", ")
        raise InputError(f"kubectl's configuration, {places}: cannot be read ({why})") from error
    chosen = next((c for c in contexts if c["name"] == context), active)
    return Cluster(api, namespace or chosen["context"].get("namespace", "default"))
