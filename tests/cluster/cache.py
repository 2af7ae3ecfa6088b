"""Where the harness keeps what is costly to make, and the lock by which two runs do not make it twice.

Must not know what is kept there.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class HarnessError(Exception):
    """This machine cannot run the harness; the message says why and what to do."""


def cache_folder() -> Path:
    """`${XDG_CACHE_HOME:-~/.cache}/quire`, made if it is not there."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quire"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(text: str) -> None:
    """One line of progress, at once."""
    print(f"==> {text}", flush=True)


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Holds the lock file at `path`; says so if it must wait for another run that makes `what`. The kernel frees it at exit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another run makes {what}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
