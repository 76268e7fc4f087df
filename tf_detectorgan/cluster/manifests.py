"""The manifests of k8s/ with a user's image, flags, GPUs, workers and queue in them, as dictionaries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tf_detectorgan.errors import InputError

FOLDER = Path(__file__).with_name("templates")  # k8s/, as packed by setup.py
RUNS = "/runs"  # where pods mount the volume of runs
OF_GPU_NODES = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}  # their usual taint
Resource = dict[str, Any]


def read(name: str) -> list[Resource]:
    """The resources of a template, `train-nih` say, or of a file.

    Raises:
      InputError: there is neither, or it is not YAML with exactly one Job.
    """
    file = FOLDER / f"{name}.yaml" if re.fullmatch(r"[a-z0-9-]+", name) else Path(name)
    if not file.is_file():
        jobs = (path.stem for path in FOLDER.glob("*.yaml") if "kind: Job" in path.read_text("utf-8"))
        known = ", ".join(sorted(jobs))
        raise InputError(f"--manifest={name}: no such file, and none of {known}")
    try:
        resources = [
            resource for resource in yaml.safe_load_all(file.read_text(encoding="utf-8")) if resource
        ]
        count = sum(resource["kind"] == "Job" for resource in resources)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{file}: is no manifest ({error})") from error
    if count != 1:
        raise InputError(f"{file}: holds {count} Jobs; one is wanted")
    return resources


def job_of(resources: list[Resource]) -> Resource:
    """The one Job."""
    return next(resource for resource in resources if resource["kind"] == "Job")


def runs_claim(pod: Resource) -> str:
    """The claim of the volume that a Job's pods mount at RUNS.

    Raises:
      InputError: they mount none there.
    """
    names = [m["name"] for m in pod["containers"][0].get("volumeMounts", []) if m["mountPath"] == RUNS]
    for volume in pod.get("volumes", []):
        if volume["name"] in names and "persistentVolumeClaim" in volume:
            return volume["persistentVolumeClaim"]["claimName"]
    raise InputError(f"its pods mount no claim at {RUNS}; name one by --claim")


def written_path(resources: list[Resource]) -> str:
    """Where a Job writes on the volume of runs: --run_dir or --out, of its arguments or of its flagfile.

    Raises:
      InputError: neither is there.
    """
    container = job_of(resources)["spec"]["template"]["spec"]["containers"][0]
    files = [text for r in resources if r["kind"] == "ConfigMap" for text in r.get("data", {}).values()]
    lines = [line for text in (*files, *container.get("args", [])) for line in text.splitlines()]
    found = [match[1] for line in lines if (match := re.match(rf"--(?:run_dir|out)={RUNS}/(\S+)", line))]
    if not found:
        raise InputError(f"no flag of the Job says where under {RUNS} it writes; name the folder by --path")
    return found[-1]


def fill(
    resources: list[Resource], *, image: str, flags: str, gpus: int, workers: int, queue: str
) -> list[Resource]:
    """Changes `resources` where something is given ("" or 0: as in the manifest) and returns them.

    Args:
      image: of all containers.
      flags: lines of a flagfile; they replace the manifest's flags of the same name and are added otherwise.
      gpus: of each pod.
      workers: pods that train together; only where the manifest has a Service for them.
      queue: of Kueue, which then starts the Job.

    Raises:
      InputError: the manifest has no place for what is given.
    """
    job = job_of(resources)
    spec = job["spec"]
    pod = spec["template"]["spec"]
    if gpus and OF_GPU_NODES not in pod.setdefault("tolerations", []):
        pod["tolerations"].append(OF_GPU_NODES)
    for container in pod["containers"]:
        if image:
            container["image"] = image
        if gpus:
            container["resources"].setdefault("limits", {})["nvidia.com/gpu"] = gpus
        for amounts in container["resources"].values():  # the client takes no numbers for quantities
            amounts.update({name: str(amount) for name, amount in amounts.items()})
    if workers:
        if not any(resource["kind"] == "Service" for resource in resources):
            raise InputError(f"--workers={workers}: this manifest has no Service; train-nih-multiworker has")
        spec["completions"] = spec["parallelism"] = workers
        flags += f"\n--workers={workers}\n"
    if queue:
        job["metadata"].setdefault("labels", {})["kueue.x-k8s.io/queue-name"] = queue
        spec["suspend"] = True  # Kueue lets it go
    if flags.strip():
        _merge(resources, flags)
    return resources


def _merge(resources: list[Resource], flags: str) -> None:
    """Puts lines of a flagfile into the one file of the one ConfigMap."""
    maps = [resource for resource in resources if resource["kind"] == "ConfigMap"]
    if len(maps) != 1 or len(maps[0]["data"]) != 1:
        raise InputError("--train_flags: the manifest has no ConfigMap with one flagfile to put them in")
    data = maps[0]["data"]
    ((file, text),) = data.items()
    lines = [line for line in (*text.splitlines(), *flags.splitlines()) if line.strip() and line[0] != "#"]
    data[file] = "\n".join({line.split("=")[0]: line for line in lines}.values()) + "\n"
