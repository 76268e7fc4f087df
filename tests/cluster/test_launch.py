"""Tests of `launch` against a stub of an API server, and of its requests against the schemas."""

import dataclasses

import pytest
import yaml

from tests.cluster.api_server import BATCH, CORE, items, job, pod, refusal
from tests.cluster.test_manifests import MANIFESTS, check, container, flagfile_lines, parse
from tf_detectorgan import launch, reproduce
from tf_detectorgan.cluster import fetch, manifests
from tf_detectorgan.errors import InputError, Interrupted
from tf_detectorgan.experiments import runner
from tf_detectorgan.experiments.tables import TABLES


def running(server, name="nih", *pods):
    """Makes the stub return no Job at first, and a running Job afterwards."""
    missing = refusal(404, "NotFound", "not found")
    server.answers["GET", f"{BATCH}/jobs/{name}"] = [missing, job(active=1)]
    server.answers["GET", f"{CORE}/pods"] = items("PodList", *(pods or (pod(f"{name}-0"),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "train-nih", "gpus": 2, "queue": "team", "train_flags": "gan_batch=2"},
        {
            "manifest": "train-nih-multiworker",
            "workers": 4,
            "image": "r.example.com/x:1",
            "train_flags": "gan_batch=4",
        },
        {"manifest": "train-phantom-cpu"},
        {"manifest": "reproduce-table1"},
    ],
    ids=lambda changes: changes["manifest"],
)
def test_submitted_resources_are_valid(server, capsys, tmp_path, changes):
    name = manifests.job_of(manifests.read(changes["manifest"]))["metadata"]["name"]
    running(server, name)
    if "train_flags" in changes:
        (tmp_path / "more.flags").write_text(f"--{changes['train_flags']}\n")
        changes = changes | {"train_flags": str(tmp_path / "more.flags")}
    launch.submit(launch.Submit(**changes))
    bodies = server.sent("POST")
    assert bodies[-1]["kind"] == "Job"
    for body in bodies:
        check(body)
    assert all(
        query["fieldValidation"] == ["Strict"] for method, _, query, _ in server.asked if method == "POST"
    )
    spec = container(bodies[-1])
    if "gpus" in changes:
        assert spec["resources"]["limits"]["nvidia.com/gpu"] == "2"
        assert bodies[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
        assert bodies[-1]["spec"]["suspend"] is True
    if "workers" in changes:
        assert bodies[-1]["spec"]["completions"] == bodies[-1]["spec"]["parallelism"] == 4
        flags = next(body for body in bodies if body["kind"] == "ConfigMap")["data"]["train.flags"].split()
        assert [flag for flag in flags if "workers" in flag] == ["--workers=4"]
        assert spec["image"] == "r.example.com/x:1"
    out = capsys.readouterr().out
    assert f"Job {name}: created" in out
    assert f"launch logs --job={name} --follow" in out


def test_helper_pod_of_fetch_is_valid_and_restricted():
    job = manifests.job_of(manifests.read("train-nih"))["spec"]["template"]["spec"]
    check(fetch.helper_pod(job, image="", claim="", node="node-a", seconds=60))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        (
            {"gpus": 2},
            "--gan_batch=1 is not divisible by 2 devices .1 pods with 2 GPUs each.; give --gan_batch=2",
        ),
        (
            {"manifest": "train-nih-multiworker", "workers": 3},
            "--gan_batch=2 .* 3 devices .3 pods with 1 GPUs each",
        ),
        (
            {"manifest": "train-nih-multiworker", "gpus": 2},
            "--gan_batch=2 .* 4 devices .*; give --gan_batch=4",
        ),
        ({"manifest": "reproduce-table1", "gpus": 8}, "--gan_batch=4 is not divisible by 8 devices"),
        ({"manifest": "train-cityscapes", "gpus": 3}, "_batch=.* is not divisible by 3 devices"),
    ],
)
def test_indivisible_batch_is_an_error_before_any_request(server, changes, sentence):
    """A single pod would leave GPUs idle; each of several pods would end with 78, and so would the Job."""
    with pytest.raises(InputError, match=sentence):
        launch.submit(launch.Submit(**changes))
    assert server.asked == []


@pytest.mark.parametrize("given,pods", [(4, 2), (1, 2)])
def test_other_number_of_workers_than_pods_is_an_error(server, tmp_path, given, pods):
    """Pods would wait for others forever, or each would be the chief of the same run."""
    (tmp_path / "w.flags").write_text(f"--workers={given}\n")
    options = launch.Submit(manifest="train-nih-multiworker", train_flags=str(tmp_path / "w.flags"))
    with pytest.raises(InputError, match=f"--workers={given} is in the Job's flags, but it has {pods} pods"):
        launch.submit(options)
    (tmp_path / "w.flags").write_text("--workers=4\n")
    with pytest.raises(InputError, match="--workers=4 .* it has 1 pods"):
        launch.submit(launch.Submit(train_flags=str(tmp_path / "w.flags")))
    assert server.asked == []


