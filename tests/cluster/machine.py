"""The machine's one cluster with a node, which outlives the process that starts it.

Must not know of tests: pytest's own control planes live in temporary folders beside it.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .binaries import built_control_plane
from .cache import HarnessError, locked, say
from .control_plane import OwnControlPlane
from .node import ADDRESS, Node, remove_images
from .processes import wait_for
from .tools import Command, find_tools, kubectl_command


class MachineCluster:
    """The cluster whose state is in `home`: `home/run` dies with it, `home/images` stays."""

    def __init__(self, home: Path) -> None:
        self._home, self._run, self._images = home, home / "run", home / "images"
        self.kubeconfig = self._run / "pki" / "admin.kubeconfig"

    def is_up(self) -> bool:
        """Whether it runs and answers."""
        return self.kubeconfig.exists() and self._kubectl().run("get", "node", "node").returncode == 0

    def up(self) -> None:
        """Starts it unless it runs already (25 s; minutes the first time). Raises HarnessError, ProcessError."""
        with locked(self._home / "lock", "the cluster"):
            if self.is_up():
                say("the cluster runs already")
                return
            if self._run.exists():
                say("stopping what is left of an earlier cluster")
                self._stop()
            Node.prepare()
            plane = self._plane()
            say("starting the control plane")
            plane.start()
            say("starting the node")
            self._node(plane).start(self._kubectl())

    def down(self, *, with_images: bool = False) -> None:
        """Stops it, if it runs, by the process ids that it recorded."""
        with locked(self._home / "lock", "the cluster"):
            self._stop()
            if with_images:
                remove_images(self._images)

    def node(self) -> Node:
        """Its node. Raises HarnessError if it does not run."""
        if not self.is_up():
            raise HarnessError("the cluster does not run: make cluster-up")
        return self._node(self._plane())

    @contextmanager
    def without_api_server(self, *, frozen: bool = False) -> Iterator[None]:
        """The API server is away while entered: killed, so that connections are refused, or frozen, so that they hang.

        When left, it answers again. The controller manager is killed with it and starts anew: where it leads by a Lease it ends when
        it cannot renew that; one that goes on would take every node for lost that could not report for so long.
        Raises HarnessError, ProcessError.
        """
        if not self.is_up():
            raise HarnessError("the cluster does not run: make cluster-up")
        processes = self._plane().processes
        with processes.away("controller-manager", frozen=False):
            with processes.away("api-server", frozen=frozen):
                yield
            wait_for(self.is_up, 60.0, "the API server answers again")

    def _stop(self) -> None:
        if not self._run.exists():
            return
        plane = self._plane()
        self._node(plane).stop()
        plane.stop()
        shutil.rmtree(self._run, ignore_errors=True)

    def _plane(self) -> OwnControlPlane:
        return OwnControlPlane(self._run, built_control_plane(), address=ADDRESS, die_with_parent=False)

    def _node(self, plane: OwnControlPlane) -> Node:
        return Node(plane, self._images)

    def _kubectl(self) -> Command:
        return kubectl_command(find_tools(), self.kubeconfig)
