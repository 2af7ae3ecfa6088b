"""Pytest fixtures over the harness; every one starts on first use and says why where this machine cannot run it.

tests/conftest.py names this module as a plugin, so every test may ask for them.
"""

import json
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from .binaries import find_control_plane
from .cache import HarnessError
from .control_plane import ControlPlane, GivenControlPlane, OwnControlPlane
from .processes import wait_for
from .tools import Command, Tools, find_tools, helm_command, kubectl_command

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cluster_tools() -> Tools:
    """kubectl and helm."""
    try:
        return find_tools()
    except HarnessError as reason:
        return _refuse(reason)


@pytest.fixture(scope="session")
def control_plane(cluster_tools: Tools, request: pytest.FixtureRequest) -> Iterator[ControlPlane]:
    """A real API server with its own etcd and controllers, for the whole session; ready in about 5 s."""
    given = os.environ.get("QUIRE_TEST_KUBECONFIG")
    if given:
        yield _given_control_plane(Path(given), cluster_tools)
        return
    try:
        binaries = find_control_plane()
    except HarnessError as reason:
        _refuse(reason)
    folder = Path(tempfile.mkdtemp(prefix="quire-cluster-"))
    plane = OwnControlPlane(folder, binaries)
    failed_before = request.session.testsfailed
    try:
        plane.start()
        yield plane
    except BaseException:
        failed_before = -1
        raise
    finally:
        plane.stop()
        if request.session.testsfailed != failed_before:
            print(f"\nlogs of the test control plane are kept: {folder}/logs and {folder}/audit.log")
            shutil.rmtree(folder / "etcd", ignore_errors=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kubectl(control_plane: ControlPlane, cluster_tools: Tools) -> Command:
    """`kubectl("get", "pods", "-n", namespace)` gives standard output; `.json(...)` parses it; `.run(...)` never raises."""
    return kubectl_command(cluster_tools, control_plane.kubeconfig)


@pytest.fixture(scope="session")
def helm(control_plane: ControlPlane, cluster_tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """helm, called as kubectl is; it reads no repositories or plugins of the user's."""
    return helm_command(cluster_tools, control_plane.kubeconfig, tmp_path_factory.mktemp("helm"))


@pytest.fixture
def namespace(kubectl: Command) -> Iterator[str]:
    """A fresh namespace, deleted afterwards (its objects go in the background)."""
    name = f"test-{secrets.token_hex(5)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture(scope="session")
def controllers(control_plane: ControlPlane) -> None:
    """For tests in which Deployments make pods or owned objects are collected: a bare envtest does neither."""
    if not control_plane.has_controllers:
        _refuse(HarnessError("the control plane's binaries are without a kube-controller-manager"))


@pytest.fixture(scope="session")
def install_crds(kubectl: Command) -> list[str]:
    """The CRDs of crds/, served; their names. An old server drops their CEL rules, which is not refused here."""
    applied = kubectl("apply", "--validate=false", "-f", REPOSITORY / "crds", "-o", "name").split()
    # No `kubectl wait`: it fails on a CRD that has no conditions yet, and being established precedes being served.
    names = [name.partition("/")[2] for name in applied]
    for name in names:
        wait_for(partial(_is_served, kubectl, name), 120.0, f"{name} is served")
        wait_for(partial(_is_published, kubectl, name), 180.0, f"the schema of {name} is published")
    return names


def _is_served(kubectl: Command, resource: str) -> bool:
    return kubectl.run("get", resource, "-A").returncode == 0


def _is_published(kubectl: Command, resource: str) -> bool:
    """Whether kubectl can tell its fields: before that it refuses no unknown one."""
    return kubectl.run("explain", f"{resource}.spec").returncode == 0


def _given_control_plane(kubeconfig: Path, tools: Tools) -> GivenControlPlane:
    kubectl = kubectl_command(tools, kubeconfig)
    server = json.loads(kubectl("version", "-o", "json"))["serverVersion"]
    url = kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    minor = re.sub(r"\D.*", "", server["minor"])
    nodes = kubectl("get", "nodes", "-o", "name").split()
    return GivenControlPlane(kubeconfig, url, (int(server["major"]), int(minor)), has_node=bool(nodes))


def _refuse(reason: HarnessError) -> NoReturn:
    """Skips with the reason; fails under CI, where a skipped test would look like a passed one."""
    if os.environ.get("CI") or os.environ.get("QUIRE_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"no Kubernetes for tests: {reason}", pytrace=False)
    pytest.skip(f"no Kubernetes for tests: {reason}")
