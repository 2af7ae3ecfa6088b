"""The private folder of one run: credentials, router configuration, temporary files, logs. It goes when the run ends.

A run that was killed cannot remove its own, so the next run removes folders whose process is gone.
This module must not know what is in them.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PREFIX = "quire-up-"
ADMIN_FILE = "admin.json"
"""Address and token of the run's admin API, for `quire tenant usage`."""
SCALING_FILE = "scaling.json"
"""How the services stand that follow demand, and what was decided."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """What belongs to one run. Readable by its owner only: it holds the run's credentials."""

    path: Path
    """The folder."""
    logs: Path
    """Where logs go; outside of the folder if the user wants to keep them."""

    @property
    def trust(self) -> Path:
        """By which router and workers know each other."""
        return self.path / "trust"

    @property
    def config(self) -> Path:
        """The router's configuration."""
        return self.path / "router"

    @property
    def admin_token(self) -> Path:
        """What callers of the router's admin port must send."""
        return self.path / "admin-token"

    @property
    def pods(self) -> Path:
        """Temporary files of single pods."""
        return self.path / "pods"


@contextmanager
def run_folder(log_dir: Path | None) -> Iterator[RunFolder]:
    """The folder while entered. With `log_dir`, logs go there and stay. Raises OSError if a folder cannot be made."""
    remove_abandoned(Path(tempfile.gettempdir()))
    path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    folder = RunFolder(path=path, logs=path / "logs" if log_dir is None else log_dir.resolve())
    try:
        for part in (folder.logs, folder.config, folder.pods):
            part.mkdir(parents=True, exist_ok=True)
        yield folder
    finally:
        shutil.rmtree(path, ignore_errors=True)


def write_admin(folder: RunFolder, url: str, token: str) -> None:
    """Leave the token for the router, and word of the admin API for `quire tenant usage`."""
    for path, text in (
        (folder.admin_token, token),
        (folder.path / ADMIN_FILE, json.dumps({"url": url, "token": token})),
    ):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            file.write(text)


def running_folders(parent: Path) -> list[Path]:
    """This user's run folders below `parent` whose process runs."""
    return [
        folder
        for folder in sorted(parent.glob(f"{_PREFIX}*-*"))
        if (pid := folder.name.removeprefix(_PREFIX).partition("-")[0]).isdecimal()
        and _is_running(int(pid))
        and _is_ours(folder)
    ]


def remove_abandoned(parent: Path) -> None:
    """Removes this user's run folders below `parent` whose process has ended."""
    for folder in parent.glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not _is_running(int(pid)) and _is_ours(folder):
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    try:
        return folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
    except OSError:
        return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
