"""`python -m cluster up|down|is-up|load|ready`: what `make cluster-up`, `make cluster-down`, `make e2e` and `make test` call.

`up` starts the machine's one cluster with a node, which outlives this process; `ready` makes what tests need and starts nothing.
"""

import argparse
import os
import sys
from pathlib import Path

from .binaries import find_control_plane
from .cache import HarnessError, cache_folder, say
from .machine import MachineCluster
from .processes import ProcessError
from .tools import find_tools


def main() -> int:
    """Does what the arguments say; 1 with the reason where this machine cannot."""
    parser = argparse.ArgumentParser(prog="cluster", description="A real Kubernetes for tests, on this machine.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("up", help="start a control plane and a node; prints the KUBECONFIG to use")
    down = actions.add_parser("down", help="stop it")
    down.add_argument("--all", action="store_true", help="forget its images, too")
    actions.add_parser("is-up", help="exit with 0 if it runs")
    load = actions.add_parser("load", help="give its node images")
    load.add_argument("archives", nargs="+", type=Path, help="docker-archives or OCI archives")
    actions.add_parser("ready", help="make and fetch what tests need, start nothing")
    arguments = parser.parse_args()
    cluster = MachineCluster(cache_folder() / "cluster")
    try:
        return _do(arguments, cluster)
    except (HarnessError, ProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _do(arguments: argparse.Namespace, cluster: MachineCluster) -> int:
    if arguments.action == "is-up":
        return 0 if cluster.is_up() else 1
    if arguments.action == "up":
        cluster.up()
        say("ready; to use it:")
        print(f"export KUBECONFIG={cluster.kubeconfig}\nalias kubectl={find_tools().kubectl} helm={find_tools().helm}")
    elif arguments.action == "down":
        cluster.down(with_images=arguments.all)
    elif arguments.action == "load":
        for archive in arguments.archives:
            cluster.node().import_image(archive)
    else:
        _make_ready()
    return 0


def _make_ready() -> None:
    """Raises HarnessError only where a missing cluster is a failure; elsewhere the tests skip with the reason."""
    try:
        find_tools()
        if not os.environ.get("QUIRE_TEST_KUBECONFIG"):
            find_control_plane()
    except HarnessError as error:
        if os.environ.get("CI") or os.environ.get("QUIRE_REQUIRE_CLUSTER") == "1":
            raise
        say(f"tests that need Kubernetes will be skipped: {error}")


if __name__ == "__main__":
    sys.exit(main())
