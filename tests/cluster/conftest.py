"""Fixture with the stub of an API server and a kubectl configuration for it."""

import pytest
import yaml
from kubernetes.config import kube_config

from tests.cluster.api_server import Server
from tf_detectorgan import launch


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Starts the stub, and writes a kubectl configuration for it with the namespace `lab`."""
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
