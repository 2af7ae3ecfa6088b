"""One control plane: etcd, API server and, where their binaries are there, controller manager and scheduler.

Every one has its own folder and free ports, so several live on one machine. Must not know about nodes.
"""

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .binaries import ControlPlaneBinaries
from .pki import Pki, make_pki
from .processes import ProcessError, Processes, free_ports

SERVICE_RANGE, FIRST_SERVICE = "10.96.0.0/16", "10.96.0.1"
POD_RANGE = "10.245.0.0/16"
START_ATTEMPTS = 3

# What clients do is written down (who, what, which object, which answer); what Kubernetes itself does is not.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"]},
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "None", "nonResourceURLs": ["/healthz*", "/readyz*", "/livez*", "/version", "/openapi*"]},
        {"level": "Metadata"},
    ],
}


class NotOursError(Exception):
    """The cluster was given from outside, so the tests may not stop its parts."""


class ControlPlane(Protocol):
    """What tests see of a cluster: an own one, or one that the environment gave."""

    kubeconfig: Path
    """Of a user that may do everything."""
    url: str
    """https://ADDRESS:PORT of the API server."""
    version: tuple[int, int]
    """(major, minor) of the API server."""
    has_controllers: bool
    """Whether Deployments make pods and owners' objects are collected (a bare envtest has no controller manager)."""
    has_node: bool
    """Whether pods run."""
    can_stop_api_server: bool
    """Whether stop_api_server may be called."""

    def stop_api_server(self) -> None:
        """Kills the API server; nothing else. Raises NotOursError."""

    def start_api_server(self) -> None:
        """Starts it again on the same address with the same objects; returns when it is ready. Raises NotOursError."""

    def requests(self) -> Iterator[dict[str, Any]]:
        """Audit events (audit.k8s.io/v1, level Metadata) of clients' finished requests, oldest first. Raises NotOursError."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where the API server listens, and by which further address pods may reach it."""

    bind: str = "127.0.0.1"
    is_for_pods: bool = False
    """Whether the `kubernetes` Service gets `bind` as its endpoint, which must not be loopback then."""


