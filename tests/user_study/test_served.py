"""The command as a separate process."""

import http.cookiejar
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_printed_address_serves_the_page(study, free_port):
    token = "a+b&c=d#e é%41 ok"
    command = [sys.executable, "-m", "tf_detectorgan.study", f"--out={study}", f"--port={free_port}"]
    with subprocess.Popen(
        [*command, f"--token={token}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as served:
        try:
            address = re.search(r"http://\S+", served.stdout.readline())[0]
            cookies = urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
            with urllib.request.build_opener(cookies).open(address, timeout=30) as answer:
                assert "Which image looks more real?" in answer.read().decode()
                assert "token" not in answer.url
        finally:
            served.send_signal(signal.SIGINT)
        assert "--report prints the table" in served.communicate(timeout=30)[0]
    assert served.returncode == 0
