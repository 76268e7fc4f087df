"""`launch fetch` against the stub, which runs what a pod would run: bytes, names, and what may go wrong."""

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
    """A cluster with Job train-nih, whose volume holds runs/nih; the working directory is empty."""
    resources = manifests.fill(manifests.read("train-nih"), image="", flags="", gpus=0, workers=0, queue="")
    config, job = (next(r for r in resources if r["kind"] == kind) for kind in ("ConfigMap", "Job"))
    job["spec"]["template"]["spec"]["imagePullSecrets"] = [{"name": "registry"}]
    server.answers["GET", f"{BATCH}/jobs/train-nih"] = job
    server.answers["GET", f"{CORE}/configmaps/train-nih"] = config
    server.answers["GET", CLAIM] = {"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"]}}
    other = pod("train-nih-0")
    other["spec"]["volumes"] = [{"name": "runs", "persistentVolumeClaim": {"claimName": "detectorgan-runs"}}]
    server.answers["GET", f"{CORE}/pods"] = items("PodList", pod("elsewhere"), other)
    server.answers["GET", HELPER] = [pod("fetch-x7k2p", "Pending"), pod("fetch-x7k2p")]
    server.answers["DELETE", HELPER] = pod("fetch-x7k2p")
    server.volume = tmp_path / "runs"
    (server.volume / "nih/arms/a").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return server.volume


def deleted(server):
    return [path for method, path, _, _ in server.asked if method == "DELETE"]


# Not UTF-8, all byte values, longer than a frame; names that are not ASCII; nothing at all.
FILES = {
    "arms/a/ckpt-1.data": bytes(range(256)) * 1024,
    "arms/a/metrics.json": b'{"ap": 1}',
    "empty": b"",
    "Über \u2713.png": b"\xff\xfe\x00",
}


def test_a_run_comes_byte_by_byte_and_its_pod_is_restricted_and_deleted(server, volume, capsys):
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
    with pytest.raises(InputError, match="nih: is there already"):
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
    [(cut, r"cut after \d+ bytes; .* --limit"), (flipped, "came damaged"), (shorter, r"cut after \d+ bytes")],
)
def test_what_does_not_come_whole_is_not_kept(server, volume, monkeypatch, spoil, words):
    if spoil is shorter:  # what is missing is waited for
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
        ({"path": "nhi"}, {}, "no run 'nhi' on the volume; there is nih"),
        ({"path": "../etc"}, {}, "a folder on the volume wanted"),
        ({"job": ""}, {}, "one of them"),
        ({"claim": "mine"}, {}, "PersistentVolumeClaim mine: .* not found"),
        ({}, {CLAIM: {"status": {"phase": "Pending"}}}, "is Pending: it has no volume yet"),
        ({"wait": 0}, {HELPER: pod("fetch-x7k2p", "Pending")}, "waits after 0 seconds: fetch-x7k2p is"),
        ({}, {HELPER: pod("fetch-x7k2p", "Failed", message="out of time")}, "has ended: out of time"),
        ({}, {f"{HELPER}/exec": refusal(403, "Forbidden", 'not for "me"')}, 'fetch-x7k2p: not for "me"$'),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_and_nothing_is_left(server, volume, options, answers, error):
    for path, answer in answers.items():
        server.answers["GET", path] = answer
    with pytest.raises((InputError, Interrupted), match=error):
        launch.fetch(launch.Fetch(**{"job": "train-nih"} | options))
    assert os.listdir() == []
    assert len(deleted(server)) == len(server.sent("POST"))


def test_once_the_job_is_gone_its_manifest_says_what_it_wrote_and_where(server, volume):
    """A volume that several nodes may mount asks for none of them."""
    server.answers["GET", CLAIM]["status"]["accessModes"] = ["ReadWriteMany"]
    (volume / "phantom").mkdir()
    (volume / "phantom/report.html").write_text("x")
    launch.fetch(launch.Fetch(manifest="train-phantom-cpu", image="r.example.com/x:1", to="out/new"))
    assert [str(path) for path in _files("out")] == ["out/new/report.html"]
    (body,) = server.sent("POST")
    assert body["spec"]["containers"][0]["image"] == "r.example.com/x:1"
    assert not {"affinity", "tolerations", "imagePullSecrets"} & body["spec"].keys()


class Packed:
    """What PackedStream reads of a websocket, of an archive made here."""

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
def test_archives_of_strangers_stay_in_their_folder(tmp_path, name, kind):
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with pytest.raises(InputError, match="outside|links and devices"):
        fetch.unpack(Packed(member), tmp_path / "run", lambda done, expected: None)
    assert list(tmp_path.iterdir()) == []


def test_what_the_run_replaces_meanwhile_is_named(tmp_path, monkeypatch):
    (tmp_path / "kept").write_bytes(b"1")
    monkeypatch.setattr(pack, "names", lambda root, without: iter(["ckpt-1.data", "kept"]))
    out, log = io.BytesIO(), io.StringIO()
    pack.pack(str(tmp_path), [], out, log)
    first, last = map(json.loads, log.getvalue().splitlines())
    assert (first["bytes"], last["gone"], last["length"]) == (1, ["ckpt-1.data"], len(out.getvalue()))
    out.seek(0)
    assert tarfile.open(fileobj=out).getnames() == ["kept"]
