"""A folder of a volume, copied to this machine through a pod that mounts it read-only and packs it.

The pod's standard output is read frame by frame: the official client's own reader keeps everything it has
received in memory (docs/decisions/0093).
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

IDLE = 120.0  # seconds without a frame after which the stream counts as cut
STDIN, STDOUT, STDERR, STATUS = b"\0", b"\1", b"\2", b"\3"  # channels: the first byte of every frame


def helper_pod(pod: Resource, *, image: str, claim: str, node: str, seconds: int) -> Resource:
    """A Pod that mounts the volume of runs read-only and does nothing, for `seconds` at most.

    Args:
      pod: specification of the pods of the Job whose runs they are; image, user and pull secrets are theirs.
      image: another image; "": the Job's.
      claim: another claim; "": the Job's.
      node: where it must run, as a volume may be on one node at a time; "": anywhere.
      seconds: after which the cluster ends it, should this process not be there to delete it.
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
    """What the pod runs to pack `path` of the volume, without files or folders that match `without`."""
    return ["python3", "-c", Path(pack.__file__).read_text(encoding="utf-8"), RUNS, path, *without]


class PackedStream(io.RawIOBase):
    """Standard output of `pack` in a pod, as a file to read once."""

    def __init__(self, socket: websocket.WebSocket, progress: Callable[[int, int], Any]):
        """`progress` is given the bytes that have come and those expected, 0 while that is not known."""
        self.received, self.sha256, self.end = 0, hashlib.sha256(), dict[str, Any]()
        self._socket, self._progress = socket, progress
        self._rest, self._line, self._expected = memoryview(b""), b"", 0
        self._last_words = ""
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
        """Takes one frame.

        Raises:
          InputError: the stream was cut, or the command has failed.
        """
        try:
            code, data = self._socket.recv_data()
        except (websocket.WebSocketException, OSError) as error:
            raise InputError(f"{self._cut()} ({error})") from error
        if code == websocket.ABNF.OPCODE_CLOSE:
            raise InputError(self._cut())
        channel, data = data[:1], data[1:]
        if channel == STDOUT:
            self._rest = memoryview(data)
            self.received += len(data)
            self.sha256.update(data)
            self._progress(self.received, self._expected)
        elif channel == STDERR:
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._listen(line.decode(errors="replace"))
        elif channel == STATUS:  # `pack` waits for us, so its end is a failure
            raise InputError(self._last_words or json.loads(data).get("message", "packing has failed"))

    def _listen(self, line: str) -> None:
        """One line of standard error; what is not `pack`'s JSON says why it failed."""
        if not line.startswith("{"):
            self._last_words = line
            return
        said = json.loads(line)
        self._expected = said.get("bytes", self._expected)
        self.end = said if "length" in said else self.end

    def _cut(self) -> str:
        return (
            f"the stream was cut after {self.received} bytes; run the same command again, with a higher "
            "--limit if it took that many seconds"
        )

    def check(self) -> None:
        """Lets `pack` end once everything has come.

        Raises:
          InputError: what came is not what was sent.
        """
        if self.sha256.hexdigest() != self.end["sha256"]:
            raise InputError(f"{self.received} bytes came damaged; run the same command again")
        with contextlib.suppress(websocket.WebSocketException, OSError):  # the pod is deleted in any case
            self._socket.send_binary(STDIN + b"\n")
            self._socket.close()


def unpack(
    socket: websocket.WebSocket, target: Path, progress: Callable[[int, int], Any]
) -> tuple[int, list[str]]:
    """Unpacks what `pack` sends into the new folder `target`, which is there whole or not at all.

    Returns:
      The number of files, and the names of those that disappeared while they were packed.

    Raises:
      InputError: the stream was cut or damaged, or holds what is neither file nor inside of the folder.
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
            while stream.read(1 << 20):  # the archive's padding
                pass
        except tarfile.TarError as error:
            raise InputError(f"what the pod sends cannot be unpacked ({error})") from error
        stream.check()
    return count, stream.end["gone"]
