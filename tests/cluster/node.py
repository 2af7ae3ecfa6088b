"""A node beside a control plane: containerd, kubelet, kube-proxy, a bridge and cluster DNS, all on this machine.

One at a time on a machine: kubelet's cgroups and kube-proxy's rules are the machine's. Needs root. Must not know what runs on it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .binaries import NODE, built, install_commands
from .cache import HarnessError, say
from .control_plane import POD_RANGE, SERVICE_RANGE, Address, OwnControlPlane
from .images import PAUSE, write_image
from .processes import Processes, free_ports
from .tools import Command

BRIDGE, GATEWAY, POD_SUBNET = "quire0", "10.245.0.1", "10.245.0.0/24"
DNS_ADDRESS = "10.96.0.10"
ADDRESS = Address(bind=GATEWAY, is_for_pods=True)
PACKAGES = {
    "containerd": "containerd",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ethtool": "ethtool",
    "ip": "iproute2",
}
# Pods reach the world under this machine's address; what stays between pods keeps its own.
MASQUERADE = ["POSTROUTING", "-s", POD_RANGE, "!", "-d", POD_RANGE, "-j", "MASQUERADE"]


class Node:
    """The node of `plane`, whose folder it shares. Its containerd's images outlive it in `images`."""

    def __init__(self, plane: OwnControlPlane, images: Path) -> None:
        self._plane, self._folder, self._images = plane, plane.folder, images
        self._processes: Processes = plane.processes
        self.socket = self._folder / "containerd.sock"

    @staticmethod
    def prepare() -> None:
        """Installs, builds and makes what the control plane needs before it can listen for pods. Raises HarnessError."""
        if os.geteuid() != 0:
            raise HarnessError("a node needs root (cgroups, mounts, iptables): run as root")
        if _strangers_pods():
            raise HarnessError("pods of another kubelet run on this machine, and two would fight; stop it first")
        install_commands(PACKAGES)
        built(NODE)
        if subprocess.run(["ip", "link", "show", BRIDGE], capture_output=True, check=False).returncode != 0:
            _do("ip", "link", "add", BRIDGE, "type", "bridge")
            _do("ip", "address", "add", f"{GATEWAY}/24", "dev", BRIDGE)
        _do("ip", "link", "set", BRIDGE, "up")
        _do("ip", "route", "replace", SERVICE_RANGE, "dev", BRIDGE)  # the machine may have no default route
        _do("sysctl", "-qw", "net.ipv4.ip_forward=1")
        # Answers of a pod to a pod on the same bridge must pass the Services' rules, too.
        _do("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
        _iptables("-C", *MASQUERADE) or _iptables("-A", *MASQUERADE)

    def start(self, kubectl: Command) -> None:
        """Starts everything and waits until the node is ready (about 15 s). Raises ProcessError."""
        self._start_containerd()
        self._start_dns(kubectl)
        self._start_kubelet()
        self._start_proxy()

        def is_ready() -> bool:
            found = kubectl.run("get", "node", "node", "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}")
            return found.stdout == "True"

        self._processes.wait_ready("kubelet", is_ready, 90.0)
        self._plane.has_node = True

    def stop(self) -> None:
        """Ends pods, processes, mounts, the bridge and every rule; images stay."""
        self._processes.stop("kubelet")
        self._remove_containers()
        self._processes.stop("kube-proxy")
        for name in ("dns", "containerd"):
            self._processes.stop(name)
        _iptables("-D", *MASQUERADE)
        _remove_rules()
        subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
        for line in reversed(Path("/proc/mounts").read_text().splitlines()):
            mounted = line.split()[1]
            if mounted.startswith((f"{self._folder}/", f"{self._images}/")):
                subprocess.run(["umount", "--lazy", mounted], capture_output=True, check=False)
        _remove_cgroups()

    def import_image(self, archive: Path) -> None:
        """Gives the node the image of a docker-archive or OCI archive. Raises HarnessError."""
        for is_last in (False, True):
            try:
                self.ctr("images", "import", str(archive), timeout_s=300.0)
                return
            except subprocess.CalledProcessError as error:
                # Now and then an import fails while containerd's other side notes the same image; the next one goes through.
                if is_last:
                    raise HarnessError(f"{archive} cannot be given to the node: {error.stderr.strip()}") from None

    def ctr(self, *arguments: str, timeout_s: float = 60.0) -> str:
        """containerd's client in Kubernetes' namespace; its output. Raises subprocess.CalledProcessError."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True).stdout

    def _start_containerd(self) -> None:
        network = {
            "cniVersion": "0.4.0",
            "name": "quire-test",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": str(self._folder / "addresses"),
                        "ranges": [[{"subnet": POD_SUBNET, "gateway": GATEWAY}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                }
            ],
        }
        (self._folder / "cni").mkdir(exist_ok=True)
        (self._folder / "cni" / "10-quire.conflist").write_text(json.dumps(network))
        # restrict_oom_score_adj: inside a container or a small VM a negative score may be refused, and no pod would start.
        (self._folder / "containerd.toml").write_text(f"""
version = 2
root = "{self._images}"
state = "{self._folder}/containerd"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{self._folder}/cni"
""")
        self._processes.start("containerd", ["containerd", "-c", self._folder / "containerd.toml"])
        self._processes.wait_ready("containerd", self._containerd_answers, 30.0)
        if PAUSE not in self.ctr("images", "ls", "-q").split():
            archive = self._folder / "pause.tar"
            write_image(archive, PAUSE, built(NODE) / "pause")
            self.import_image(archive)

    def _containerd_answers(self) -> bool:
        command = ["ctr", "--address", str(self.socket), "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def _start_dns(self, kubectl: Command) -> None:
        (port,) = free_ports(1, GATEWAY)
        command: list[str | Path] = [sys.executable, "-m", "cluster.dns", self._plane.kubeconfig, GATEWAY, str(port)]
        self._processes.start("dns", command, {"PYTHONPATH": str(Path(__file__).parents[1])})
        ports = [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": port}]
        endpoints = {"addresses": [{"ip": GATEWAY}], "ports": [{"name": "dns", "protocol": "UDP", "port": port}]}
        metadata = {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}}
        for document in (
            {"kind": "Service", "spec": {"clusterIP": DNS_ADDRESS, "ports": ports}},
            {"kind": "Endpoints", "subsets": [endpoints]},
        ):
            kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "metadata": metadata, **document}))

    def _start_kubelet(self) -> None:
        file, folder = self._plane.pki.file, self._folder
        port, health_port = free_ports(2, GATEWAY)
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": GATEWAY,
            "port": port,
            "healthzPort": health_port,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(file("ca.crt"))},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "failSwapOn": False,
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,  # what was imported cannot be pulled again
            "tlsCertFile": str(file("kubelet.crt")),
            "tlsPrivateKeyFile": str(file("kubelet.key")),
        }
        (folder / "kubelet.json").write_text(json.dumps(settings))
        command: list[str | Path] = [
            built(NODE) / "kubelet",
            f"--kubeconfig={self._plane.pki.kubeconfig('kubelet', self._plane.url)}",
            f"--config={folder / 'kubelet.json'}",
            "--container-runtime=remote",
            f"--container-runtime-endpoint=unix://{self.socket}",
            "--hostname-override=node",
            f"--node-ip={GATEWAY}",
            f"--root-dir={folder / 'kubelet'}",
            f"--cert-dir={folder / 'kubelet-pki'}",
        ]
        self._processes.start("kubelet", command)

    def _start_proxy(self) -> None:
        health_port, metrics_port = free_ports(2)
        command: list[str | Path] = [
            built(NODE) / "kube-proxy",
            f"--kubeconfig={self._plane.pki.kubeconfig('kube-proxy', self._plane.url)}",
            f"--cluster-cidr={POD_RANGE}",
            "--hostname-override=node",
            "--proxy-mode=iptables",
            "--conntrack-max-per-core=0",  # the machine's own limit stays
            f"--healthz-bind-address=127.0.0.1:{health_port}",
            f"--metrics-bind-address=127.0.0.1:{metrics_port}",
        ]
        self._processes.start("kube-proxy", command)

    def _remove_containers(self) -> None:
        if not self._processes.is_running("containerd"):
            return
        for container in self.ctr("containers", "ls", "-q").split():
            spec = json.loads(self.ctr("containers", "info", container)).get("Spec") or {}
            for action in (["tasks", "kill", "--signal", "KILL"], ["tasks", "rm", "--force"], ["containers", "rm"]):
                command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *action, container]
                subprocess.run(command, capture_output=True, timeout=30, check=False)
            for namespace in spec.get("linux", {}).get("namespaces", []):
                path = Path(namespace.get("path", ""))
                if namespace["type"] == "network" and path.name.startswith("cni-"):
                    subprocess.run(["ip", "netns", "delete", path.name], capture_output=True, check=False)


def remove_images(images: Path) -> None:
    """Forgets all images of a stopped node."""
    say(f"removing {images}")
    shutil.rmtree(images, ignore_errors=True)


def _pod_cgroups() -> list[Path]:
    # Under the second version of cgroups one tree, under the first one for each controller.
    return [
        root for root in (Path("/sys/fs/cgroup/kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods")) if root.is_dir()
    ]


def _strangers_pods() -> bool:
    return any(file.read_text().strip() for root in _pod_cgroups() for file in root.rglob("cgroup.procs"))


def _remove_cgroups() -> None:
    for root in _pod_cgroups():
        for folder in (*sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True), root):
            with contextlib.suppress(OSError):  # a process of it still ends
                folder.rmdir()


def _remove_rules() -> None:
    """Deletes kubelet's and kube-proxy's chains, all named KUBE-, and every rule that jumps to one."""
    for table in ("nat", "filter", "mangle"):
        told = subprocess.run(["iptables-save", "-t", table], capture_output=True, text=True, check=False).stdout
        rules = [line for line in told.splitlines() if line.startswith("-A ")]
        chains = [line[1:].split()[0] for line in told.splitlines() if line.startswith(":KUBE-")]
        jumps = [rule for rule in rules if " -j KUBE-" in rule and not rule.startswith("-A KUBE-")]
        commands = [f"-D {rule[3:]}" for rule in jumps]
        commands += [f"-F {chain}" for chain in chains] + [f"-X {chain}" for chain in chains]
        text = "\n".join([f"*{table}", *commands, "COMMIT", ""])
        subprocess.run(["iptables-restore", "--noflush"], input=text, capture_output=True, text=True, check=False)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HarnessError(f"`{' '.join(command)}`: {done.stderr.strip()}")


def _iptables(action: str, *rule: str) -> bool:
    command = ["iptables", "--wait", "-t", "nat", action, *rule]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
