"""The processes themselves, on a real API server with the rights that the chart gives them and no others."""

import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from cluster.control_plane import ControlPlane
from cluster.processes import free_ports, wait_for
from cluster.tools import Command

from .chart import Chart

SUPPORTED = (1, 29)
SERVICE = """
apiVersion: quire.dev/v1alpha1
kind: InferenceService
metadata: {name: llama}
spec:
  model: {uri: "hf://example/llama"}
  scaling: {provider: BuiltIn, minReplicas: 2, maxReplicas: 3}
---
apiVersion: quire.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat}
spec: {model: chat, targets: [{model: llama, weight: 100}]}
---
apiVersion: quire.dev/v1alpha1
kind: Tenant
metadata: {name: team}
spec: {}
"""
CHILDREN = (
    "deployments", "services", "serviceaccounts", "poddisruptionbudgets", "networkpolicies", "controllerrevisions",
)  # fmt: skip
Start = Callable[..., Path]


@pytest.fixture
def released(helm: Command, chart: Chart, control_plane: ControlPlane, namespace: str, install_crds: list[str]) -> str:
    """The chart in `namespace`, without pods of its own, so that the processes of the test are the only ones."""
    flags = [] if control_plane.version >= SUPPORTED else ["--server-side=false", "--disable-openapi-validation"]
    values = "allowUnsupportedKubernetes=true,operator.replicas=0,router.replicas=0,bindHost=127.0.0.1"
    cache = "models.cache.kind=PersistentVolumeClaim"
    helm("install", "quire", chart.folder, "-n", namespace, *flags, "--set", values, "--set", cache)
    return namespace


@pytest.fixture
def account(kubectl: Command, control_plane: ControlPlane, released: str, tmp_path: Path) -> Callable[[str], Path]:
    """A kubeconfig of one of the release's accounts."""

    def make(name: str) -> Path:
        config = yaml.safe_load(control_plane.kubeconfig.read_text())
        token = kubectl("create", "token", f"quire-{name}", "-n", released).strip()
        config["users"] = [{"name": name, "user": {"token": token}}]
        config["contexts"] = [
            {**entry, "context": {**entry["context"], "user": name, "namespace": released}}
            for entry in config["contexts"]
        ]
        path = tmp_path / f"{name}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    return make


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a console script's module with such arguments; the file with what it logs."""
    running: list[subprocess.Popen[bytes]] = []

    def launch(module: str, *arguments: str | Path, **environment: str) -> Path:
        log = tmp_path / f"{module}.log"
        with log.open("wb") as file:
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    stdout=file,
                    stderr=file,
                    env={**os.environ, **environment},
                )
            )
        return log

    yield launch
    for process in running:
        process.terminate()
        process.wait(60)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=15) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def refusals(log: Path) -> list[str]:
    """Lines about what the account may not do."""
    # Bare digits would be found in a time, too.
    return [
        line for line in log.read_text().splitlines() if re.search(r"forbidden|status\W{1,3}403\b", line, re.IGNORECASE)
    ]


@pytest.mark.slow
def test_the_charts_rights_are_enough_for_operator_and_router(
    kubectl: Command, released: str, account: Callable[[str], Path], start: Start, tmp_path: Path
) -> None:
    settings = kubectl.json("get", "configmap", "quire-operator", "-n", released)["data"]["platform.yaml"]
    (tmp_path / "platform.yaml").write_text(settings)
    health, metrics, http = free_ports(3)

    operator = start(
        "quire_operator", "--kubeconfig", account("operator"), "--platform", tmp_path / "platform.yaml",
        "--watch-namespace", released, "--lease-name", "quire-operator",
        "--health-port", str(health), "--metrics-port", str(metrics),
        "--scaler-port", "0", "--scaler-service", "quire-scaler", POD_NAME="quire-operator-0", POD_IP="10.1.1.1",
    )  # fmt: skip
    wait_for(lambda: is_ready(health), 180.0, f"the operator\n{operator.read_text()}")
    router = start(
        "quire_router", "--kubeconfig", account("router"), "--release", "quire", "--release-namespace", released,
        "--watch-namespace", released, "--host", "127.0.0.1", "--port", str(http),
    )  # fmt: skip
    kubectl("apply", "--validate=false", "-n", released, "-f", "-", stdin=SERVICE)

    def is_made(kind: str) -> bool:
        selector = "app.kubernetes.io/managed-by=quire-operator"
        return bool(kubectl("get", kind, "-l", selector, "-n", released, "-o", "name"))

    def has_status(kind: str, name: str) -> bool:
        return bool(kubectl("get", kind, name, "-n", released, "-o", "jsonpath={.status.conditions}"))

    def replicas() -> str:
        return kubectl("get", "infsvc", "llama", "-n", released, "-o", "jsonpath={.spec.replicas}")

    def leader() -> str:
        path = "jsonpath={.items[*].endpoints[*].addresses[*]}"
        selector = "kubernetes.io/service-name=quire-scaler"
        return kubectl("get", "endpointslices", "-l", selector, "-n", released, "-o", path)

    for kind in (*CHILDREN, "configmaps"):
        wait_for(lambda kind=kind: is_made(kind), 180.0, f"{kind}\n{operator.read_text()}")  # type: ignore[misc]
    wait_for(lambda: has_status("infsvc", "llama"), 120.0, "the service's status")
    wait_for(lambda: replicas() == "2", 120.0, f"replicas by the autoscaler\n{operator.read_text()}")
    wait_for(lambda: kubectl.run("get", "secret", "quire-trust", "-n", released).returncode == 0, 120.0, "trust")
    wait_for(lambda: kubectl.run("get", "pvc", "quire-models", "-n", released).returncode == 0, 120.0, "the claim")
    wait_for(lambda: leader() == "10.1.1.1", 120.0, f"the way to the scaler\n{operator.read_text()}")
    wait_for(lambda: is_ready(http), 180.0, f"the router\n{router.read_text()}")
    kubectl("delete", "infsvc", "llama", "-n", released)
    wait_for(lambda: not is_made("deployments"), 180.0, "the end of the children")

    account_name = f"system:serviceaccount:{released}:quire-operator"
    assert kubectl("auth", "can-i", "patch", "pods", "-n", released, "--as", account_name).strip() == "yes"
    assert "nodes are not watched" in operator.read_text()
    assert refusals(operator) == []
    assert refusals(router) == []
