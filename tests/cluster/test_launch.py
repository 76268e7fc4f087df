"""`launch` against a stub that answers as an API server does; what it submits against the schemas."""

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
    """The Job is not there when asked for the first time, and then it runs."""
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
def test_every_body_that_is_submitted_is_valid(server, capsys, tmp_path, changes):
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


def test_the_pod_that_copies_is_valid_and_restricted():
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
def test_batches_that_devices_cannot_share_are_refused_before_anything_is_sent(server, changes, sentence):
    """GPUs of one pod would stay idle; of several each would end with 78, and with it the Job."""
    with pytest.raises(InputError, match=sentence):
        launch.submit(launch.Submit(**changes))
    assert server.asked == []


@pytest.mark.parametrize("given,pods", [(4, 2), (1, 2)])
def test_workers_that_are_not_as_many_as_pods_are_refused(server, tmp_path, given, pods):
    """Pods would wait for others without end, or each take itself for the chief of one run."""
    (tmp_path / "w.flags").write_text(f"--workers={given}\n")
    options = launch.Submit(manifest="train-nih-multiworker", train_flags=str(tmp_path / "w.flags"))
    with pytest.raises(InputError, match=f"--workers={given} is in the Job's flags, and it has {pods} pods"):
        launch.submit(options)
    (tmp_path / "w.flags").write_text("--workers=4\n")
    with pytest.raises(InputError, match="--workers=4 .* it has 1 pods"):
        launch.submit(launch.Submit(train_flags=str(tmp_path / "w.flags")))
    assert server.asked == []


def test_processes_of_one_pod_are_no_pods():
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
def test_what_the_client_itself_refuses_is_one_sentence(server, tmp_path, change, sentence):
    manifest = manifests.read("train-phantom-cpu")
    manifests.job_of(manifest)["spec"].update(change)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump_all(manifest))
    with pytest.raises(InputError, match=f"^Job train-phantom: .*{sentence}[^\n]*$"):
        launch.submit(launch.Submit(manifest=str(tmp_path / "own.yaml"), wait=0))


def test_quantities_may_be_numbers(server, tmp_path):
    """As kubectl takes them: of claims, of volumes in memory, of any container."""
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


def test_places_of_a_desktop_are_refused(server, tmp_path):
    (tmp_path / "nih.flags").write_text("--gan_batch=2\n--data_dir=data/nih\n--run_dir=/runs/nih\n")
    flagfile = str(tmp_path / "nih.flags")
    with pytest.raises(
        InputError, match="--train_flags: --data_dir=data/nih is relative; .* such as /data/nih"
    ):
        launch.submit(launch.Submit(train_flags=flagfile))
    with pytest.raises(InputError, match="--config: --data_dir=data/nih is relative"):
        launch.reproduce(launch.SubmitTable(config=flagfile))
    assert server.asked == []


def test_a_manifest_of_ones_own(server, tmp_path):
    """Without resources; with a name to be made up; for another namespace than the one that is asked."""
    file, manifest = tmp_path / "own.yaml", manifests.read("train-phantom-cpu")
    job = manifests.job_of(manifest)
    del container(job)["resources"]
    file.write_text(yaml.safe_dump_all(manifest))
    filled = manifests.fill(manifests.read(str(file)), image="", flags="", gpus=2, workers=0, queue="")
    assert container(manifests.job_of(filled))["resources"] == {"limits": {"nvidia.com/gpu": "2"}}
    container(job)["resources"] = {"requests": {"nvidia.com/gpu": 1}, "limits": {"nvidia.com/gpu": 1}}
    job["metadata"]["namespace"] = "elsewhere"
    file.write_text(yaml.safe_dump_all(manifest))
    filled = manifests.fill(manifests.read(str(file)), image="", flags="", gpus=2, workers=0, queue="")
    assert container(manifests.job_of(filled))["resources"]["requests"] == {"nvidia.com/gpu": "2"}
    with pytest.raises(
        InputError, match="Job train-phantom: .* namespace elsewhere, .* --namespace=elsewhere"
    ):
        launch.submit(launch.Submit(manifest=str(file)))
    assert server.asked == []
    job["metadata"] = {"generateName": "train-"}
    file.write_text(yaml.safe_dump_all(manifest))
    with pytest.raises(InputError, match="its Job has no metadata.name"):
        manifests.read(str(file))


def test_a_dry_run_prints_what_would_be_sent_and_asks_nobody(server, capsys, tmp_path):
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


def test_what_exists_is_kept_or_replaced_but_for_a_job_nothing_is_changed(server, capsys):
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
    server.answers["POST", f"{BATCH}/jobs"] = exists  # by somebody else, a moment ago
    with pytest.raises(InputError, match="^Job train-nih: already exists$"):
        launch.submit(launch.Submit())


def test_a_table_is_submitted_as_one_index_a_cell_and_gathered_by_one_pod(server, capsys, tmp_path):
    """Table 5 has 4 arms; its pods find the config, the data, and by index each another cell."""
    flagfile = tmp_path / "mine.flags"
    flagfile.write_text("--data_dir=/data/cityscapes\n--final_detector_steps=7\n")
    options = {"table": "5", "config": str(flagfile), "seeds": (3, 1), "gpus": 1, "memory": "16Gi"}
    options |= {"runs_claim": "mine", "data_claim": "photos", "image": "r.example.com/x:1"}
    launch.reproduce(launch.SubmitTable(**options, wait=0))
    configmap, cells = server.sent("POST")
    server.answers["GET", f"{BATCH}/jobs/reproduce-table5"] = job(active=2, succeeded=6) | {
        "spec": cells["spec"]
    }
    with pytest.raises(Interrupted, match="still trains: 6 of 8 cells"):
        launch.reproduce(launch.SubmitTable(**options, gather=True))
    server.answers["GET", f"{BATCH}/jobs/reproduce-table5"] = job(terminating=1, spec=cells["spec"])
    with pytest.raises(Interrupted, match="still trains: 0 of 8 cells"):
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
    with pytest.raises(InputError, match="name the claim of their volume by --data_claim"):
        launch.reproduce(launch.SubmitTable(**options | {"data_claim": ""}))
    with pytest.raises(InputError, match="--seeds=1,1: one or more different"):
        launch.reproduce(launch.SubmitTable(seeds=(1, 1)))


def test_manifests_are_found_and_bad_ones_refused(tmp_path):
    assert sorted(
        path.name for path in manifests.FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    ) == [path.name for path in MANIFESTS]
    with pytest.raises(InputError, match="none of prepare-nih, .*train-nih-multiworker"):
        manifests.read("train")
    (tmp_path / "two.yaml").write_text("kind: Service\nmetadata: {name: a}\n")
    with pytest.raises(InputError, match="holds 0 Jobs"):
        manifests.read(str(tmp_path / "two.yaml"))
    for text in ("{", "just words", "kind: Job\nmetadata: {name: a}\nspec: {}\n"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(InputError, match="is no manifest"):
            manifests.read(str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match="this manifest has no Service"):
        manifests.fill(manifests.read("train-nih"), image="", flags="", gpus=0, workers=2, queue="")