class OwnControlPlane:
    """A control plane in `folder`. `start` makes everything; the parts die with this process unless told otherwise."""

    def __init__(
        self,
        folder: Path,
        binaries: ControlPlaneBinaries,
        *,
        address: Address = Address(),
        die_with_parent: bool = True,
    ) -> None:
        self.folder, self._binaries, self._address = folder, binaries, address
        self.processes = Processes(folder, die_with_parent=die_with_parent)
        self.version = binaries.version()
        self.has_controllers = binaries.controller_manager is not None
        self.has_node = False
        self.can_stop_api_server = True
        self.pki = Pki(folder=folder / "pki")

    def start(self) -> None:
        """Starts all parts and waits until they are ready (about 5 s). Raises ProcessError."""
        bind = self._address.bind
        addresses = sorted({"127.0.0.1", bind, FIRST_SERVICE})
        names = ["localhost", "node", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        make_pki(self.pki.folder, addresses=addresses, names=names)
        (self.folder / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        for attempt in range(1, START_ATTEMPTS + 1):
            # A port that was free may be taken before its owner starts: then other ports.
            etcd, peer, self._port = free_ports(3, bind)
            self._etcd_url, self.url = f"http://127.0.0.1:{etcd}", f"https://{bind}:{self._port}"
            try:
                self._start_etcd(f"http://127.0.0.1:{peer}")
                self.start_api_server()
                break
            except ProcessError:
                self.stop()
                if attempt == START_ATTEMPTS:
                    raise
        self.kubeconfig = self.pki.kubeconfig("admin", self.url)
        self._start_controllers()

    def stop(self) -> None:
        """Ends every part; the folder stays."""
        for name in ("scheduler", "controller-manager"):
            self.processes.kill(name)
        self.processes.kill("api-server")
        self.processes.kill("etcd")

    def stop_api_server(self) -> None:
        """Kills the API server."""
        self.processes.kill("api-server")

    def start_api_server(self) -> None:
        """Starts the API server and waits until it is ready."""
        address, file = self._address, self.pki.file
        command: list[str | Path] = [
            self._binaries.api_server,
            f"--etcd-servers={self._etcd_url}",
            f"--secure-port={self._port}",
            f"--bind-address={address.bind}",
            f"--advertise-address={address.bind}",
            f"--endpoint-reconciler-type={'master-count' if address.is_for_pods else 'none'}",
            f"--tls-cert-file={file('api-server.crt')}",
            f"--tls-private-key-file={file('api-server.key')}",
            f"--client-ca-file={file('ca.crt')}",
            f"--service-account-key-file={file('sa.pub')}",
            f"--service-account-signing-key-file={file('sa.key')}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            # As OpenShift has it: what blocks an owner's deletion needs rights on its finalizers.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--allow-privileged=true",
            f"--kubelet-client-certificate={file('admin.crt')}",
            f"--kubelet-client-key={file('admin.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={self.folder / 'audit-policy.json'}",
            f"--audit-log-path={self.folder / 'audit.log'}",
        ]
        self.processes.start("api-server", command)
        self.processes.wait_ready("api-server", self._is_ready, 180.0)

    def requests(self) -> Iterator[dict[str, Any]]:
        """Audit events of clients' requests."""
        with (self.folder / "audit.log").open() as log:
            yield from (json.loads(line) for line in log if line.endswith("\n"))

    def get(self, path: str) -> bytes:
        """The body of the administrator's GET. Raises OSError."""
        context = ssl.create_default_context(cafile=str(self.pki.file("ca.crt")))
        context.load_cert_chain(self.pki.file("admin.crt"), self.pki.file("admin.key"))
        try:
            with urllib.request.urlopen(self.url + path, context=context, timeout=30) as response:
                body: bytes = response.read()
        except urllib.error.HTTPError as refusal:
            refusal.close()  # it holds the connection
            raise
        return body

    def _start_etcd(self, peer_url: str) -> None:
        command: list[str | Path] = [
            self._binaries.etcd,
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=default={peer_url}",
            "--unsafe-no-fsync",  # a test's objects need not outlive a power cut
        ]
        self.processes.start("etcd", command)

    def _start_controllers(self) -> None:
        # Old versions serve plain HTTP on a fixed port as well, unless told not to; new ones do not know the option.
        ports = ["--secure-port=0", *(["--port=0"] if self.version < (1, 24) else [])]
        if self._binaries.scheduler is not None:
            config = self.pki.kubeconfig("scheduler", self.url)
            told: list[str | Path] = [
                self._binaries.scheduler,
                f"--kubeconfig={config}",
                "--leader-elect=false",
                *ports,
            ]
            self.processes.start("scheduler", told)
        if self._binaries.controller_manager is None:
            return
        command: list[str | Path] = [
            self._binaries.controller_manager,
            f"--kubeconfig={self.pki.kubeconfig('controller-manager', self.url)}",
            f"--service-account-private-key-file={self.pki.file('sa.key')}",
            f"--root-ca-file={self.pki.file('ca.crt')}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_RANGE}",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            *ports,
        ]
        self.processes.start("controller-manager", command)
        # The first thing it does that pods need.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.processes.wait_ready("controller-manager", lambda: self._answers(account), 180.0)

    def _is_ready(self) -> bool:
        return self._answers("/readyz")

    def _answers(self, path: str) -> bool:
        try:
            self.get(path)
        except (OSError, urllib.error.HTTPError):
            return False
        return True


class GivenControlPlane:
    """A cluster of somebody else, which QUIRE_TEST_KUBECONFIG named: tests write to it and never stop it."""

    def __init__(self, kubeconfig: Path, url: str, version: tuple[int, int], *, has_node: bool) -> None:
        self.kubeconfig, self.url, self.version, self.has_node = kubeconfig, url, version, has_node
        self.has_controllers = True
        self.can_stop_api_server = False

    def stop_api_server(self) -> None:
        """Refuses."""
        raise NotOursError(f"{self.kubeconfig} was given from outside")

    def start_api_server(self) -> None:
        """Refuses."""
        raise NotOursError(f"{self.kubeconfig} was given from outside")

    def requests(self) -> Iterator[dict[str, Any]]:
        """Refuses."""
        raise NotOursError(f"{self.kubeconfig} was given from outside")