def test_processes_flag_does_not_count_as_pods():
    manifest = manifests.read("reproduce-table1")
    container(manifests.job_of(manifest))["args"].append("--processes=3")
    manifests.check_devices(manifest)


@pytest.mark.parametrize(
    "change,sentence",
    [
        ({"parallelsim": 2}, "parallelsim"),
        ({"completions": "two"}, "completions"),
    ],
)
def test_resource_rejected_by_the_client_is_one_sentence(server, tmp_path, change, sentence):
    manifest = manifests.read("train-phantom-cpu")
    manifests.job_of(manifest)["spec"].update(change)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump_all(manifest))
    with pytest.raises(InputError, match=f"^Job train-phantom: .*{sentence}[^\n]*$"):
        launch.submit(launch.Submit(manifest=str(tmp_path / "own.yaml"), wait=0))


def test_numeric_quantities_are_sent_as_text(server, tmp_path):
    """kubectl accepts numbers in claims, volumes in memory and containers."""
    manifest = manifests.read("train-phantom-cpu")
    pod = manifests.job_of(manifest)["spec"]["template"]["spec"]
    memory = {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": 2**30}}
    pod["volumes"].append(memory)
    pod["initContainers"] = [{"name": "first", "image": "x", "resources": {"limits": {"cpu": 2}}}]
    claim = next(r for r in manifest if r["kind"] == "PersistentVolumeClaim")
    claim["spec"]["resources"]["requests"]["storage"] = 2**30
    (tmp_path / "own.yaml").write_text(yaml.safe_dump_all(manifest))
    launch.submit(launch.Submit(manifest=str(tmp_path / "own.yaml"), wait=0))
    sent = {body["kind"]: body for body in server.sent("POST")}
    assert sent["PersistentVolumeClaim"]["spec"]["resources"]["requests"]["storage"] == str(2**30)
    found = sent["Job"]["spec"]["template"]["spec"]
    assert found["volumes"][-1]["emptyDir"]["sizeLimit"] == str(2**30)
    assert found["initContainers"][0]["resources"]["limits"]["cpu"] == "2"


def test_relative_paths_in_a_flagfile_are_an_error(server, tmp_path):
    (tmp_path / "nih.flags").write_text("--gan_batch=2\n--data_dir=data/nih\n--run_dir=/runs/nih\n")
    flagfile = str(tmp_path / "nih.flags")
    with pytest.raises(
        InputError, match="--train_flags: --data_dir=data/nih is relative; .* such as /data/nih"
    ):
        launch.submit(launch.Submit(train_flags=flagfile))
    with pytest.raises(InputError, match="--config: --data_dir=data/nih is relative"):
        launch.reproduce(launch.SubmitTable(config=flagfile))
    assert server.asked == []


def test_custom_manifests(server, tmp_path):
    """Tests manifests without resources, with generateName, and with another namespace."""
    file, manifest = tmp_path / "own.yaml", manifests.read("train-phantom-cpu")
    job = manifests.job_of(manifest)
    del container(job)["resources"]
    file.write_text(yaml.safe_dump_all(manifest))
    filled = manifests.fill(manifests.read(str(file)), image="", flags="", gpus=2, workers=0, queue="")
    assert container(manifests.job_of(filled))["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    container(job)["resources"] = {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}}
    job["metadata"]["namespace"] = "other"
    file.write_text(yaml.safe_dump_all(manifest))
    filled = manifests.fill(manifests.read(str(file)), image="", flags="", gpus=2, workers=0, queue="")
    assert container(manifests.job_of(filled))["resources"]["requests"] == {"nvidia.com/gpu": "2"}
    with pytest.raises(InputError, match="Job train-phantom: .* namespace other, .* --namespace=other"):
        launch.submit(launch.Submit(manifest=str(file)))
    assert server.asked == []
    job["metadata"] = {"generateName": "train-"}
    file.write_text(yaml.safe_dump_all(manifest))
    with pytest.raises(InputError, match="its Job has no metadata.name"):
        manifests.read(str(file))


def test_dry_run_prints_the_resources_and_sends_no_request(server, capsys, tmp_path):
    flags = tmp_path / "my.flags"
    flags.write_text("# mine\n--pretrain_gan_steps=7\n--seed=3\n")
    launch.submit(launch.Submit(train_flags=str(flags), dry_run=True))
    assert server.asked == []
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    for resource in printed:
        check(resource)
    before, after = (flagfile_lines(r) for r in (manifests.read("train-nih"), printed))
    assert set(after) - set(before) == {"--pretrain_gan_steps=7", "--seed=3"}
    assert set(before) - set(after) == {"--pretrain_gan_steps=20000"}


def test_submit_keeps_claims_replaces_configmaps_and_rejects_existing_jobs(server, capsys):
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = job(active=1)
    with pytest.raises(InputError, match="exists, and .* kubectl delete job train-nih -n lab"):
        launch.submit(launch.Submit())
    assert server.sent("POST") == server.sent("PUT") == []
    del server.answers["GET", f"{BATCH}/jobs/train-nih"]
    exists = refusal(409, "AlreadyExists", "already exists")
    for path in (f"{CORE}/configmaps", f"{CORE}/persistentvolumeclaims"):
        server.answers["POST", path] = exists
    launch.submit(launch.Submit(wait=0))
    out = capsys.readouterr().out
    assert "ConfigMap train-nih: replaced" in out
    assert "PersistentVolumeClaim detectorgan-runs: kept" in out
    (replaced,) = server.sent("PUT")
    assert replaced["kind"] == "ConfigMap"
    server.answers["POST", f"{CORE}/configmaps"] = refusal(409, "Conflict", "the quota was modified")
    with pytest.raises(InputError, match="^ConfigMap train-nih: the quota was modified$"):
        launch.submit(launch.Submit())
    server.answers["POST", f"{CORE}/configmaps"] = exists
    server.answers["POST", f"{BATCH}/jobs"] = exists  # created meanwhile by another user
    with pytest.raises(InputError, match="^Job train-nih: already exists$"):
        launch.submit(launch.Submit())


def test_table_has_one_completion_index_per_cell_and_one_gathering_pod(server, capsys, tmp_path):
    """Table 5 has 4 arms; its pods mount the config and the data, and each trains the cell of its index."""
    flagfile = tmp_path / "mine.flags"
    flagfile.write_text("--data_dir=/data/cityscapes\n--final_detector_steps=7\n")
    options = {"table": "5", "config": str(flagfile), "seeds": (3, 1), "gpus": 1, "memory": "16Gi"}
    options |= {"runs_claim": "mine", "data_claim": "photos", "image": "r.example.com/x:1"}
    launch.reproduce(launch.SubmitTable(**options, wait=0))
    configmap, cells = server.sent("POST")
    server.answers["GET", f"{BATCH}/jobs/reproduce-table5"] = job(active=2, succeeded=6) | {
        "spec": cells["spec"]
    }
    with pytest.raises(Interrupted, match="is still training: 6 of 8 cells"):
        launch.reproduce(launch.SubmitTable(**options, gather=True))
    server.answers["GET", f"{BATCH}/jobs/reproduce-table5"] = job(terminating=1, spec=cells["spec"])
    with pytest.raises(Interrupted, match="is still training: 0 of 8 cells"):
        launch.reproduce(launch.SubmitTable(**options, gather=True))
    server.answers["GET", f"{BATCH}/jobs/reproduce-table5"] = job(succeeded=8)
    launch.reproduce(launch.SubmitTable(**options, gather=True, wait=0))
    again, gather = server.sent("POST")[2:]
    assert again == configmap
    assert configmap["data"] == {"table1.flags": flagfile.read_text()}
    arguments = []
    for body in (configmap, cells, gather):
        check(body)
    for body in (cells, gather):
        given = container(body)
        assert given["resources"]["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
        assert {"name": "data", "mountPath": "/data", "readOnly": True} in given["volumeMounts"]
        assert body["spec"]["template"]["spec"]["tolerations"] == [manifests.OF_GPU_NODES]
        volumes = body["spec"]["template"]["spec"]["volumes"]
        for name, claim in (("runs", "mine"), ("data", "photos")):
            assert {"name": name, "persistentVolumeClaim": {"claimName": claim}} in volumes
        assert {"name": "config", "configMap": {"name": "reproduce-table5"}} in volumes
        arguments.append(parse(reproduce.Reproduce, [a.replace("$(CELL)", "7") for a in given["args"]]))
    assert (cells["spec"]["completions"], cells["spec"]["parallelism"]) == (8, 2)
    assert runner.indexed_cell(7, TABLES["5"], arguments[0].seeds) == ("psgan_detectorgan", 1)
    assert arguments[0].config == "/config/table1.flags"
    assert arguments[1] == dataclasses.replace(arguments[0], completion_index=-1)
    assert "completions" not in gather["spec"]
    assert "Job reproduce-table5-gather: created" in capsys.readouterr().out
    with pytest.raises(InputError, match="give the claim of its volume by --data_claim"):
        launch.reproduce(launch.SubmitTable(**options | {"data_claim": ""}))
    with pytest.raises(InputError, match="--seeds=1,1: give one or more different"):
        launch.reproduce(launch.SubmitTable(seeds=(1, 1)))


def test_manifests_are_read_and_invalid_ones_are_errors(tmp_path):
    assert sorted(
        path.name for path in manifests.FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    ) == [path.name for path in MANIFESTS]
    with pytest.raises(InputError, match="none of prepare-nih, .*train-nih-multiworker"):
        manifests.read("train")
    (tmp_path / "two.yaml").write_text("kind: Service\nmetadata: {name: a}\n")
    with pytest.raises(InputError, match="contains 0 Jobs"):
        manifests.read(str(tmp_path / "two.yaml"))
    for text in ("{", "just words", "kind: Job\nmetadata: {name: a}\nspec: {}\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match="not a manifest"):
            manifests.read(str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match="this manifest has no Service"):
        manifests.fill(manifests.read("train-nih"), image="", flags="", gpus=0, workers=2, queue="")
