"""Tests of `launch` with an existing Job: reasons for waiting, stop and resume, rejected requests."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.api_server import BATCH, CORE, failed, items, job, pod, refusal
from tf_detectorgan import launch
from tf_detectorgan.errors import EXIT_BAD_INPUT, InputError, Interrupted

ROOT = Path(__file__).resolve().parents[2]


def over(name, code):
    """Returns a pod that has ended."""
    state = {"name": "train", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    state |= {"state": {"terminated": {"exitCode": code}}}
    return pod(name, "Failed" if code else "Succeeded", containerStatuses=[state])


def event(message):
    involved = {"kind": "Job", "namespace": "lab", "name": "nih"}
    return {
        "metadata": {"name": "nih.17"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": "FailedCreate",
        "message": message,
    }


def test_table_waits_only_for_its_first_pod(server, capsys):
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(active=2)
    server.answers["GET", f"{CORE}/pods"] = items("PodList", UNSCHEDULED, pod("nih-1"))
    cluster = launch.kubernetes.connect("", "")
    assert cluster.why_waiting("nih", one_is_enough=True) == ""
    assert "has no node" in cluster.why_waiting("nih")


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
def test_status_prints_why_no_pod_runs(server, capsys, pods, events, sentence):
    server.answers["GET", f"{BATCH}/jobs/nih"] = job()
    server.answers["GET", f"{CORE}/pods"] = items("PodList", *pods)
    server.answers["GET", f"{CORE}/events"] = items("EventList", *events)
    launch.status(launch.OneJob(job="nih"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Job nih: 0 active, 0 succeeded, 0 failed"
    assert lines[1 + len(pods) :] == ([sentence] if sentence else [])
    selectors = [query["labelSelector"] for _, path, query, _ in server.asked if path == f"{CORE}/pods"]
    assert set(map(tuple, selectors)) == {("batch.kubernetes.io/job-name=nih",)}
    # Events outlive their objects: those of a deleted Job of the same name are not requested.
    asked = [query["fieldSelector"] for _, path, query, _ in server.asked if path == f"{CORE}/events"]
    assert asked == [["involvedObject.kind=Job,involvedObject.uid=46ef6b23,type=Warning"]] * (not pods)


def test_submit_waits_and_prints_each_reason_once(server, capsys):
    missing = refusal(404, "NotFound", "not found")
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = [missing, job(active=1)]
    server.answers["GET", f"{CORE}/pods"] = [
        *[items("PodList", UNSCHEDULED)] * 3, items("PodList", UNPULLED), items("PodList", pod("nih-0")),
    ]  # fmt: skip
    launch.submit(launch.Submit())
    out = capsys.readouterr().out
    assert out.count(NO_GPU) == out.count(NO_IMAGE) == 1
    server.answers["GET", f"{CORE}/pods"] = items("PodList", UNSCHEDULED)
    cluster = launch.kubernetes.connect("", "")
    with pytest.raises(Interrupted, match="still waits after 0 seconds: nih-0 has no node"):
        launch._wait_for_pods(cluster, "train-nih", 0)
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = job(conditions=[failed()])
    with pytest.raises(InputError, match="has failed: exit code 78; launch logs --job=train-nih"):
        launch._wait_for_pods(cluster, "train-nih", 9)


def test_stop_waits_for_the_pods_and_resume_clears_suspend(server, capsys):
    server.answers["GET", f"{BATCH}/jobs/nih"] = server.answers["PATCH", f"{BATCH}/jobs/nih"] = job()
    server.answers["GET", f"{CORE}/pods"] = [
        items("PodList", pod("nih-0"), pod("nih-x", "Failed")),
        *[items("PodList", pod("nih-0"))] * 2,
        refusal(503, "ServiceUnavailable", "apiserver not ready"),
        items("PodList", over("nih-0", 75)),
    ]
    launch.stop(launch.OneJob(job="nih"))
    launch.resume(launch.OneJob(job="nih"))
    assert server.sent("PATCH") == [{"spec": {"suspend": True}}, {"spec": {"suspend": False}}]
    out = capsys.readouterr().out
    assert "Job nih: stopped, its steps are saved; to resume: launch resume --job=nih" in out
    assert "pods of nih: apiserver not ready" in out  # a temporary error does not end the waiting
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    with pytest.raises(
        Interrupted, match="is suspended and still waits after 0 seconds: nih-0 has not ended yet"
    ):
        launch.stop(launch.OneJob(job="nih", wait=0))


@pytest.mark.parametrize(
    "last, sentence",
    [
        ([("nih-0", 137)], "but nih-0 ended with 137: steps after its last checkpoint are lost"),
        ([], "its pods were deleted: the resumed Job will show whether the last steps were saved"),
    ],
)
def test_stop_reports_lost_or_unknown_steps(server, capsys, last, sentence):
    server.answers["GET", f"{BATCH}/jobs/nih"] = server.answers["PATCH", f"{BATCH}/jobs/nih"] = job()
    server.answers["GET", f"{CORE}/pods"] = [
        items("PodList", pod("nih-0")), items("PodList", *(over(*one) for one in last))
    ]  # fmt: skip
    launch.stop(launch.OneJob(job="nih"))
    out = capsys.readouterr().out
    assert sentence in out
    assert "steps are saved;" not in out


WORKLOADS = "/apis/kueue.x-k8s.io/v1beta1/namespaces/lab/workloads"


def test_job_of_a_kueue_queue_is_stopped_by_its_workload(server):
    """Kueue would reset a change of the Job itself."""
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(labels={"kueue.x-k8s.io/queue-name": "team"})
    server.answers["GET", f"{CORE}/pods"] = items("PodList")
    server.answers["GET", WORKLOADS] = {"items": [{"metadata": {"name": "job-nih-3f2a1"}}]}
    server.answers["PATCH", f"{WORKLOADS}/job-nih-3f2a1"] = {"metadata": {"name": "job-nih-3f2a1"}}
    launch.stop(launch.OneJob(job="nih"))
    launch.resume(launch.OneJob(job="nih"))
    changed = [(path, body) for method, path, _, body in server.asked if method == "PATCH"]
    assert changed == [
        (f"{WORKLOADS}/job-nih-3f2a1", {"spec": {"active": active}}) for active in (False, True)
    ]
    asked = [query["labelSelector"] for method, path, query, _ in server.asked if path == WORKLOADS]
    assert asked == [["kueue.x-k8s.io/job-uid=46ef6b23"]] * 2
    for answer, why in (
        ({"items": []}, "it has none"),
        (refusal(403, "Forbidden", "me cannot list workloads"), "me cannot list workloads"),
    ):
        server.answers["GET", WORKLOADS] = answer
        with pytest.raises(
            InputError, match=f"Kueue manages its queue team.*{why}.*kubectl patch workload NAME -n lab"
        ):
            launch.stop(launch.OneJob(job="nih"))


@pytest.mark.parametrize("act", [launch.stop, launch.resume])
@pytest.mark.parametrize(
    "condition, how",
    [(failed(), "has failed: exit code 78"), ({"type": "Complete", "status": "True"}, "is complete")],
)
def test_stop_and_resume_of_an_ended_job_are_errors(server, act, condition, how):
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(conditions=[condition])
    server.answers["GET", f"{CORE}/pods"] = items("PodList")
    with pytest.raises(InputError, match=f"Job nih {how}: .* kubectl delete job nih -n lab and submit"):
        act(launch.OneJob(job="nih"))
    assert server.sent("PATCH") == []


@pytest.mark.parametrize(
    "found, resumes",
    [
        (job(active=1), False),
        (job(conditions=[failed()]), False),
        (job(spec={"suspend": True}), True),
        (job(spec={"suspend": True}, conditions=[failed()]), False),
    ],
)
def test_submit_recommends_resume_only_for_a_suspended_job(server, found, resumes):
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = found
    with pytest.raises(
        InputError, match="Job train-nih exists.* kubectl delete job train-nih -n lab"
    ) as caught:
        launch.submit(launch.Submit())
    assert ("launch resume" in str(caught.value)) == resumes


def test_reason_for_missing_pods_is_reported(server, capsys):
    """One of two workers runs and the other is rejected; an old pod and its replacement have failed."""
    cluster = launch.kubernetes.connect("", "")
    server.answers["GET", f"{CORE}/events"] = items("EventList", event(QUOTA))
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(spec={"completions": 2, "parallelism": 2}, active=1)
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    assert cluster.why_waiting("nih") == f"1 of 2 pods missing: {QUOTA}"
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"), pod("nih-1"))
    assert cluster.why_waiting("nih") == ""
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(spec={"completions": 1, "parallelism": 1}, failed=1)
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0", "Failed"))
    assert cluster.why_waiting("nih") == f"no pods: {QUOTA}"
    cells = {"completions": 8, "parallelism": 5, "completionMode": "Indexed"}  # 3 done, 4 failed, 1 left
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(spec=cells, succeeded=3, failedIndexes="1,3-5", active=1)
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-7"))
    assert cluster.why_waiting("nih") == ""
    server.answers["GET", f"{CORE}/pods"] = items("PodList")
    server.answers["GET", f"{CORE}/events"] = refusal(403, "Forbidden", "me cannot list events")
    assert cluster.why_waiting("nih") == "no pods yet"  # not an error: the rest is known


def test_temporary_server_error_does_not_end_the_waiting(server, capsys):
    unavailable = refusal(503, "ServiceUnavailable", "etcd leader changed")
    server.answers["GET", f"{BATCH}/jobs/nih"] = [unavailable, job(active=1)]
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    launch._wait_for_pods(launch.kubernetes.connect("", ""), "nih", 9)
    assert capsys.readouterr().out == "Job nih: etcd leader changed\n"
    server.answers["GET", f"{BATCH}/jobs/nih"] = unavailable
    with pytest.raises(Interrupted, match="still waits after 0 seconds: Job nih: etcd leader changed"):
        launch._wait_for_pods(launch.kubernetes.connect("", ""), "nih", 0)


def test_rejected_requests_are_one_sentence(server):
    message = 'jobs.batch "nih" is forbidden: User "me" cannot get resource "jobs"'
    server.answers["GET", f"{BATCH}/jobs/nih"] = refusal(403, "Forbidden", message)
    with pytest.raises(InputError, match=f"^Job nih: {message}$"):
        launch.status(launch.OneJob(job="nih"))
    with pytest.raises(InputError, match="give the name of the Job"):
        launch.status(launch.OneJob())
    with pytest.raises(InputError, match="kubectl's configuration: "):
        launch.status(launch.OneJob(job="nih", context="missing"))


def test_invalid_kubectl_configuration_is_one_sentence(server, monkeypatch, tmp_path):
    for text in ("{", "contexts: 3\n", "[1]\n", "\x00"):
        (tmp_path / "kubeconfig").write_text(text)
        with pytest.raises(InputError, match="^kubectl's configuration.*") as caught:
            launch.status(launch.OneJob(job="nih"))
        assert "\n" not in str(caught.value)


def test_missing_kubernetes_client_prints_the_pip_command():
    program = "import runpy, sys; sys.modules['kubernetes'] = None; "
    program += "runpy.run_module('tf_detectorgan.launch', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr == "error: launch requires the Kubernetes client: pip install 'tf_detectorgan[k8s]'\n"
