"""All models of a cache together: how much they may have, and which of them go when another one needs room.

    <key>/                    complete; its manifest's modification time is its last use
    .<key>.partial/           being filled, or the rest of an attempt; .planned in it says how large it is going to be
    .<key>.evicted-<random>/  being deleted
    .cache.lock               held while room is made

The least recently used goes first. What a process reads (`models.cached_folder`) stays, and so does what was used a moment ago: its pod may
be between the fetch and the worker's start. Only folders with a fetcher's manifest are looked at.
Times are the file system's, never this machine's. Blocking: callers run it in threads. This module must not know the network.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from quire_contract.telemetry import log_event
from quire_worker.fetch.errors import FetchError, InterruptedFetchError, Reason
from quire_worker.fetch.lease import STALE_S
from quire_worker.fetch.store import RESERVE_BYTES, gib, read_manifest, sync_folder
from quire_worker.models.cached_folder import MANIFEST_NAME, is_still

log = logging.getLogger(__name__)

KEPT_S = 900.0
"""What was used so short a time ago, in seconds, is not deleted."""
PLANNED_NAME = ".planned"
_LOCK_NAME = ".cache.lock"
_PARTIAL = ".partial"
_EVICTED = ".evicted-"


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A model, or the rest of one."""

    path: Path
    size_bytes: int
    used_s: float
    """When it was last used, by the file system's clock."""
    is_partial: bool = False


class ModelCache:
    """The folder in which one model is being fetched."""

    def __init__(
        self,
        folder: Path,
        *,
        own: str,
        max_bytes: int | None = None,
        max_model_bytes: int | None = None,
        kept_s: float = KEPT_S,
    ) -> None:
        """`own` is the name of the model's folder that is fetched. `max_bytes`: of all models; None: no limit, and nothing is deleted.
        `max_model_bytes`: of this model; None: no limit but the disk's."""
        self._folder = folder
        self._own = own
        self._max_bytes = max_bytes
        self._kept_s = kept_s
        self.max_model_bytes = max_model_bytes

    def make_room(self, all_bytes: int, missing_bytes: int) -> None:
        """Delete models until one of `all_bytes`, of which `missing_bytes` are to come, fits beside the rest. FetchError if it cannot."""
        if self._max_bytes is None:
            return
        if all_bytes > self._max_bytes:
            raise FetchError(
                Reason.NO_SPACE,
                f"the model has {gib(all_bytes)}, and the model cache may hold {gib(self._max_bytes)}; "
                "raise models.cache.maxSize of the chart",
            )
        with self._alone() as now_s:
            (self._folder / f".{self._own}{_PARTIAL}" / PLANNED_NAME).write_text(str(all_bytes), "ascii")
            used_bytes = self._clear(all_bytes, missing_bytes, now_s)
        if used_bytes + all_bytes > self._max_bytes:
            raise InterruptedFetchError(
                Reason.NO_SPACE,
                f"the model has {gib(all_bytes)}, and models that are used, or were within {self._kept_s / 60:.0f} minutes, have "
                f"{gib(used_bytes)} of the {gib(self._max_bytes)} that the model cache may hold; raise models.cache.maxSize of the chart",
            )

    def trim(self, own_bytes: int) -> None:
        """The model is complete: what it is larger than its source had told goes from others, as far as it can."""
        if self._max_bytes is not None:
            with self._alone() as now_s:
                self._clear(own_bytes, 0, now_s)

    def _clear(self, all_bytes: int, missing_bytes: int, now_s: float) -> int:
        """What the others have afterwards, in bytes."""
        assert self._max_bytes is not None
        for rest in self._folder.glob(f".*{_EVICTED}*"):
            shutil.rmtree(rest, ignore_errors=True)  # of one who was killed while it deleted
        entries = sorted(self._others(), key=lambda entry: entry.used_s)
        used_bytes = sum(entry.size_bytes for entry in entries)
        for entry in entries:
            has_room = shutil.disk_usage(self._folder).free >= missing_bytes + (RESERVE_BYTES if missing_bytes else 0)
            if has_room and used_bytes + all_bytes <= self._max_bytes:
                break
            if self._evict(entry, now_s):
                used_bytes -= entry.size_bytes
        return used_bytes

    def _others(self) -> Iterator[_Entry]:
        for path in self._folder.iterdir():
            key = path.name.removeprefix(".").removesuffix(_PARTIAL)
            is_partial = path.name == f".{key}{_PARTIAL}"
            if key == self._own or path.is_symlink() or not path.is_dir():
                continue
            with contextlib.suppress(OSError):  # it goes, or gets its name, while we look
                if is_partial:
                    yield _partial(path)
                elif not path.name.startswith(".") and (manifest := read_manifest(path)) is not None:
                    size_bytes = sum(record.size for record in manifest.files.values())
                    yield _Entry(path=path, size_bytes=size_bytes, used_s=(path / MANIFEST_NAME).stat().st_mtime)

    def _evict(self, entry: _Entry, now_s: float) -> bool:
        """Whether it is gone."""
        if now_s - entry.used_s < self._kept_s or self._is_leased(entry.path, now_s):
            return False
        gone = self._rename_partial(entry.path) if entry.is_partial else self._rename_unused(entry.path)
        if gone is None:
            return False
        sync_folder(self._folder)
        shutil.rmtree(gone, ignore_errors=True)
        log_event(log, logging.INFO, "model deleted", folder=entry.path, size_bytes=entry.size_bytes)
        return True

    def _is_leased(self, path: Path, now_s: float) -> bool:
        """Whether a fetcher works on this model: it renews its lease every few seconds."""
        key = path.name.removeprefix(".").removesuffix(_PARTIAL)
        try:
            return now_s - (self._folder / f".{key}.lease").stat().st_mtime <= 2 * STALE_S
        except OSError:
            return False

    def _rename_unused(self, path: Path) -> Path | None:
        """The folder under the name of what is being deleted; None if it is used, or if that cannot be known."""
        try:
            descriptor = os.open(path / MANIFEST_NAME, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._rename_partial(path) if is_still(descriptor, path) else None
        except BlockingIOError:
            with contextlib.suppress(OSError):
                os.utime(descriptor)  # it is used now: nobody asks about it again for a while
            return None
        except OSError:  # a file system without locks
            return None
        finally:
            os.close(descriptor)

    def _rename_partial(self, path: Path) -> Path | None:
        gone = path.with_name(f".{path.name.removeprefix('.')}{_EVICTED}{secrets.token_hex(4)}")
        try:
            return path.rename(gone)
        except OSError:
            return None

    @contextmanager
    def _alone(self) -> Iterator[float]:
        """One at a time makes room. The time by the file system's clock, in seconds."""
        descriptor = os.open(self._folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is deleted there
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, b".")
            os.ftruncate(descriptor, 0)
            yield os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)


def _partial(path: Path) -> _Entry:
    """It counts as large as it is going to be. Used: when something was last written into it."""
    files = [file.lstat() for file in _files(path)]
    try:
        planned = int((path / PLANNED_NAME).read_text("ascii"))
    except (OSError, ValueError):
        planned = 0
    return _Entry(
        path=path,
        size_bytes=max(planned, sum(file.st_size for file in files)),
        used_s=max([path.lstat().st_mtime, *(file.st_mtime for file in files)]),
        is_partial=True,
    )


def _files(path: Path) -> Iterable[Path]:
    return (file for file in path.rglob("*") if not file.is_dir())
