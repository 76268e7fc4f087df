"""Builds the image without a daemon on a new Debian base, and trains in it as the image's user."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tf_detectorgan import __version__

ROOT = Path(__file__).resolve().parents[2]
USER = 10001
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
TINY = "--arm=cut_paste --object_source=crop --phantom_size=32 --phantom_train_images=4"
TINY += " --pretrain_detector_steps=1 --final_detector_steps=2 --synthetic_count=3 --detector_batch=2"
TINY += " --crossfit_folds=0 --run_dir=/runs/tiny"


def call(*command, **environment):
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-1500:]} {done.stderr[-1500:]}"
    return done.stdout.strip()


def pip_settings():
    """Returns files and folders of this machine with the configuration and certificates of pip."""
    pip = [sys.executable, "-m", "pip", "config"]
    files = re.findall(r"^  (/\S+), exists: True", call(*pip, "debug"), re.MULTILINE)
    values = re.findall(r"(?<![\w:/.])(?:file://)?(/[^\s'\"]+)", call(*pip, "list"))
    found = {Path(name) for name in (*files, *values)} | {CERTIFICATES}
    # A folder "simple" is an index, which links to files in its parent folder.
    found = {path.parent if path.name == "simple" else path for path in found}
    return sorted(path for path in found if path.exists())


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """Returns an environment in which the built image is `localhost/detectorgan`."""
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if os.geteuid() or missing:
        pytest.skip(f"requires root, buildah and debootstrap (missing: {', '.join(missing) or 'root'})")
    store = tmp_path_factory.mktemp("storage")
    (store / "storage.conf").write_text(
        f'[storage]\ndriver = "overlay"\nrunroot = "{store}/run"\ngraphroot = "{store}/graph"\n'
    )
    environment = {"CONTAINERS_STORAGE_CONF": str(store / "storage.conf")}
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
    )
    try:
        wanted = "--include=python3,python3-venv,ca-certificates"
        call(
            "debootstrap", "--variant=minbase", wanted, release["VERSION_CODENAME"].strip('"'), store / "root"
        )
        empty = call("buildah", "from", "scratch", **environment)
        call("buildah", "add", "--quiet", empty, store / "root", "/", **environment)
        call("buildah", "commit", "--quiet", "--rm", empty, "localhost/base", **environment)
        mounts = " ".join(f"-v {path}:{path}:ro" for path in pip_settings())
        call(
            *("make", "image", "BUILDER=buildah", "BASE_IMAGE=localhost/base", "IMAGE=localhost/detectorgan"),
            f"BUILD_FLAGS={mounts} --secret id=ca_bundle,src={CERTIFICATES}",
            **environment,
        )
        yield environment
    finally:
        subprocess.run(
            ["buildah", "rm", "--all"], env=os.environ | environment, capture_output=True, check=False
        )
        subprocess.run(["umount", store / "graph/overlay"], capture_output=True, check=False)
        shutil.rmtree(store)


def test_pip_uses_the_certificates_of_the_secret():
    """pip up to 24.1 uses only its own certificates unless PIP_CERT is set."""
    text = (ROOT / "docker/Dockerfile").read_text("utf-8").replace("\\\n", " ")
    installs = [line for line in text.splitlines() if line.startswith("RUN") and "pip install" in line]
    assert len(installs) == 2
    for line in installs:
        target = re.search(r"id=ca_bundle,target=(\S+)", line)[1]
        script = re.sub(r"^RUN|--mount=\S+", "", line).replace(target, "$BUNDLE").split("&&")[0]
        for bundle, expected in ((CERTIFICATES, str(CERTIFICATES)), ("/absent", "")):
            environment = {"BUNDLE": str(bundle), "PATH": os.environ["PATH"]}
            show = ["sh", "-ec", f'{script} && printf %s "$PIP_CERT"']
            assert subprocess.run(show, env=environment, capture_output=True, text=True).stdout == expected


@pytest.mark.parametrize("daemon", [True, False])
def test_make_image_uses_docker_if_its_daemon_responds(tmp_path, daemon):
    for tool in ("docker", "buildah"):
        (tmp_path / tool).write_text(f"#!/bin/sh\nexit {int(not daemon)}\n")
        (tmp_path / tool).chmod(0o755)
    printed = call("make", "-n", "image", PATH=f"{tmp_path}:{os.environ['PATH']}")
    builder = re.search(r"^(docker build|podman build|buildah bud) ", printed, re.MULTILINE)[1]
    assert (builder == "docker build") == daemon


@pytest.mark.image
@pytest.mark.nightly
@pytest.mark.slow
def test_image_trains_as_its_user(image, tmp_path):
    runs = tmp_path / "runs"
    runs.mkdir()
    os.chown(runs, USER, USER)
    container = call("buildah", "from", "localhost/detectorgan", **image)
    inspected = json.loads(call("buildah", "inspect", "--type", "image", "localhost/detectorgan", **image))
    config = inspected["OCIv1"]["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["/opt/venv/bin/python", "-m", "tf_detectorgan.train"]
    revision = call("sh", "-c", "git rev-parse HEAD 2>/dev/null || echo unknown")
    about = {
        "title": "tf_detectorgan",
        "licenses": "Apache-2.0",
        "version": __version__,
        "revision": revision,
    }
    labels = {f"org.opencontainers.image.{name}": value for name, value in about.items()}
    assert labels.items() <= config["Labels"].items()
    run = ("buildah", "run", "--isolation", "chroot", "-v", f"{runs}:/runs", container, "--")
    out = call(*run, "/opt/venv/bin/python", "-m", "tf_detectorgan.train", *TINY.split(), **image)
    assert "report: /runs/tiny/report.html" in out
    assert (runs / "tiny/report.html").stat().st_uid == USER
    # A read-only root would suffice: the user can write, and has written, only to /tmp and /runs.
    kept = (
        "( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp -o -path /runs ) -prune -o"
    )
    as_root = ("buildah", "run", "--user", "0:0", *run[2:])
    assert call(*as_root, "find", "/", *kept.split(), "-user", str(USER), "-print", **image) == ""
    assert call(*run, "sh", "-c", "touch /opt/venv/x 2>/dev/null || echo refused", **image) == "refused"
