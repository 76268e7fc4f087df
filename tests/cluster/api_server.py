"""A stub of an API server, including the websockets for commands in pods."""

import base64
import hashlib
import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from websocket import ABNF, frame_buffer

PATCHES = ("application/merge-patch+json", "application/strategic-merge-patch+json")
CORE, BATCH = "/api/v1/namespaces/lab", "/apis/batch/v1/namespaces/lab"


def refusal(code, reason, message):
    """Returns the Status object of an API server for a rejected request."""
    body = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message}
    return code, body | {"reason": reason, "code": code}


def pod(name, phase="Running", **status):
    spec = {"containers": [{"name": "train"}], "nodeName": "node-a"}
    return {
        "metadata": {"name": name, "uid": f"uid-of-{name}"},
        "spec": spec,
        "status": {"phase": phase, **status},
    }


def job(spec=None, labels=None, **status):
    spec = {"suspend": False, "template": {"spec": {"containers": [{"name": "train"}]}}} | (spec or {})
    metadata = {"name": "nih", "uid": "46ef6b23", "labels": labels or {}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "status": status, "spec": spec}


def failed(message="exit code 78"):
    """Returns the condition of a failed Job."""
    return {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": message}


def items(kind, *found):
    return {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": list(found)}


class Cut(str):
    """Text after which the connection is lost."""


class Server:
    """A server that returns `answers[method, path]`: a body, (code, body), text, or a list with one per call.

    What is posted and not in `answers` comes back as created. Commands run in pods are run here, with
    `volume` in place of /runs; `spoil(number, frame)` changes what their standard output's frames become.
    """

    def __init__(self):
        self.answers, self.asked = {}, []
        self.volume, self.spoil = None, lambda number, frame: frame
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                url = urlsplit(self.path)
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
                server.asked.append((self.command, url.path, parse_qs(url.query), body))
                if self.command == "PATCH":
                    assert self.headers["Content-Type"] in PATCHES
                found = server.answers.get((self.command, url.path))
                if isinstance(found, list):
                    found = found.pop(0) if len(found) > 1 else found[0]
                if found is None and "Upgrade" in self.headers:
                    Exec(self, server, parse_qs(url.query)["command"]).run()
                    return
                if found is None:
                    if body and "generateName" in body["metadata"]:
                        body["metadata"]["name"] = body["metadata"]["generateName"] + "x7k2p"
                    found = (201, body) if body else refusal(404, "NotFound", f"{url.path} not found")
                code, sent = found if isinstance(found, tuple) else (200, found)
                text = isinstance(sent, str)
                data = (sent if text else json.dumps(sent)).encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain" if text else "application/json")
                if text:  # logs come in chunks, the last of which is empty
                    self.send_header("Transfer-Encoding", "chunked")
                    end = b"" if isinstance(sent, Cut) else b"0\r\n\r\n"
                    data = (b"%x\r\n%s\r\n" % (len(data), data) if data else b"") + end
                else:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, args=[0.01], daemon=True).start()

    def sent(self, method):
        return [body for asked, _, _, body in self.asked if asked == method]


class Exec:
    """A command, with input and output in frames of v4.channel.k8s.io, whose first byte is the channel."""

    def __init__(self, handler, server, command):
        assert command[0] == "python3"
        command = [sys.executable, *(str(server.volume) if c == "/runs" else c for c in command[1:])]
        self.handler, self.spoil, self.lock = handler, server.spoil, threading.Lock()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(self):
        key = self.handler.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
        self.handler.send_response(101)
        self.handler.send_header("Upgrade", "websocket")
        self.handler.send_header("Connection", "Upgrade")
        self.handler.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.handler.send_header("Sec-WebSocket-Protocol", "v4.channel.k8s.io")
        self.handler.end_headers()
        self.handler.close_connection = True
        threads = [threading.Thread(target=work, daemon=True) for work in (self.errors, self.input)]
        for thread in threads:
            thread.start()
        for number, data in enumerate(iter(lambda: self.process.stdout.read1(32768), b"")):
            if (data := self.spoil(number, data)) is None:  # the connection is lost
                self.process.kill()
                self.handler.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send(1, data)
        threads[0].join()
        code = self.process.wait()
        self.send(3, json.dumps({"status": "Failure" if code else "Success"}).encode())
        self.handler.wfile.write(
            ABNF(fin=1, opcode=ABNF.OPCODE_CLOSE, mask_value=0, data=b"\x03\xe8").format()
        )

    def send(self, channel, data):
        frame = ABNF(fin=1, opcode=ABNF.OPCODE_BINARY, mask_value=0, data=bytes([channel]) + data).format()
        with self.lock:
            self.handler.wfile.write(frame)

    def errors(self):
        for line in self.process.stderr:
            self.send(2, line)

    def input(self):
        frames = frame_buffer(self.handler.rfile.read1, True)
        while (frame := frames.recv_frame()).opcode == ABNF.OPCODE_BINARY:
            assert frame.data[0] == 0
            self.process.stdin.write(frame.data[1:])
            self.process.stdin.flush()
