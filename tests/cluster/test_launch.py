"""`launch` against a stub that answers as an API server does; what it submits against the schemas."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from kubernetes.config import kube_config

from tests.cluster.test_manifests import MANIFESTS, check, container, flagfile_lines
from tf_detectorgan import launch
from tf_detectorgan.cluster import manifests
from tf_detectorgan.errors import InputError, Interrupted

CORE, BATCH = "/api/v1/namespaces/lab", "/apis/batch/v1/namespaces/lab"


def refusal(code, reason, message):
    """The Status object with which an API server refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return code, body | {"reason": reason, "code": code}


def job(**status):
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nih"}, "status": status, "spec": {
        "suspend": False, "template": {"spec": {"containers": [{"name": "train"}]}}}}  # fmt: skip


def pod(name, phase="Running", **status):
    spec = {"containers": [{"name": "train"}], "nodeName": "node-a"}
    return {"metadata": {"name": name}, "spec": spec, "status": {"phase": phase, **status}}


def items(kind, *found):
    return {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": list(found)}


def event(message):
    involved = {"kind": "Job", "namespace": "lab", "name": "nih"}
    return {
        "metadata": {"name": "nih.17"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": "FailedCreate",
        "message": message,
    }


class Server:
    """Answers by `answers[method, path]`: a body, (code, body), text, or a list of which each call takes one.

    What is posted and not in `answers` comes back as created.
    """

    def __init__(self):
        self.answers, self.asked = {}, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                url = urlsplit(self.path)
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                server.asked.append((self.command, url.path, parse_qs(url.query), body))
                found = server.answers.get((self.command, url.path))
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                if found is None:
                    found = (201, body) if body else refusal(404, "NotFound", f"{url.path} not found")
                code, sent = found if isinstance(found, tuple) else (200, found)
                text = isinstance(sent, str)
                data = (sent if text else json.dumps(sent)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = answer

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    def sent(self, method):
        return [body for asked, _, _, body in self.asked if asked == method]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The stub, and a kubectl configuration that names it with the namespace `lab`."""
    found = Server()
    file = tmp_path / "kubeconfig"
    address = f"http://127.0.0.1:{found.http.server_port}"
    file.write_text(yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "users": [{"name": "me", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "me", "namespace": "lab"}}],
    }))  # fmt: skip
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setattr(launch, "POLL", 0.01)
    yield found
    found.http.shutdown()
    found.http.server_close()


def running(server, name="nih", *pods):
    server.answers["GET", f"{BATCH}/jobs/{name}"] = job(active=1)
    server.answers["GET", f"{CORE}/pods"] = items("PodList", *(pods or (pod(f"{name}-0"),)))


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "train-nih", "gpus": 2, "queue": "team"},
        {"manifest": "train-nih-multiworker", "workers": 3, "image": "r.example.com/x:1"},
        {"manifest": "train-phantom-cpu"},
        {"manifest": "reproduce-table1"},
    ],
    ids=lambda changes: changes["manifest"],
)
def test_every_body_that_is_submitted_is_valid(server, capsys, changes):
    name = manifests.job_of(manifests.read(changes["manifest"]))["metadata"]["name"]
    running(server, name)
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
        assert bodies[-1]["spec"]["completions"] == bodies[-1]["spec"]["parallelism"] == 3
        flags = next(body for body in bodies if body["kind"] == "ConfigMap")["data"]["train.flags"].split()
        assert [flag for flag in flags if "workers" in flag] == ["--workers=3"]
        assert spec["image"] == "r.example.com/x:1"
    out = capsys.readouterr().out
    assert f"Job {name}: created" in out
    assert f"launch logs --job={name} --follow" in out


def test_a_dry_run_prints_what_would_be_sent_and_asks_nobody(server, capsys, tmp_path):
    flags = tmp_path / "my.flags"
    flags.write_text("# mine\n--gan_steps=7\n--seed=3\n")
    launch.submit(launch.Submit(train_flags=str(flags), dry_run=True))
    assert server.asked == []
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    for resource in printed:
        check(resource)
    before, after = (flagfile_lines(r) for r in (manifests.read("train-nih"), printed))
    assert set(after) - set(before) == {"--gan_steps=7", "--seed=3"}
    assert set(before) - set(after) == {"--gan_steps=20000"}


def test_what_exists_is_kept_or_replaced_but_no_job(server, capsys):
    exists = refusal(409, "AlreadyExists", 'jobs.batch "train-nih" already exists')
    for path in (f"{CORE}/configmaps", f"{CORE}/persistentvolumeclaims", f"{BATCH}/jobs"):
        server.answers["POST", path] = exists
    with pytest.raises(InputError, match="exists, and .* kubectl delete job train-nih -n lab"):
        launch.submit(launch.Submit())
    out = capsys.readouterr().out
    assert "ConfigMap train-nih: replaced" in out
    assert "PersistentVolumeClaim detectorgan-runs: kept" in out
    (replaced,) = server.sent("PUT")
    assert replaced["kind"] == "ConfigMap"


QUOTA = 'pods "nih-abc" is forbidden: exceeded quota: gpus, used: requests.nvidia.com/gpu=4, limited: 4'
PRIVILEGED = 'pods "nih-abc" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
NO_IMAGE = 'Back-off pulling image "r.example.com/x:1"'
UNSCHEDULED = pod(
    "nih-0",
    "Pending",
    conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU}],
)
UNPULLED = pod(
    "nih-0",
    "Pending",
    containerStatuses=[
        {
            "name": "train", "image": "x", "imageID": "", "ready": False, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": NO_IMAGE}},
        }
    ],
)  # fmt: skip


@pytest.mark.parametrize(
    "pods, events, sentence",
    [
        ([], [event(QUOTA)], f"no pods: {QUOTA}"),
        ([], [event(PRIVILEGED)], f"no pods: {PRIVILEGED}"),
        ([], [], "no pods yet"),
        ([UNSCHEDULED], [], f"nih-0 has no node: {NO_GPU}"),
        ([UNPULLED], [], f"nih-0 has no image: {NO_IMAGE}"),
        ([pod("nih-0")], [], None),
    ],
)
def test_status_says_why_nothing_runs(server, capsys, pods, events, sentence):
    server.answers["GET", f"{BATCH}/jobs/nih"] = job()
    server.answers["GET", f"{CORE}/pods"] = items("PodList", *pods)
    server.answers["GET", f"{CORE}/events"] = items("EventList", *events)
    launch.status(launch.OneJob(job="nih"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Job nih: 0 active, 0 succeeded, 0 failed"
    assert lines[1 + len(pods) :] == ([sentence] if sentence else [])
    selectors = [query["labelSelector"] for _, path, query, _ in server.asked if path == f"{CORE}/pods"]
    assert set(map(tuple, selectors)) == {("batch.kubernetes.io/job-name=nih",)}


def test_submit_waits_and_says_each_reason_once(server, capsys):
    running(server, "train-nih")
    server.answers["GET", f"{CORE}/pods"] = [
        *[items("PodList", UNSCHEDULED)] * 3, items("PodList", UNPULLED), items("PodList", pod("nih-0")),
    ]  # fmt: skip
    launch.submit(launch.Submit())
    out = capsys.readouterr().out
    assert out.count(NO_GPU) == out.count(NO_IMAGE) == 1
    server.answers["GET", f"{CORE}/pods"] = items("PodList", UNSCHEDULED)
    cluster = launch.kubernetes.connect("", "")
    with pytest.raises(Interrupted, match="waits after 0 seconds: nih-0 has no node"):
        launch._wait_for_pods(cluster, "train-nih", 0)
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "exit code 78"}
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = job(conditions=[failed])
    with pytest.raises(InputError, match="failed: exit code 78; launch logs --job=train-nih"):
        launch._wait_for_pods(cluster, "train-nih", 9)


def test_logs_of_all_pods_bear_their_names(server, capsys):
    running(server, "nih", pod("nih-1"), pod("nih-0"))
    server.answers["GET", f"{CORE}/pods/nih-0/log"] = "step 1\nstep 2"
    server.answers["GET", f"{CORE}/pods/nih-1/log"] = "ready\n"
    launch.logs(launch.Logs(job="nih", follow=True))
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "nih-0 | step 1",
        "nih-0 | step 2",
        "nih-1 | ready",
    ]
    assert {query["follow"][0].lower() for _, path, query, _ in server.asked if path.endswith("/log")} == {
        "true"
    }
    server.answers["GET", f"{CORE}/pods/nih-1/log"] = refusal(
        400, "BadRequest", "container is waiting to start"
    )
    with pytest.raises(InputError, match="log of nih-1: container is waiting to start"):
        launch.logs(launch.Logs(job="nih"))


def test_stop_waits_for_the_pods_and_resume_undoes_it(server, capsys):
    server.answers["GET", f"{CORE}/pods"] = [
        items("PodList", pod("nih-0")), items("PodList", pod("nih-0", "Failed"))
    ]  # fmt: skip
    server.answers["PATCH", f"{BATCH}/jobs/nih"] = job()
    launch.stop(launch.OneJob(job="nih"))
    launch.resume(launch.OneJob(job="nih"))
    assert server.sent("PATCH") == [{"spec": {"suspend": True}}, {"spec": {"suspend": False}}]
    assert "launch resume --job=nih" in capsys.readouterr().out
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    with pytest.raises(Interrupted, match="nih-0 has not ended yet"):
        launch.stop(launch.OneJob(job="nih", wait=0))


def test_refusals_are_one_sentence(server):
    message = 'jobs.batch "nih" is forbidden: User "me" cannot get resource "jobs"'
    server.answers["GET", f"{BATCH}/jobs/nih"] = refusal(403, "Forbidden", message)
    with pytest.raises(InputError, match=f"^Job nih: {message}$"):
        launch.status(launch.OneJob(job="nih"))
    with pytest.raises(InputError, match="Give the Job's name"):
        launch.status(launch.OneJob())
    with pytest.raises(InputError, match="kubectl's configuration: "):
        launch.status(launch.OneJob(job="nih", context="elsewhere"))


def test_manifests_are_found_and_bad_ones_refused(tmp_path):
    assert sorted(
        path.name for path in manifests.FOLDER.glob("*.yaml") if path.name != "kustomization.yaml"
    ) == [path.name for path in MANIFESTS]
    with pytest.raises(InputError, match="none of prepare-nih, .*train-nih-multiworker"):
        manifests.read("train")
    (tmp_path / "two.yaml").write_text("kind: Service\n")
    with pytest.raises(InputError, match="holds 0 Jobs"):
        manifests.read(str(tmp_path / "two.yaml"))
    (tmp_path / "bad.yaml").write_text("{")
    with pytest.raises(InputError, match="is no manifest"):
        manifests.read(str(tmp_path / "bad.yaml"))
    with pytest.raises(InputError, match="this manifest has no Service"):
        manifests.fill(manifests.read("train-nih"), image="", flags="", gpus=0, workers=2, queue="")
