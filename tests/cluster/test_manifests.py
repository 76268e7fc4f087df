"""Compares k8s/ with the schemas of eight Kubernetes versions, with further rules, and with our flags."""

import copy
import functools
import json
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import numpy as np
import pytest
import yaml

from tests.cluster import manifest_rules
from tf_detectorgan import prepare, reproduce
from tf_detectorgan.cluster import manifests, tf_config
from tf_detectorgan.config import parse
from tf_detectorgan.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from tf_detectorgan.experiments.tables import TABLES
from tf_detectorgan.models.detectors import DETECTORS
from tf_detectorgan.models.detectors.anchors import coverage
from tf_detectorgan.training.settings import Train

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted(path for path in (ROOT / "k8s").glob("*.yaml") if path.name != "kustomization.yaml")
JOBS = [path for path in MANIFESTS if "kind: Job" in path.read_text("utf-8")]
OVERLAYS = sorted(path.parent for path in (ROOT / "k8s/overlays").glob("*/kustomization.yaml"))
VERSIONS = [f"1.{minor}" for minor in range(30, 38)]
COMMANDS = {"prepare": prepare.Prepare, "reproduce": reproduce.Reproduce, "train": Train}


def resources(path):
    return [resource for resource in yaml.safe_load_all(path.read_text("utf-8")) if resource]


def find(path, kind):
    return next(resource for resource in resources(path) if resource["kind"] == kind)


def check(resource):
    """Raises an error for an invalid resource, also for a kind without a schema."""
    check_once(json.dumps(resource, sort_keys=True))


@functools.cache
def check_once(text):
    """Checks a resource once: claims are in several files, and eight schemas take time."""
    resource = json.loads(text)
    for version in VERSIONS:
        assert kubernetes_validate.validate(resource, version, strict=True) == version
    assert manifest_rules.problems(resource) == []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_is_valid(path):
    assert path.read_text("utf-8").startswith("# ")
    for resource in resources(path):
        check(resource)
        assert "namespace" not in resource["metadata"]


def test_claims_of_one_name_are_equal_in_all_files():
    """The file that is applied first creates the claim; the others must not request a different one."""
    claims, mounted = {}, set()
    for path in MANIFESTS:
        for resource in resources(path):
            if resource["kind"] == "PersistentVolumeClaim":
                assert claims.setdefault(resource["metadata"]["name"], resource) == resource, path.name
            elif resource["kind"] in ("Job", "Deployment", "Pod"):
                volumes = pod_spec(resource)["volumes"]
                files = {v["configMap"]["name"] for v in volumes if "configMap" in v}
                assert files <= {r["metadata"]["name"] for r in resources(path) if r["kind"] == "ConfigMap"}
                mounted |= {
                    v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v
                }
    assert mounted == claims.keys()


def pod_spec(job):
    return job["spec"] if job["kind"] == "Pod" else job["spec"]["template"]["spec"]


def container(job):
    return pod_spec(job)["containers"][0]


# A word of each rule's message, and a change of a valid Job that violates the rule.
FAULTS = {
    "token": lambda job: pod_spec(job).pop("automountServiceAccountToken"),
    "Service named": lambda job: pod_spec(job).pop("enableServiceLinks"),
    "root": lambda job: pod_spec(job)["securityContext"].update(runAsUser=0),
    "seccomp": lambda job: pod_spec(job)["securityContext"].pop("seccompProfile"),
    "hostPath": lambda job: pod_spec(job)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "is not mounted": lambda job: pod_spec(job)["volumes"].append({"name": "spare", "emptyDir": {}}),
    "does not exist": lambda job: container(job)["volumeMounts"].append(
        {"name": "absent", "mountPath": "/a"}
    ),
    "mount paths": lambda job: container(job)["volumeMounts"].append({"name": "tmp", "mountPath": "/tmp"}),
    "above limit": lambda job: container(job)["resources"]["requests"].update(memory="17Gi"),
    "no quantity": lambda job: container(job)["resources"]["limits"].update(memory="16GB"),
    "none of": lambda job: job["spec"].update(podReplacementPolicy="failed"),
    "ReadWriteOften": lambda job: job["spec"].update(accessModes=["ReadWriteMany", "ReadWriteOften"]),
    "'true' is none of": lambda job: job["spec"]["podFailurePolicy"]["rules"][0]["onPodConditions"][0].update(
        status="true"
    ),
    "restartPolicy Never": lambda job: pod_spec(job).update(restartPolicy="OnFailure"),
    "FailIndex": lambda job: job["spec"]["podFailurePolicy"]["rules"][2].update(action="FailIndex"),
    "name": lambda job: job["metadata"].update(name="Train_NIH"),
    "container or volume named 'Train'": lambda job: container(job).update(name="Train"),
    "container or volume named 'my_tmp'": lambda job: pod_spec(job)["volumes"][3].update(name="my_tmp"),
    "two containers": lambda job: pod_spec(job)["containers"].append(container(job)),
    "port names ['tensorboard-http']": lambda job: container(job).update(
        ports=[{"name": "tensorboard-http"}]
    ),
    "port names ['80']": lambda job: container(job).update(ports=[{"name": "80"}]),
    "labels": lambda job: job["metadata"].pop("labels"),
    "capabilities": lambda job: container(job)["securityContext"].pop("capabilities"),
    "root file": lambda job: container(job)["securityContext"].update(readOnlyRootFilesystem=False),
    "privileges": lambda job: container(job)["securityContext"].pop("allowPrivilegeEscalation"),
}


