"""Reads the manifests of k8s/ as dictionaries, and fills in image, flags, GPUs, workers and queue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tf_detectorgan.errors import InputError

FOLDER = Path(__file__).with_name("templates")  # k8s/, packed by setup.py
RUNS = "/runs"  # where pods mount the volume of runs
GPU = "nvidia.com/gpu"
WORKER_SERVICE = "WORKER_SERVICE"  # variable with the Service of pods that train together
BATCHES = {"gan_batch": 4, "detector_batch": 8}  # defaults of `train`, not imported: it needs TensorFlow
OF_GPU_NODES = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}  # their usual taint
Resource = dict[str, Any]


def read(name: str) -> list[Resource]:
    """Returns the resources of a template, such as `train-nih`, or of a file.

    Raises:
      InputError: neither exists, it is not YAML with exactly one Job, or a resource has no name.
    """
    file = FOLDER / f"{name}.yaml" if re.fullmatch(r"[a-z0-9-]+", name) else Path(name)
    if not file.is_file():
        names = (path.stem for path in FOLDER.glob("*.yaml") if "kind: Job" in path.read_text("utf-8"))
        known = ", ".join(sorted(names))
        raise InputError(f"--manifest={name}: no such file, and none of {known}")
    try:
        resources = [
            resource for resource in yaml.safe_load_all(file.read_text(encoding="utf-8")) if resource
        ]
        jobs = [resource for resource in resources if resource["kind"] == "Job"]
        nameless = [r["kind"] for r in resources if not r["metadata"].get("name")]
        bare = [job for job in jobs if not job["spec"]["template"]["spec"]["containers"]]
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file}: not a manifest ({error!r})") from error
    if len(jobs) != 1 or bare:
        raise InputError(f"{file}: contains {len(jobs) - len(bare)} Jobs with containers; one is needed")
    if nameless:
        raise InputError(
            f"{file}: its {nameless[0]} has no metadata.name, which launch needs to find it; "
            "replace generateName by name"
        )
    return resources


def job_of(resources: list[Resource]) -> Resource:
    """Returns the Job."""
    return next(resource for resource in resources if resource["kind"] == "Job")


def runs_claim(pod: Resource) -> str:
    """Returns the claim of the volume that a Job's pods mount at RUNS.

    Raises:
      InputError: the pods mount no claim at RUNS.
    """
    names = [m["name"] for m in pod["containers"][0].get("volumeMounts", []) if m["mountPath"] == RUNS]
    for volume in pod.get("volumes", []):
        if volume["name"] in names and "persistentVolumeClaim" in volume:
            return volume["persistentVolumeClaim"]["claimName"]
    raise InputError(f"the pods of the Job mount no claim at {RUNS}; give one by --claim")


def written_path(resources: list[Resource]) -> str:
    """Returns the output folder of a Job on the volume of runs: its --run_dir or --out.

    Raises:
      InputError: neither flag is in its arguments or its flagfile.
    """
    given = _flags(resources)
    for place in (given.get("out", ""), given.get("run_dir", "")):  # reproduce has --out, train --run_dir
        if place.startswith(f"{RUNS}/"):
            return place.removeprefix(f"{RUNS}/")
    raise InputError(f"the Job has no --out or --run_dir under {RUNS}; give the folder by --path")


def _flags(resources: list[Resource]) -> dict[str, str]:
    """Returns the values of the Job's flags by name; its arguments override its flagfiles."""
    files = [text for r in resources if r["kind"] == "ConfigMap" for text in (r.get("data") or {}).values()]
    arguments = job_of(resources)["spec"]["template"]["spec"]["containers"][0].get("args") or []
    lines = [line for text in (*files, *arguments) for line in text.splitlines()]
    return {m[1]: m[2] for line in lines if (m := re.match(r"--(\w+)=(\S*)", line))}


