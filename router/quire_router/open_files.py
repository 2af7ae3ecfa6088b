"""How many files the process may have open: each connection is one, and a stream needs two, its client's and its worker's."""

import contextlib
import resource

WANTED_FILES = 65_536


def allow_many_files() -> None:
    """As many as the system lets us have: the usual soft limit is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, WANTED_FILES)), hard))


def files_for_clients() -> int:
    """Half of them: clients that take all would keep the router from its workers, which would then look dead."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2