@pytest.mark.parametrize("word", FAULTS)
def test_each_rule_reports_its_violation(word):
    job = copy.deepcopy(find(ROOT / "k8s/train-nih.yaml", "Job"))
    assert manifest_rules.problems(job) == []
    FAULTS[word](job)
    assert any(word in problem for problem in manifest_rules.problems(job))


def name_or_all(overlays):
    return overlays[0].name if len(overlays) == 1 else "all"


@pytest.mark.parametrize("overlays", [*([path] for path in OVERLAYS), OVERLAYS], ids=name_or_all)
def test_overlays_are_valid(overlays, tmp_path):
    if not shutil.which("kubectl"):
        pytest.skip("no kubectl, whose kustomize builds overlays")
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    top = tmp_path / "k8s/kustomization.yaml"
    text = top.read_text("utf-8")
    for line in ("components:\n", *(f"- overlays/{overlay.name}\n" for overlay in overlays)):
        assert f"# {line}" in text  # the lines to uncomment
        text = text.replace(f"# {line}", line)
    plain, changed = built(ROOT / "k8s"), {}
    top.write_text(text, "utf-8")
    for resource in built(top.parent).values():
        check(resource)
        changed[resource["kind"], resource["metadata"]["name"]] = resource
    assert changed.keys() == plain.keys()
    spot = {("Deployment", "tensorboard")} if "spot" in (overlay.name for overlay in overlays) else set()
    assert {key for key in plain if plain[key] != changed[key]} == {("Job", "train-nih")} | spot
    job = changed["Job", "train-nih"]
    assert pod_spec(job)["tolerations"][0] == manifests.OF_GPU_NODES
    affinity = pod_spec(changed["Deployment", "tensorboard"])["affinity"]["podAffinity"]
    (wanted,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]
    pods = job["spec"]["template"]["metadata"]["labels"]
    assert wanted["labelSelector"]["matchLabels"].items() <= pods.items()
    if overlays == OVERLAYS:  # no overlay reverts another
        assert len(pod_spec(job)["nodeSelector"]) == len(pod_spec(job)["tolerations"]) == 2
        assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]
        assert "suspend" not in job["spec"]  # if applied again, it would stop a Job that Kueue has started


def built(directory):
    done = subprocess.run(["kubectl", "kustomize", directory], capture_output=True, text=True, check=True)
    return {(r["kind"], r["metadata"]["name"]): r for r in yaml.safe_load_all(done.stdout)}


def flagfile(path):
    return flagfile_lines(resources(path))


