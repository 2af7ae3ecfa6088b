"""The harness gives a real Kubernetes, and nothing of it is left behind."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cluster.control_plane import ControlPlane
from cluster.processes import ProcessError, Processes, wait_for
from cluster.tools import Command, CommandError


@pytest.mark.usefixtures("controllers")
def test_owned_objects_are_collected_and_deployments_make_pods(kubectl: Command, namespace: str) -> None:
    kubectl("create", "deployment", "web", "--image=localhost/none", "-n", namespace)
    wait_for(lambda: bool(kubectl("get", "pods", "-n", namespace, "-o", "name")), 120.0, "the deployment's pod")

    kubectl("delete", "deployment", "web", "-n", namespace)

    wait_for(lambda: not kubectl("get", "pods,rs", "-n", namespace, "-o", "name"), 120.0, "collection")


def test_the_crds_are_served(kubectl: Command, install_crds: list[str], namespace: str) -> None:
    assert "inferenceservices.quire.dev" in install_crds

    found = kubectl("get", "infsvc", "-n", namespace)

    assert found == ""


def test_the_api_server_comes_back_with_what_it_had(
    control_plane: ControlPlane, kubectl: Command, namespace: str
) -> None:
    if not control_plane.can_stop_api_server:
        pytest.skip("the cluster was given from outside")
    control_plane.stop_api_server()
    with pytest.raises(CommandError):
        kubectl("get", "namespace", namespace)

    control_plane.start_api_server()

    assert kubectl.json("get", "namespace", namespace)["metadata"]["name"] == namespace


def test_requests_of_clients_are_recorded(control_plane: ControlPlane, kubectl: Command, namespace: str) -> None:
    if not control_plane.can_stop_api_server:
        pytest.skip("the cluster was given from outside")
    kubectl("create", "configmap", "told", "-n", namespace)

    def writes() -> list[str]:
        return [
            event["verb"]
            for event in control_plane.requests()
            if (event.get("objectRef") or {}).get("name") == "told" and event["objectRef"]["namespace"] == namespace
        ]

    wait_for(lambda: writes() == ["create"], 60.0, "the audit event")


def test_helm_installs_a_chart_and_takes_it_away(
    helm: Command, kubectl: Command, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 1.0.0\n")
    (tmp_path / "templates" / "map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: probe}\ndata: {a: b}\n"
    )

    helm("install", "probe", tmp_path, "-n", namespace)
    installed = kubectl.json("get", "configmap", "probe", "-n", namespace)["data"]
    helm("uninstall", "probe", "-n", namespace)

    assert installed == {"a": "b"}
    assert kubectl.run("get", "configmap", "probe", "-n", namespace).returncode != 0


@pytest.mark.skipif(sys.platform != "linux", reason="parents' deaths are signalled on Linux only")
def test_processes_die_with_the_tests_that_started_them(tmp_path: Path) -> None:
    script = (
        "import pathlib, signal, sys\n"
        "from cluster.processes import Processes\n"
        "processes = Processes(pathlib.Path(sys.argv[1]), die_with_parent=True)\n"
        "processes.start('sleeper', ['sleep', '600'])\n"
        "print('started', flush=True)\n"
        "signal.pause()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        sleeper = Processes(tmp_path, die_with_parent=False)
        was_running = sleeper.is_running("sleeper")

        parent.send_signal(signal.SIGKILL)

    assert was_running
    wait_for(lambda: not sleeper.is_running("sleeper"), 60.0, "the sleeper's end")


def test_a_process_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    processes = Processes(tmp_path, die_with_parent=True)
    asking = threading.Thread(target=processes.start, args=("sleeper", ["sleep", "600"]))

    asking.start()
    asking.join()

    # A look at once could come before the kernel's signal: the witness's whole life passes first.
    processes.start("witness", ["sleep", "0"])
    wait_for(lambda: not processes.is_running("witness"), 60.0, "the witness's end")
    assert processes.is_running("sleeper")
    processes.stop("sleeper")
    processes.stop("witness")


def test_a_process_that_ends_at_once_is_told_with_its_log(tmp_path: Path) -> None:
    processes = Processes(tmp_path, die_with_parent=True)
    processes.start("broken", ["sh", "-c", "echo no such flag; exit 3"])

    with pytest.raises(ProcessError, match="no such flag"):
        processes.wait_ready("broken", lambda: False, 60.0)

    processes.stop("broken")
