"""A model's folder in a cache that may be cleared: who reads it holds a lock, and who deletes asks for that lock first.

    reader    a shared lock (flock) on the folder's manifest, from before it reads until its process ends
    deleter   an exclusive lock on the same, if it can be had at once; then the folder gets another name, then it is deleted

The kernel takes a lock away with its process, however that ends, and a lock needs no right to write. So a folder is there whole under its
name, or not at all. A folder without a manifest is nobody's cache, and is not locked. This module must not know who deletes, or why.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quire_worker.errors import QuireWorkerError

MANIFEST_NAME = ".quire-manifest.json"
LOCK_SUFFIX = ".lease.lock"
"""A cache keeps .NAME.lease.lock beside the folder NAME for good."""


class ModelGoneError(QuireWorkerError):
    """The folder was in a cache and is not any more."""


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """The folder is not deleted by its cache while entered. ModelGoneError if it has been."""
    descriptor = _opened(folder)
    try:
        if descriptor is not None:
            with contextlib.suppress(OSError):  # a file system without locks, whose caches delete nothing
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not is_still(descriptor, folder):
                raise _gone(folder)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def is_still(descriptor: int, folder: Path) -> bool:
    """Whether the open manifest is the one that lies under the folder's name now."""
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / MANIFEST_NAME).stat())
    except OSError:
        return False


def _opened(folder: Path) -> int | None:
    try:
        return os.open(folder / MANIFEST_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        if not folder.exists() and folder.with_name(f".{folder.name}{LOCK_SUFFIX}").exists():
            raise _gone(folder) from None
        return None


def _gone(folder: Path) -> ModelGoneError:
    return ModelGoneError(
        f"{folder} is not there: the model cache has deleted it, or somebody did, after it was fetched; it must be fetched anew "
        "(on a cluster, the pod is replaced)"
    )