def flagfile_lines(manifest):
    ((_, text),) = next(r for r in manifest if r["kind"] == "ConfigMap")["data"].items()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_flags_exist_in_the_command(path):
    job = container(find(path, "Job"))
    command, lines = job["name"], flagfile(path)
    mounts = [m["mountPath"] for m in job["volumeMounts"] if not m.get("readOnly")]
    (file,) = find(path, "ConfigMap")["data"]
    if command == "reproduce":
        parse(Train, lines)
        given = parse(reproduce.Reproduce, [a.replace("$(CELL)", "0") for a in job["args"]])
        assert given.config == f"/config/{file}"
        written = given.out
    else:
        assert job["args"] == [f"--flagfile=/config/{file}"]
        given = parse(COMMANDS[command], lines)
        written = given.run_dir if command == "train" else given.out
    assert any(written.startswith(f"{mount}/") for mount in mounts)


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_exit_codes_are_those_of_the_package(path):
    rules = find(path, "Job")["spec"]["podFailurePolicy"]["rules"]
    actions = {code: r["action"] for r in rules for code in r.get("onExitCodes", {}).get("values", [])}
    assert actions[EXIT_INTERRUPTED] == "Ignore"
    assert actions[EXIT_BAD_INPUT] in ("FailJob", "FailIndex")


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_jobs_tolerate_disruptions_and_are_cleaned_up(path):
    job = find(path, "Job")["spec"]
    pod = job["template"]["spec"]
    lost = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert lost in job["podFailurePolicy"]["rules"]
    assert job["podReplacementPolicy"] == "Failed"
    assert job["ttlSecondsAfterFinished"] >= 86400
    assert pod["terminationGracePeriodSeconds"] >= 30
    (shared,) = [
        m["name"] for m in container(find(path, "Job"))["volumeMounts"] if m["mountPath"] == "/dev/shm"
    ]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == shared]
    assert volume["emptyDir"]["medium"] == "Memory"
    memory = container(find(path, "Job"))["resources"]["limits"]["memory"]
    quantity = manifest_rules.quantity
    assert 0 < quantity(volume["emptyDir"]["sizeLimit"]) < quantity(memory)
    cells = container(find(path, "Job"))["name"] == "reproduce"
    assert ("backoffLimitPerIndex" in job) == cells


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_batches_are_divisible_by_the_number_of_devices(path):
    """Devices are the pods that train together times their GPUs."""
    assert {n: getattr(Train, n) for n in manifests.BATCHES} == manifests.BATCHES  # defined in two places
    manifests.check_devices(resources(path))
    if container(find(path, "Job"))["name"] == "train":
        given = parse(Train, flagfile(path))
        gpus = container(find(path, "Job"))["resources"]["limits"].get("nvidia.com/gpu", 1)
        assert given.gan_batch % (given.workers * gpus) == given.detector_batch % (given.workers * gpus) == 0


def test_table_1_has_one_index_per_cell():
    job = find(ROOT / "k8s/reproduce-table1.yaml", "Job")
    given = parse(reproduce.Reproduce, [a.replace("$(CELL)", "0") for a in container(job)["args"]])
    assert job["spec"]["completions"] == len(TABLES["1"].rows) * len(given.seeds)


def test_flags_for_the_papers_data_equal_those_of_configs():
    """Only paths differ; they are on the volume."""
    pairs = {"train-nih": "nih", "prepare-nih": "nih_prepare", "train-cityscapes": "cityscapes"}
    for job, config_file in pairs.items():
        lines = (ROOT / f"configs/{config_file}.flags").read_text("utf-8").splitlines()
        ours = {line for line in lines if line.startswith("--")}
        theirs = {re.sub("=/(data|runs)/", r"=\1/", line) for line in flagfile(ROOT / f"k8s/{job}.yaml")}
        assert theirs - {"--images=data/nih-images"} == ours


def test_anchors_cover_pedestrians():
    """Pedestrians of CityPersons have an aspect ratio of 0.41, and in a crop a height of 70 to 256 px."""
    given = parse(Train, flagfile(ROOT / "k8s/train-cityscapes.yaml"))
    DET = DETECTORS[given.detector]((256, 256, 3), 1, sizes=given.anchor_sizes, ratios=given.anchor_ratios)
    heights = np.linspace(70, 250, 19)
    pedestrians = np.stack([100 - 0 * heights, 3 + 0 * heights, 100 + 0.41 * heights, 3 + heights], 1)
    assert coverage(DET.anchors, pedestrians).min() >= 0.5


