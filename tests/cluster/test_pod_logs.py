"""Tests of `launch logs`: all lines of all pods, also after lost pods and connections."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.api_server import BATCH, CORE, Cut, failed, items, job, pod, refusal
from tf_detectorgan import launch
from tf_detectorgan.errors import EXIT_BAD_INPUT, InputError, Interrupted

ROOT = Path(__file__).resolve().parents[2]
WAITING = refusal(400, "BadRequest", "container train is waiting to start: ContainerCreating")


def log(server, name, text, *phases):
    """Sets the responses for a pod's log, and the phases of the pod after each end of its log."""
    server.answers["GET", f"{CORE}/pods/{name}/log"] = text
    server.answers["GET", f"{CORE}/pods/{name}"] = [pod(name, phase) for phase in phases or ("Succeeded",)]


def queries(server, name):
    return [query for _, path, query, _ in server.asked if path == f"{CORE}/pods/{name}/log"]


def test_log_lines_start_with_the_name_of_the_pod(server, capsys):
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-1"), pod("nih-0"))
    log(server, "nih-0", "step 1\n 10%\r 20%\r\nstep 2")
    log(server, "nih-1", "ready\n")
    expected = ["nih-0 | step 1", "nih-0 |  10%", "nih-0 |  20%", "nih-0 | step 2", "nih-1 | ready"]
    launch.logs(launch.Logs(job="nih"))
    assert capsys.readouterr().out.splitlines() == expected
    server.answers["GET", f"{CORE}/pods/nih-0/log"] = WAITING
    with pytest.raises(InputError, match="log of nih-0: container train is waiting to start"):
        launch.logs(launch.Logs(job="nih"))
    assert capsys.readouterr().out == "nih-1 | ready\n"
    server.answers["GET", f"{CORE}/pods"] = items("PodList")
    server.answers["GET", f"{BATCH}/jobs/nih"] = job()
    for follow in (False, True):
        with pytest.raises(InputError, match="Job nih has no pods: no pods yet"):
            launch.logs(launch.Logs(job="nih", follow=follow))


def test_follow_includes_later_pods_until_the_job_ends(server, capsys):
    """One pod replaces a lost one, and a third pod exists when the Job has failed."""
    server.answers["GET", f"{BATCH}/jobs/nih"] = [
        job(active=1), refusal(503, "ServiceUnavailable", "soon"), job(active=1), job(conditions=[failed()])
    ]  # fmt: skip
    pods = [pod("nih-a", "Failed"), pod("nih-b"), pod("nih-c")]
    server.answers["GET", f"{CORE}/pods"] = [items("PodList", *pods[:count]) for count in (1, 1, 2, 3)]
    for name, text in (("nih-a", "lost\n"), ("nih-b", "resumed\n"), ("nih-c", "again\n")):
        log(server, name, text)
    with pytest.raises(InputError, match="^Job nih has failed: exit code 78$"):
        launch.logs(launch.Logs(job="nih", follow=True))
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == ["nih-a | lost", "nih-b | resumed", "nih-c | again"]
    assert {query["follow"][0].lower() for query in queries(server, "nih-a")} == {"true"}


def test_follow_retries_a_waiting_pod_and_an_interrupted_log(server, capsys):
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(conditions=[{"type": "Complete", "status": "True"}])
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    phases = ("Pending", "Pending", "Running", "Running", "Succeeded", "Succeeded")
    texts = [WAITING, WAITING, Cut("step 1\n"), "step 2\n", Cut("step 3\n"), "step 4\n"]
    log(server, "nih-0", texts, *phases)
    launch.logs(launch.Logs(job="nih", follow=True))
    out = capsys.readouterr().out
    notes = [line for line in out.splitlines() if "(" in line]
    assert [line for line in out.splitlines() if line not in notes] == [
        *(f"nih-0 | step {i}" for i in (1, 2, 3, 4)),
        "Job nih is complete",
    ]
    assert "waiting to start" in notes[0]  # at once, and only once
    assert all("no answer from the API server" in line for line in notes[1:])
    since = [query.get("sinceSeconds") for query in queries(server, "nih-0")]
    assert since == [None, None, None, ["1"], ["1"], ["1"]]


@pytest.mark.parametrize("phases", [("Failed", "Failed"), ()])
def test_follow_reports_and_skips_a_log_that_does_not_exist(server, capsys, phases):
    """The pod was evicted before it started, or was deleted."""
    server.answers["GET", f"{BATCH}/jobs/nih"] = job(spec={"suspend": True})
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("nih-0"))
    if phases:
        log(server, "nih-0", WAITING, *phases)
    with pytest.raises(Interrupted, match="Job nih is suspended; to resume: launch resume --job=nih"):
        launch.logs(launch.Logs(job="nih", follow=True))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("nih-0 | (log of nih-0: ")


def test_f_is_the_short_form_of_follow():
    done = subprocess.run(
        [sys.executable, "-m", "tf_detectorgan.launch", "logs", "-f"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == EXIT_BAD_INPUT
    assert done.stderr.splitlines()[-1] == "error: --job is required: give the name of the Job"
