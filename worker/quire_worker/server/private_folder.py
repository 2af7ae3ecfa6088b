"""The folder for the sockets between API process and engine process: private, and gone when the worker is.

A worker that is killed cannot remove its folder. The next one does: a living worker holds a lock on a file in its own.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "quire-"
_NAME = re.compile(re.escape(_PREFIX) + r"[a-z0-9_]{8}")
"""What mkdtemp makes of the prefix."""
_LOCK = "lock"
_MAX_FOLDER_CHARS = 80
"""Unix socket paths end at 107 characters, the sockets' names included."""


@contextlib.contextmanager
def private_folder(parent: Path | None = None) -> Iterator[Path]:
    """A folder that only this user may enter, while entered. Removes those of this user's dead workers first.

    `parent` is the folder for temporary files unless given."""
    place = _temporary() if parent is None else parent
    _remove_stale(place)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    lock = os.open(folder / f".{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / f".{_LOCK}").rename(folder / _LOCK)  # whoever sees it by this name finds it locked
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _temporary() -> Path:
    default = tempfile.gettempdir()
    return Path(default if len(default) <= _MAX_FOLDER_CHARS else "/tmp")  # noqa: S108 - mkdtemp makes a private folder in it


def _remove_stale(place: Path) -> None:
    """Folders of ours in which nobody holds the lock. One without a lock file is being made, or is somebody else's."""
    for folder in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = folder.lstat()
            if not _NAME.fullmatch(folder.name) or folder.is_symlink() or status.st_uid != os.getuid():
                continue
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while the owner lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