def test_workers_have_the_addresses_of_tf_config():
    """Number, Service and port of the pods are those of the flags and of TF_CONFIG."""
    path = ROOT / "k8s/train-nih-multiworker.yaml"
    job, service = find(path, "Job"), find(path, "Service")
    name, pod = job["metadata"]["name"], job["spec"]["template"]
    assert service["metadata"]["name"] == pod["spec"]["subdomain"] == name
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    workers = parse(Train, flagfile(path)).workers
    assert workers == job["spec"]["completions"] == job["spec"]["parallelism"] > 1
    assert job["spec"]["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    index, known = container(job)["env"]
    field = index["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    environment = {index["name"]: "1", known["name"]: known["value"]}
    tf_config.announce(environment, workers)
    found = json.loads(environment["TF_CONFIG"])["cluster"]["worker"]
    ports = {p["port"] for p in service["spec"]["ports"]} | {
        p["containerPort"] for p in container(job)["ports"]
    }
    assert [f"{name}-{i}.{name}:{port}" for i in range(workers) for port in ports] == found


def test_files_named_in_comments_exist():
    named = {name for path in MANIFESTS for name in re.findall(r"k8s/[\w./-]+", path.read_text("utf-8"))}
    assert "k8s/train-nih.yaml" in named
    assert [name for name in named if not (ROOT / name.rstrip(".")).exists()] == []


def block(text, after):
    """Returns the lines of the first code block after `after`."""
    return text.partition(after)[2].split("```")[1].strip().splitlines()


def images(found):
    return {container(r)["image"] for r in found if r["kind"] in ("Job", "Deployment", "Pod")}


@pytest.mark.parametrize(
    "readme, heading", [("README.md", "## On a cluster"), ("k8s/README.md", "**On GPUs**")]
)
def test_readme_submits_the_image_that_it_builds_and_pushes(readme, heading):
    lines = block((ROOT / readme).read_text("utf-8"), heading)
    image = lines[0].split()[0].removeprefix("IMAGE=")
    assert lines[1].split("#")[0].strip() == "make image EXTRAS=gpu IMAGE=$IMAGE && docker push $IMAGE"
    assert lines[2].startswith("pip install -c constraints.txt -e '.[k8s]'")
    steps = [
        re.search(r"launch submit --manifest=(\S+)|launch logs --job=(\S+)|apply -k (k8s)", line)
        for line in lines[3:]
    ]
    order = [next(filter(None, step.groups())) for step in steps if step]
    assert order[:2] == [
        "prepare-nih",
        "prepare-nih",
    ]  # submitted and waited for, because training needs complete data
    assert any(re.search(r"logs --job=prepare-nih --follow && \\$", line) for line in lines)
    assert order[2] in ("train-nih", "k8s")
    for line in lines[3:]:
        assert "launch submit" not in line or "--image=$IMAGE" in line
        if "k8s/" in line.split("#  ")[0]:  # the image in the manifest itself cannot be pulled
            assert line.startswith('sed "s#image: tf_detectorgan:.*#image: $IMAGE#" k8s/')
    if shutil.which("kubectl"):
        assert images(built(ROOT / "k8s").values()) == {image}


def test_first_try_uses_the_image_that_it_loads():
    lines = block((ROOT / "k8s/README.md").read_text("utf-8"), "**First try**")
    (applied,) = [re.findall(r"-f (\S+)", line) for line in lines if "apply" in line]
    assert {image for file in applied for image in images(resources(ROOT / file))} == {"tf_detectorgan:cpu"}
    assert any("kind load docker-image tf_detectorgan:cpu" in line for line in lines)


def test_sed_commands_of_the_readme_change_claims_to_existing_ones():
    """Runs the sed commands and compares the claims with those of train-nih-multiworker."""
    text = (ROOT / "k8s/README.md").read_text("utf-8")
    for command in re.findall(r"^sed (?:'[^']+') k8s/\S+ > \S+", text, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command.split(">")[0]], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = [r for r in yaml.safe_load_all(done.stdout) if r]
        for resource in changed:
            check(resource)
        claims = {r["metadata"]["name"]: r for r in changed if r["kind"] == "PersistentVolumeClaim"}
        shared = resources(ROOT / "k8s/train-nih-multiworker.yaml")
        assert [c for c in claims.values() if c not in shared] == []
        mounted = [
            v["persistentVolumeClaim"]["claimName"]
            for r in changed
            if r["kind"] not in ("ConfigMap", "PersistentVolumeClaim", "Service")
            for v in pod_spec(r)["volumes"]
            if "persistentVolumeClaim" in v
        ]
        assert mounted
        assert all(name in {r["metadata"]["name"] for r in shared} for name in mounted)
    assert text.count("detectorgan-shared-") >= 3


def test_tensorboard_does_not_keep_a_node_from_the_autoscaler():
    pod = find(ROOT / "k8s/tensorboard.yaml", "Deployment")["spec"]["template"]
    assert pod["metadata"]["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "true"}
