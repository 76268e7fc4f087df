"""The manifests of k8s/ with a user's image, flags, GPUs, workers and queue in them, as dictionaries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tf_detectorgan.errors import InputError

FOLDER = Path(__file__).with_name("templates")  # k8s/, as packed by setup.py
RUNS = "/runs"  # where pods mount the volume of runs
GPU = "nvidia.com/gpu"
WORKER_SERVICE = "WORKER_SERVICE"  # the variable by which pods that train together find each other
BATCHES = {"gan_batch": 4, "detector_batch": 8}  # defaults of `train`, whose import would bring TensorFlow
OF_GPU_NODES = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}  # their usual taint
Resource = dict[str, Any]


def read(name: str) -> list[Resource]:
    """The resources of a template, `train-nih` say, or of a file.

    Raises:
      InputError: there is neither, or it is not YAML with exactly one Job, or something has no name.
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
        raise InputError(f"{file}: is no manifest ({error!r})") from error
    if len(jobs) != 1 or bare:
        raise InputError(f"{file}: holds {len(jobs) - len(bare)} Jobs with containers; one is wanted")
    if nameless:
        raise InputError(
            f"{file}: its {nameless[0]} has no metadata.name, by which it is found again; "
            "write one in place of generateName"
        )
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
    given = _flags(resources)
    for place in (given.get("out", ""), given.get("run_dir", "")):  # reproduce has --out, train --run_dir
        if place.startswith(f"{RUNS}/"):
            return place.removeprefix(f"{RUNS}/")
    raise InputError(f"no flag of the Job says where under {RUNS} it writes; name the folder by --path")


def _flags(resources: list[Resource]) -> dict[str, str]:
    """Values of the Job's flags by name: of its flagfiles, and of its arguments, which win."""
    files = [text for r in resources if r["kind"] == "ConfigMap" for text in (r.get("data") or {}).values()]
    arguments = job_of(resources)["spec"]["template"]["spec"]["containers"][0].get("args") or []
    lines = [line for text in (*files, *arguments) for line in text.splitlines()]
    return {m[1]: m[2] for line in lines if (m := re.match(r"--(\w+)=(\S*)", line))}


def require_absolute(flag: str, text: str, names: tuple[str, ...]) -> None:
    """A pod begins in /runs: a relative place of a desktop's flagfile is neither there nor on a volume.

    Raises:
      InputError: a flag of `names` in the flagfile `text`, which the user gave by `flag`, is relative.
    """
    for name, place in re.findall(rf"^--({'|'.join(names)})=(\S+)", text, re.MULTILINE):
        if not place.startswith("/"):
            raise InputError(
                f"{flag}: --{name}={place} is relative; write where the pod's volumes have it, such as "
                f"/data/{Path(place).name} for data and {RUNS}/{Path(place).name} for a run"
            )


def check_devices(resources: list[Resource]) -> None:
    """Compares a Job's flags with its number of pods and GPUs before anything is submitted.

    Raises:
      InputError: --workers is not the number of pods that train together, or a batch is not divisible by
        pods times GPUs of each: GPUs of a single pod would stay idle, several pods would not train.
    """
    given, spec = _flags(resources), job_of(resources)["spec"]
    container = spec["template"]["spec"]["containers"][0]
    together = any(variable["name"] == WORKER_SERVICE for variable in container.get("env") or [])
    pods = spec.get("completions", 1) if together else 1
    workers = int(given.get("workers", 1))
    if workers != pods:
        raise InputError(
            f"--workers={workers} is in the Job's flags, and it has {pods} pods that train together; give "
            "launch --workers=N, which changes both, and leave the flag out of --train_flags"
        )
    gpus = int((container.get("resources", {}).get("limits") or {}).get(GPU, 0))
    devices = workers * max(gpus, 1)
    for name, default in BATCHES.items():
        size = int(given.get(name, default))
        if size % devices and given.get("distribution") != "one":
            raise InputError(
                f"--{name}={size} is not divisible by {devices} devices ({workers} pods with "
                f"{gpus} GPUs each); give --{name}={-(-size // devices) * devices}, or other numbers of them"
            )


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
            amounts = container.setdefault("resources", {})
            amounts.setdefault("limits", {})[GPU] = gpus
            if GPU in amounts.get("requests", {}):  # they must be equal
                amounts["requests"][GPU] = gpus
    _quantities(resources)
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


def _quantities(node: Any) -> None:
    """Makes numbers that are quantities text: kubectl takes them, the client does not."""
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if key in ("requests", "limits") and isinstance(value, dict):
            value.update({name: str(amount) for name, amount in value.items()})
        elif key == "sizeLimit":
            node[key] = str(value)
        elif isinstance(value, dict | list):
            _quantities(value)


def _merge(resources: list[Resource], flags: str) -> None:
    """Puts lines of a flagfile into the one file of the one ConfigMap."""
    maps = [resource for resource in resources if resource["kind"] == "ConfigMap"]
    if len(maps) != 1 or len(maps[0].get("data", {})) != 1:
        raise InputError("--train_flags: the manifest has no ConfigMap with one flagfile to put them in")
    data = maps[0]["data"]
    ((file, text),) = data.items()
    lines = [line for line in (*text.splitlines(), *flags.splitlines()) if line.strip() and line[0] != "#"]
    data[file] = "\n".join({line.split("=")[0]: line for line in lines}.values()) + "\n"
