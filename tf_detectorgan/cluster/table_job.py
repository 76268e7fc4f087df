"""Adapts the manifest reproduce-table1 to any table, flagfile, seeds and claims."""

from __future__ import annotations

from typing import Any

from tf_detectorgan.cluster.manifests import Resource, job_of
from tf_detectorgan.errors import InputError

TEMPLATE = "reproduce-table1"
DATA = "/data"  # mount path of prepared data


def name_of(table: str, gather: bool = False) -> str:
    """Returns the name of the Job, with letters, digits and "-" only."""
    return f"reproduce-table{table.replace('_', '-')}" + ("-gather" if gather else "")


def fill(
    resources: list[Resource],
    *,
    table: str,
    config: str,
    seeds: tuple[int, ...],
    cells: int,
    parallel: int,
    gather: bool,
    memory: str,
    runs_claim: str,
    data_claim: str,
) -> list[Resource]:
    """Changes the resources of the template in place and returns them. Each completion index is a cell.

    Args:
      resources: those of the template.
      table: name of the table in `reproduce`.
      config: text of the flagfile of `train`; "": that of the template.
      seeds: seeds of every arm.
      cells: number of arms times number of seeds.
      parallel: number of concurrent pods.
      gather: one pod instead, which gathers the cells and writes the table.
      memory: memory of each pod; "": as in the template.
      runs_claim: an existing claim; "": that of the template, which is created.
      data_claim: claim to mount read-only at DATA; "": none.

    Raises:
      InputError: --data_dir of the flagfile is on a volume that is not mounted.
    """
    job = job_of(resources)
    configmap = next(resource for resource in resources if resource["kind"] == "ConfigMap")
    pod = job["spec"]["template"]["spec"]
    _rename((configmap, job, job["spec"]["template"]), name_of(table, gather), name_of(table))
    ((file, text),) = configmap["data"].items()
    configmap["data"] = {file: config or text}
    if f"--data_dir={DATA}/" in config and not data_claim:
        raise InputError(f"--config: --data_dir is in {DATA}; give the claim of its volume by --data_claim")
    container = pod["containers"][0]
    container["args"] = [
        f"--table={table}",
        f"--config=/config/{file}",
        f"--out=/runs/table{table}",
        f"--seeds={','.join(map(str, seeds))}",
        *([] if gather else ["--completion_index=$(CELL)"]),
    ]
    if gather:
        _of_one_pod(job["spec"])
    else:
        job["spec"] |= {
            "completions": cells,
            "parallelism": parallel,
            "maxFailedIndexes": cells,
        }
    if memory:
        container["resources"] = {
            kind: amounts | {"memory": memory} for kind, amounts in container["resources"].items()
        }
    _mount(pod, configmap["metadata"]["name"], runs_claim, data_claim)
    return [r for r in resources if r["kind"] != "PersistentVolumeClaim" or not runs_claim]


def _rename(named: tuple[Resource, Resource, Resource], instance: str, config: str) -> None:
    """Sets names and labels; both Jobs of a table share one ConfigMap."""
    configmap, job, _ = named
    job["metadata"]["name"], configmap["metadata"]["name"] = instance, config
    for resource in named:
        labels = resource["metadata"]["labels"]
        labels["app.kubernetes.io/instance"] = config if resource is configmap else instance


def _of_one_pod(spec: dict[str, Any]) -> None:
    """Changes an Indexed Job into a Job of one pod."""
    for key in ("completionMode", "completions", "parallelism", "backoffLimitPerIndex", "maxFailedIndexes"):
        del spec[key]
    spec["backoffLimit"] = 3
    del spec["template"]["spec"]["containers"][0]["env"]
    for rule in spec["podFailurePolicy"]["rules"]:
        rule["action"] = rule["action"].replace("FailIndex", "FailJob")


def _mount(pod: Resource, config: str, runs_claim: str, data_claim: str) -> None:
    for volume in pod["volumes"]:
        if "configMap" in volume:
            volume["configMap"]["name"] = config
        if volume["name"] == "runs" and runs_claim:
            volume["persistentVolumeClaim"]["claimName"] = runs_claim
    if data_claim:
        pod["volumes"].append({"name": "data", "persistentVolumeClaim": {"claimName": data_claim}})
        mount = {"name": "data", "mountPath": DATA, "readOnly": True}
        pod["containers"][0]["volumeMounts"].append(mount)
