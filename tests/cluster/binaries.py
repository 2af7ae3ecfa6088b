"""Finds the control plane's binaries: `KUBEBUILDER_ASSETS`, else a build of Debian's source package in the cache.

Must not start any of them.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cache import HarnessError, cache_folder, locked, say

CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "pause")
BUILD = Path(__file__).with_name("build_kubernetes.sh")
OTHER_WAYS = (
    "or set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd (setup-envtest makes one), "
    "or QUIRE_TEST_KUBECONFIG to the kubeconfig of a cluster that tests may write to"
)


@dataclass(frozen=True, kw_only=True)
class ControlPlaneBinaries:
    """Paths of the programs; None where the source of them has none (envtest has no controller manager)."""

    api_server: Path
    etcd: Path
    controller_manager: Path | None
    scheduler: Path | None

    def version(self) -> tuple[int, int]:
        """The API server's (major, minor)."""
        told = subprocess.run([self.api_server, "--version"], capture_output=True, text=True, check=True).stdout
        major, minor, *_ = told.split()[-1].lstrip("v").split(".")
        return int(major), int(minor)


def find_control_plane() -> ControlPlaneBinaries:
    """The binaries, built if they must be (minutes, once for a machine). Raises HarnessError."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets:
        return _from_assets(Path(assets))
    return built_control_plane()


def built_control_plane() -> ControlPlaneBinaries:
    """The binaries of our own build, whatever the environment names. Raises HarnessError."""
    folder = built(CONTROL_PLANE)
    install_commands({"etcd": "etcd-server", "openssl": "openssl"})
    return ControlPlaneBinaries(
        api_server=folder / "kube-apiserver",
        etcd=_which("etcd"),
        controller_manager=folder / "kube-controller-manager",
        scheduler=folder / "kube-scheduler",
    )


def built(commands: tuple[str, ...]) -> Path:
    """The folder in which all of `commands` are, after a build if one is missing. Raises HarnessError."""
    home = cache_folder() / "kube"
    if all((home / "bin" / command).is_file() for command in commands):
        return home / "bin"
    with locked(home / "build.lock", "Kubernetes"):
        missing = [command for command in commands if not (home / "bin" / command).is_file()]
        if missing:
            say(f"building {', '.join(missing)} in {home} (once for this machine)")
            if subprocess.run([BUILD, home, *missing], check=False).returncode != 0:
                raise HarnessError(
                    f"Kubernetes could not be built (its output is above). Mend that and run again (what is done is kept; "
                    f"`rm -r {home}` starts from nothing), {OTHER_WAYS}"
                )
    return home / "bin"


def install_commands(packages: dict[str, str]) -> None:
    """Installs the Debian package of each command (or file) that is missing. Raises HarnessError."""
    missing = sorted({package for command, package in packages.items() if not _is_there(command)})
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise HarnessError(f"missing: {', '.join(missing)}. Install as root: {' '.join(command)}; {OTHER_WAYS}")
    say(f"installing Debian packages: {' '.join(missing)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["apt-get", "update", "-qq"], command):
        done = subprocess.run(step, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise HarnessError(f"`{' '.join(step)}` failed: {done.stderr.strip()[-500:]}")


def _from_assets(folder: Path) -> ControlPlaneBinaries:
    def there(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    api_server, etcd = there("kube-apiserver"), there("etcd")
    if api_server is None or etcd is None:
        raise HarnessError(f"KUBEBUILDER_ASSETS={folder} has no kube-apiserver or no etcd")
    install_commands({"openssl": "openssl"})
    return ControlPlaneBinaries(
        api_server=api_server,
        etcd=etcd,
        controller_manager=there("kube-controller-manager"),
        scheduler=there("kube-scheduler"),
    )


def _is_there(command: str) -> bool:
    return Path(command).exists() if command.startswith("/") else shutil.which(command) is not None


def _which(command: str) -> Path:
    found = shutil.which(command)
    assert found, command
    return Path(found)