def require_absolute(flag: str, text: str, names: tuple[str, ...]) -> None:
    """Rejects relative paths in a flagfile: a pod has them neither in /runs nor on a volume.

    Raises:
      InputError: a flag of `names` in the flagfile `text`, which was given by `flag`, is relative.
    """
    for name, place in re.findall(rf"^--({'|'.join(names)})=(\S+)", text, re.MULTILINE):
        if not place.startswith("/"):
            raise InputError(
                f"{flag}: --{name}={place} is relative; give its absolute path in the pod, such as "
                f"/data/{Path(place).name} for data and {RUNS}/{Path(place).name} for a run"
            )


def check_devices(resources: list[Resource]) -> None:
    """Compares a Job's flags with its number of pods and GPUs before anything is submitted.

    Raises:
      InputError: --workers is not the number of pods that train together, or a batch is not divisible by
        the number of all GPUs: a single pod would leave GPUs idle, several pods would fail.
    """
    given, spec = _flags(resources), job_of(resources)["spec"]
    container = spec["template"]["spec"]["containers"][0]
    together = any(variable["name"] == WORKER_SERVICE for variable in container.get("env") or [])
    pods = spec.get("completions", 1) if together else 1
    workers = int(given.get("workers", 1))
    if workers != pods:
        raise InputError(
            f"--workers={workers} is in the Job's flags, but it has {pods} pods that train together; give "
            "launch --workers=N, which changes both, and remove the flag from --train_flags"
        )
    gpus = int((container.get("resources", {}).get("limits") or {}).get(GPU, 0))
    devices = workers * max(gpus, 1)
    for name, default in BATCHES.items():
        size = int(given.get(name, default))
        if size % devices and given.get("distribution") != "one":
            raise InputError(
                f"--{name}={size} is not divisible by {devices} devices ({workers} pods with "
                f"{gpus} GPUs each); give --{name}={-(-size // devices) * devices}, or fewer devices"
            )


def fill(
    resources: list[Resource], *, image: str, flags: str, gpus: int, workers: int, queue: str
) -> list[Resource]:
    """Fills in the given values, except "" and 0, in place; returns `resources`.

    Args:
      resources: of a manifest.
      image: image of all containers.
      flags: lines of a flagfile, which replace the manifest's flags of the same name or are added.
      gpus: number of GPUs of each pod.
      workers: number of pods that train together; the manifest must have a Service for them.
      queue: Kueue queue that starts the Job.

    Raises:
      InputError: the manifest has no Service for workers, or no flagfile for flags.
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
            amounts = container.setdefault("resources", {})
            amounts.setdefault("limits", {})[GPU] = gpus
            if GPU in amounts.get("requests", {}):  # they must be equal
                amounts["requests"][GPU] = gpus
    _quantities(resources)
    if workers:
        if not any(resource["kind"] == "Service" for resource in resources):
            raise InputError(f"--workers={workers}: this manifest has no Service; use train-nih-multiworker")
        spec["completions"] = spec["parallelism"] = workers
        flags += f"\n--workers={workers}\n"
    if queue:
        job["metadata"].setdefault("labels", {})["kueue.x-k8s.io/queue-name"] = queue
        spec["suspend"] = True  # Kueue resumes it
    if flags.strip():
        _merge(resources, flags)
    return resources


def _quantities(node: Any) -> None:
    """Converts numeric quantities to text: kubectl accepts numbers, the client does not."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ("requests", "limits") and isinstance(value, dict):
            value.update({name: str(amount) for name, amount in value.items()})
        elif key == "sizeLimit":
            node[key] = str(value)
        elif isinstance(value, dict | list):
            _quantities(value)


def _merge(resources: list[Resource], flags: str) -> None:
    """Merges lines of a flagfile into the only file of the only ConfigMap."""
    maps = [resource for resource in resources if resource["kind"] == "ConfigMap"]
    if len(maps) != 1 or len(maps[0].get("data", {})) != 1:
        raise InputError("--train_flags: the manifest must have one ConfigMap with one flagfile")
    data = maps[0]["data"]
    ((file, text),) = data.items()
    lines = [line for line in (*text.splitlines(), *flags.splitlines()) if line.strip() and line[0] != "#"]
    data[file] = "\n".join({line.split("=")[0]: line for line in lines}.values()) + "\n"
