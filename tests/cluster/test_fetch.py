"""Tests of `launch fetch` against the stub, which runs the command of the pod: data, names and errors."""

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from tests.cluster.api_server import BATCH, CORE, items, pod, refusal
from tf_detectorgan import launch
from tf_detectorgan.cluster import fetch, manifests, pack
from tf_detectorgan.errors import InputError, Interrupted

HELPER = f"{CORE}/pods/fetch-x7k2p"
CLAIM = f"{CORE}/persistentvolumeclaims/detectorgan-runs"


@pytest.fixture
def volume(server, tmp_path, monkeypatch):
    """Sets up a cluster with Job train-nih, whose volume has runs/nih, and an empty working directory."""
    resources = manifests.fill(manifests.read("train-nih"), image="", flags="", gpus=0, workers=0, queue="")
    config, job = (next(r for r in resources if r["kind"] == kind) for kind in ("ConfigMap", "Job"))
    job["spec"]["template"]["spec"]["imagePullSecrets"] = [{"name": "registry"}]
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = job
    server.answers["GET", f"{CORE}/configmaps/train-nih"] = config
    server.answers["GET", CLAIM] = {"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"]}}
    other = pod("train-nih-0")
    other["spec"]["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": "detectorgan-runs"}}]
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("unrelated"), other)
    server.answers["GET", HELPER] = [pod("fetch-x7k2p", "Pending"), pod("fetch-x7k2p")]
    server.answers["DELETE", HELPER] = pod("fetch-x7k2p")
    server.volume = tmp_path / "runs"
    (server.volume / "nih/arms/a").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return server.volume


def deleted(server):
    return [path for method, path, _, _ in server.asked if method == "DELETE"]


# Not UTF-8, all byte values, longer than a frame; a name that is not ASCII; an empty file.
FILES = {
    "arms/a/ckpt-1.data": bytes(range(256)) * 1024,
    "arms/a/metrics.json": b'{"ap": 1}',
    "empty": b"",
    "Über \u2713.png": b"\xff\xfe\x00",
}


def test_fetch_copies_all_bytes_and_deletes_its_restricted_pod(server, volume, capsys):
    for name, data in FILES.items():
        (volume / "nih" / name).write_bytes(data)
    (volume / "nih/link").symlink_to("/etc/passwd")
    (volume / "nih/phantom").mkdir()
    (volume / "nih/phantom/left.out").write_bytes(b"1")
    launch.fetch(launch.Fetch(job="train-nih", without=("phantom",)))
    got = {os.path.relpath(path, "nih"): path.read_bytes() for path in _files("nih")}
    assert got == FILES
    assert deleted(server) == [HELPER]
    out = capsys.readouterr().out
    assert "fetch-x7k2p is pending" in out
    assert "nih: 4 files" in out
    (body,) = server.sent("POST")
    spec = body["spec"]
    assert spec["containers"][0]["image"] == "tf_detectorgan:gpu"
    assert spec["containers"][0]["volumeMounts"][0] == {
        "name": "runs", "mountPath": "/runs", "readOnly": True
    }  # fmt: skip
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "detectorgan-runs"}
    assert spec["securityContext"]["runAsUser"] == spec["securityContext"]["fsGroup"] == 10001
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["activeDeadlineSeconds"] == 3600
    # The volume is on node-a, where another pod uses it.
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["node-a"]}]
    with pytest.raises(InputError, match="nih: exists"):
        launch.fetch(launch.Fetch(job="train-nih"))


