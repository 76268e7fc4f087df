"""Copies a folder of a volume to this machine through a pod that mounts the volume and packs the folder.

The standard output of the pod is read frame by frame, because the reader of the official client keeps all
received data in memory (docs/decisions/0093).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

from tf_detectorgan import disk
from tf_detectorgan.cluster import pack
from tf_detectorgan.cluster.manifests import RUNS, Resource, runs_claim
from tf_detectorgan.errors import InputError

IDLE = 120.0  # seconds without a frame until the stream counts as interrupted
STDIN, STDOUT, STDERR, STATUS = b"\0", b"\1", b"\2", b"\3"  # channels: the first byte of every frame


def helper_pod(pod: Resource, *, image: str, claim: str, node: str, seconds: int) -> Resource:
    """Returns a Pod that mounts the volume of runs read-only and sleeps for at most `seconds`.

    Args:
      pod: specification of the Job's pods; its image, user and pull secrets are used.
      image: another image; "": that of the Job.
      claim: another claim; "": that of the Job.
      node: node to run on, because a volume may be limited to one node; "": any.
      seconds: after this time the cluster ends the Pod, in case this process cannot delete it.
    """
    labels = {f"app.kubernetes.io/{key}": "tf-detectorgan" for key in ("name", "part-of")}
    labels |= {f"app.kubernetes.io/{key}": "fetch" for key in ("instance", "component")}
    mounts = [{"name": "runs", "mountPath": RUNS, "readOnly": True}, {"name": "tmp", "mountPath": "/tmp"}]
    spec: Resource = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "activeDeadlineSeconds": seconds,
        "terminationGracePeriodSeconds": 1,
        "securityContext": pod.get("securityContext", {})
        | {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "fetch",
                "image": image or pod["containers"][0]["image"],
                "command": ["python3", "-c", f"import time; time.sleep({seconds})"],
                "resources": {
                    "requests": {"cpu": "100m", "memory": "256Mi"},
                    "limits": {"memory": "256Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": claim or runs_claim(pod)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "16Mi"}},
        ],
    }
    if pod.get("imagePullSecrets"):
        spec["imagePullSecrets"] = pod["imagePullSecrets"]
    if node:
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
        spec |= {"affinity": {"nodeAffinity": required}, "tolerations": [{"operator": "Exists"}]}
    metadata = {"generateName": "fetch-", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def command(path: str, without: tuple[str, ...]) -> list[str]:
    """Returns the command that packs `path` on the volume, except files or folders that match `without`."""
    return ["python3", "-c", Path(pack.__file__).read_text(encoding="utf-8"), RUNS, path, *without]


class PackedStream(io.RawIOBase):
    """A readable, unseekable file with the standard output of `pack` in a pod."""

    def __init__(self, socket: websocket.WebSocket, progress: Callable[[int, int], Any]):
        """`progress` is called with the bytes received and expected; expected is 0 until it is known."""
        self.received, self.sha256, self.end = 0, hashlib.sha256(), dict[str, Any]()
        self._socket, self._progress = socket, progress
        self._rest, self._line, self._expected = memoryview(b""), b"", 0
        self._last_error = ""
        socket.settimeout(IDLE)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if self.end and self.received >= self.end["length"]:
                return 0
            self._receive()
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _receive(self) -> None:
        """Receives one frame.

        Raises:
          InputError: the stream was interrupted, or the command has failed.
        """
        try:
            code, data = self._socket.recv_data()
        except (websocket.WebSocketException, OSError) as error:
            raise InputError(f"{self._interrupted()} ({error})") from error
        if code == websocket.ABNF.OPCODE_CLOSE:
            raise InputError(self._interrupted())
        channel, data = data[:1], data[1:]
        if channel == STDOUT:
            self._rest = memoryview(data)
            self.received += len(data)
            self.sha256.update(data)
            self._progress(self.received, self._expected)
        elif channel == STDERR:
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._read_log(line.decode(errors="replace"))
        elif channel == STATUS:  # `pack` waits for `check`, so its end is a failure
            raise InputError(self._last_error or json.loads(data).get("message", "packing has failed"))

    def _read_log(self, line: str) -> None:
        """Reads a line of standard error; a line that is not the JSON of `pack` is an error message."""
        if not line.startswith("{"):
            self._last_error = line
            return
        message = json.loads(line)
        self._expected = message.get("bytes", self._expected)
        self.end = message if "length" in message else self.end

    def _interrupted(self) -> str:
        return (
            f"the connection was lost after {self.received} bytes; run the same command again, with a higher "
            "--limit if that many seconds had passed"
        )

    def check(self) -> None:
        """Compares the checksum after all data were received, and ends `pack`.

        Raises:
          InputError: the received data are not those that were sent.
        """
        if self.sha256.hexdigest() != self.end["sha256"]:
            raise InputError(f"the checksum of {self.received} bytes is wrong; run the same command again")
        with contextlib.suppress(websocket.WebSocketException, OSError):  # the pod is deleted in any case
            self._socket.send_binary(STDIN + b"\n")
            self._socket.close()


def unpack(
    socket: websocket.WebSocket, target: Path, progress: Callable[[int, int], Any]
) -> tuple[int, list[str]]:
    """Unpacks the archive that `pack` sends into the new folder `target`, atomically.

    Returns:
      The number of files, and the names of files that disappeared during packing.

    Raises:
      InputError: the stream was interrupted or damaged, or a member is no file or outside of the folder.
    """
    stream, count = PackedStream(socket, progress), 0
    with disk.whole_directory(target) as folder:
        try:
            with tarfile.open(fileobj=io.BufferedReader(stream, 1 << 20), mode="r|") as archive:
                for member in archive:
                    if not member.isreg():
                        raise InputError(f"{member.name}: is no file; links and devices are not unpacked")
                    archive.extract(member, folder, filter="data")
                    count += 1
            while stream.read(1 << 20):  # padding of the archive
                pass
        except tarfile.TarError as error:
            raise InputError(f"the archive is damaged ({error}); run the same command again") from error
        stream.check()
    return count, stream.end["gone"]
