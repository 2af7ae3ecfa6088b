"""Where `prometheus` and `promtool` come from: this machine, else Debian's package, unpacked into the cache and not installed: that
would start a Prometheus on the machine.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest
from cluster.cache import HarnessError, cache_folder, locked, say

PACKAGE = "prometheus"
TIMEOUT_S = 300.0


def program(name: str) -> str:
    """The path of one of the two. Skips the test if it cannot be had; fails it where CI or QUIRE_REQUIRE_CLUSTER is set."""
    try:
        return shutil.which(name) or str(_unpacked(name))
    except HarnessError as reason:
        _refuse(reason)


def _unpacked(name: str) -> Path:
    home = cache_folder() / PACKAGE
    found = home / "usr" / "bin" / name
    with locked(home.with_suffix(".lock"), PACKAGE):
        if not found.is_file():
            _unpack(home)
    if not found.is_file():
        raise HarnessError(f"Debian's package {PACKAGE} has no {name}")
    return found


def _unpack(home: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise HarnessError("there is no prometheus and no apt-get; install Prometheus 2.42 or later")
    say(f"fetching Debian's package {PACKAGE} into {home} (once for this machine)")
    home.mkdir(parents=True, exist_ok=True)
    if not _download(home):
        _run(home, "apt-get", "update", "-q")
        if not _download(home):
            raise HarnessError(f"apt-get download {PACKAGE} fails; install Prometheus 2.42 or later")
    (archive,) = home.glob("*.deb")
    _run(home, "dpkg-deb", "-x", str(archive), str(home))
    archive.unlink()


def _download(home: Path) -> bool:
    for archive in home.glob("*.deb"):
        archive.unlink()
    return _run(home, "apt-get", "download", "-q", PACKAGE) == 0 and any(home.glob("*.deb"))


def _run(folder: Path, *command: str) -> int:
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=TIMEOUT_S, check=False)
    return done.returncode


def _refuse(reason: HarnessError) -> NoReturn:
    if os.environ.get("CI") or os.environ.get("QUIRE_REQUIRE_CLUSTER") == "1":
        pytest.fail(f"no Prometheus for tests: {reason}", pytrace=False)
    pytest.skip(f"no Prometheus for tests: {reason}")