def _files(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


def cut(number, data):
    return None if number else data


def flipped(number, data):
    return data if number else data[:-1] + bytes([data[-1] ^ 1])


def shorter(number, data):
    return data if number else data[:-10]


@pytest.mark.parametrize(
    "spoil, words",
    [(cut, r"lost after \d+ bytes; .* --limit"), (flipped, "is wrong"), (shorter, r"lost after \d+ bytes")],
)
def test_incomplete_or_damaged_copy_is_removed(server, volume, monkeypatch, spoil, words):
    if spoil is shorter:  # `fetch` waits for the missing bytes
        monkeypatch.setattr(fetch, "IDLE", 0.5)
    (volume / "nih/big").write_bytes(os.urandom(1 << 19))
    server.spoil = spoil
    with pytest.raises(InputError, match=words):
        launch.fetch(launch.Fetch(job="train-nih"))
    assert os.listdir() == []
    assert deleted(server) == [HELPER]


@pytest.mark.parametrize(
    "options, answers, error",
    [
        ({"path": "nhi"}, {}, "no run 'nhi' on the volume; it contains nih"),
        ({"path": "../etc"}, {}, "give a relative folder on the volume"),
        ({"job": ""}, {}, "give either --job or"),
        ({"claim": "mine"}, {}, "PersistentVolumeClaim mine: .* not found"),
        ({}, {CLAIM: {"status": {"phase": "Pending"}}}, "is Pending: it has no volume yet"),
        ({"wait": 0}, {HELPER: pod("fetch-x7k2p", "Pending")}, "still waits after 0 seconds: fetch-x7k2p is"),
        ({}, {HELPER: pod("fetch-x7k2p", "Failed", message="out of time")}, "has ended: out of time"),
        ({}, {f"{HELPER}/exec": refusal(403, "Forbidden", 'not for "me"')}, 'fetch-x7k2p: not for "me"$'),
    ],
)  # fmt: skip
def test_fetch_error_is_reported_and_leaves_no_files_or_pods(server, volume, options, answers, error):
    for path, answer in answers.items():
        server.answers["GET", path] = answer
    with pytest.raises((InputError, Interrupted), match=error):
        launch.fetch(launch.Fetch(**{"job": "train-nih"} | options))
    assert os.listdir() == []
    assert len(deleted(server)) == len(server.sent("POST"))


def test_fetch_of_a_deleted_job_uses_its_manifest(server, volume):
    """A volume that several nodes may mount needs no node affinity."""
    server.answers["GET", CLAIM]["status"]["accessModes"] = ["ReadWriteMany"]
    (volume / "phantom").mkdir()
    (volume / "phantom/report.html").write_text("x")
    launch.fetch(launch.Fetch(manifest="train-phantom-cpu", image="r.example.com/x:1", to="out/new"))
    assert [str(path) for path in _files("out")] == ["out/new/report.html"]
    (body,) = server.sent("POST")
    assert body["spec"]["containers"][0]["image"] == "r.example.com/x:1"
    assert not {"affinity", "tolerations", "imagePullSecrets"} & body["spec"].keys()


class Packed:
    """A websocket for PackedStream that returns an archive of the given members."""

    def __init__(self, *members):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            for member in members:
                archive.addfile(member)
        end = {
            "length": len(out.getvalue()),
            "sha256": hashlib.sha256(out.getvalue()).hexdigest(),
            "gone": [],
        }
        self.frames = [b"\1" + out.getvalue(), b"\2" + json.dumps(end).encode() + b"\n"]

    def settimeout(self, seconds):
        pass

    def recv_data(self):
        return 2, self.frames.pop(0)


@pytest.mark.parametrize(
    "name, kind", [("../out", tarfile.REGTYPE), ("in", tarfile.SYMTYPE), ("in", tarfile.FIFOTYPE)]
)
def test_unsafe_archive_members_are_rejected(tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(InputError, match="outside|links and devices"):
        fetch.unpack(Packed(member), tmp_path / "run", lambda done, expected: None)
    assert list(tmp_path.iterdir()) == []


def test_files_replaced_during_packing_are_reported(tmp_path, monkeypatch):
    (tmp_path / "kept").write_bytes(b"1")
    monkeypatch.setattr(pack, "names", lambda root, without: iter(["ckpt-1.data", "kept"]))
    out, log = io.BytesIO(), io.StringIO()
    pack.pack(str(tmp_path), [], out, log)
    first, last = map(json.loads, log.getvalue().splitlines())
    assert (first["bytes"], last["gone"], last["length"]) == (1, ["ckpt-1.data"], len(out.getvalue()))
    out.seek(0)
    assert tarfile.open(fileobj=out).getnames() == ["kept"]
