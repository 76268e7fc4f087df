"""Rules of the API server and of Pod Security *restricted* that a JSON schema does not contain."""

import re
from decimal import Decimal

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
PORT = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
UNITS = {None: 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
ENUMS = {
    "restartPolicy": {"Always", "Never", "OnFailure"},
    "imagePullPolicy": {"Always", "Never", "IfNotPresent"},
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "action": {"Ignore", "FailJob", "FailIndex", "Count"},
    "operator": {"In", "NotIn", "Exists", "Equal"},
    "medium": {"", "Memory"},
    "fsGroupChangePolicy": {"OnRootMismatch", "Always"},
    "status": {"True", "False", "Unknown"},
    "accessModes": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
}
VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected", "downwardAPI"}
RECOMMENDED = {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component", "part-of")}


def quantity(text):
    """Returns a Kubernetes quantity such as "500m" or "16Gi" as a number; None if it is not a quantity."""
    found = QUANTITY.fullmatch(str(text))
    return found and Decimal(found[1]) * UNITS[found[2]]


def problems(resource):
    """Returns the violations of a resource as sentences."""
    found = list(_values(resource))
    name = resource["metadata"].get("name") or resource["metadata"]["generateName"].rstrip("-")
    if not NAME.fullmatch(name):
        found.append(f"name {name!r}")
    if RECOMMENDED - resource["metadata"].get("labels", {}).keys():
        found.append("recommended labels are missing")
    if resource["kind"] == "Job":
        found += _job(resource["spec"])
    if resource["kind"] in ("Job", "Deployment"):
        found += _pod(resource["spec"]["template"]["spec"])
    if resource["kind"] == "Pod":
        found += _pod(resource["spec"])
    if resource["kind"] == "Deployment":
        wanted = resource["spec"]["selector"]["matchLabels"].items()
        if not wanted <= resource["spec"]["template"]["metadata"]["labels"].items():
            found.append("the selector does not match the template")
    return found


def _values(node, path=""):
    """Yields invalid enum values and quantities at any depth."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        here = f"{path}.{key}"
        if isinstance(value, dict | list):
            yield from _values(value, here)
        for one in value if isinstance(value, list) else [value]:
            if key in ENUMS and not isinstance(one, dict) and one not in ENUMS[key]:
                yield f"{here}: {one!r} is none of {sorted(ENUMS[key])}"
        if isinstance(value, dict | list):
            continue
        if (key == "sizeLimit" or re.search(r"\.(requests|limits)$", path)) and quantity(value) is None:
            yield f"{here}: {value!r} is no quantity"


def _job(spec):
    pod, policy = spec["template"]["spec"], spec.get("podFailurePolicy")
    if policy and pod.get("restartPolicy") != "Never":
        yield "podFailurePolicy needs restartPolicy Never"
    if policy and spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield "podFailurePolicy needs podReplacementPolicy Failed"
    names = {container["name"] for container in pod["containers"]}
    for rule in (policy or {}).get("rules", []):
        codes = rule.get("onExitCodes")
        if ("onPodConditions" in rule) == (codes is not None):
            yield "a rule must have either exit codes or conditions"
        if codes and codes.get("containerName", pod["containers"][0]["name"]) not in names:
            yield f"rule for a container {codes['containerName']!r} that does not exist"
        if rule["action"] == "FailIndex" and "backoffLimitPerIndex" not in spec:
            yield "FailIndex needs backoffLimitPerIndex"
    if "backoffLimitPerIndex" in spec and spec.get("completionMode") != "Indexed":
        yield "backoffLimitPerIndex needs completionMode Indexed"
    if spec.get("completionMode") == "Indexed" and not spec.get("completions"):
        yield "completionMode Indexed needs completions"


def _pod(spec):
    if spec.get("automountServiceAccountToken") is not False:
        yield "a token of the API server is mounted"
    if spec.get("enableServiceLinks") is not False:
        yield "a Service named worker would set WORKER_PORT"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is not restricted"
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
        yield "runs as root"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccomp is not RuntimeDefault"
    volumes = {}
    containers = spec["containers"] + spec.get("initContainers", [])
    yield from _names(containers, spec.get("volumes", []))
    for volume in spec.get("volumes", []):
        kinds = volume.keys() - {"name"}
        if len(kinds) != 1 or not kinds <= VOLUMES:
            yield f"volume {volume['name']!r} is {sorted(kinds)}"
        if volume["name"] in volumes:
            yield f"two volumes {volume['name']!r}"
        volumes[volume["name"]] = volume
    mounted = set()
    for container in containers:
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
        yield from _container(container, volumes)
    if unused := volumes.keys() - mounted:
        yield f"a volume is not mounted: {sorted(unused)}"


def _names(containers, volumes):
    for named in containers + volumes:
        if not NAME.fullmatch(named["name"]):
            yield f"container or volume named {named['name']!r}"
    if len({container["name"] for container in containers}) != len(containers):
        yield "two containers of one name"


def _container(container, volumes):
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield "may gain privileges"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "may write to the root file system"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield "does not drop all capabilities"
    ports = [port["name"] for port in container.get("ports", [])]
    if len(ports) != len(set(ports)) or not all(PORT.fullmatch(name) for name in ports):
        yield f"port names {ports}"
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if len(paths) != len(set(paths)) or "/tmp" not in paths:
        yield f"mount paths {paths}"
    for mount in container.get("volumeMounts", []):
        if mount["name"] not in volumes:
            yield f"mounts a volume {mount['name']!r} that does not exist"
    requests, limits = (container.get("resources", {}).get(k, {}) for k in ("requests", "limits"))
    if not {"cpu", "memory"} <= requests.keys() or "memory" not in limits:
        yield "CPU or memory has no request, or memory has no limit"
    for key in requests.keys() & limits.keys():
        requested, limit = quantity(requests[key]), quantity(limits[key])
        if requested is not None and limit is not None and requested > limit:
            yield f"{key}: request {requests[key]} is above limit {limits[key]}"
    if "nvidia.com/gpu" in requests and requests["nvidia.com/gpu"] != limits.get("nvidia.com/gpu"):
        yield "the request for GPUs differs from the limit"
