"""A model's folder in the cache: filled under another name, made visible whole by one rename, described by a manifest.

    <key>/                       complete; nobody writes to it
        .quire-manifest.json     where it is from, and size and SHA-256 of each file
    .<key>.partial/              being filled; its manifest lists the files that are complete so far

Blocking: callers run it in threads. This module must not know the network.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.models.cached_folder import MANIFEST_NAME, ModelGoneError, in_use

RESERVE_BYTES = 64 * 1024 * 1024
"""Left free on the disk: for manifests, and for whatever else lies on it."""


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A complete file."""

    size: int
    sha256: str
    identity: str | None = None
    """`RemoteFile.identity` of what was fetched."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder holds."""

    uri: str
    revision: str | None = None
    version: str | None = None
    """The commit that the revision stood for."""
    files: dict[str, FileRecord] = {}


class ModelStore:
    """One model in a cache."""

    def __init__(self, dest: Path, *, uri: str, revision: str | None) -> None:
        """`dest` is the folder that the worker will be given; its parent is the cache."""
        self.dest = dest
        self.partial = dest.with_name(f".{dest.name}.partial")
        self._uri = uri
        self._revision = revision
        self._files: dict[str, FileRecord] = {}

    def is_complete(self) -> bool:
        """Whether the model is there, of this source, every file with its size. Contents were checked when they came."""
        manifest = read_manifest(self.dest)
        return manifest is not None and self._is_of_this_source(manifest) and not _damaged(self.dest, manifest)

    def use(self) -> bool:
        """is_complete; if so, its last use is now, and its cache keeps it until a worker has had the time to begin."""
        with contextlib.suppress(ModelGoneError), in_use(self.dest):
            if self.is_complete():
                with contextlib.suppress(PermissionError):  # made by another user; it was used when it was made
                    os.utime(self.dest / MANIFEST_NAME)
                return True
        return False

    def begin(self) -> None:
        """A folder to fill, with what an earlier attempt left; a complete folder that was damaged becomes such a rest."""
        if self.dest.exists() and not self.partial.exists():
            self.dest.rename(self.partial)
        elif self.dest.exists():
            shutil.rmtree(self.dest)
        self.partial.mkdir(parents=True, exist_ok=True)
        manifest = read_manifest(self.partial)
        if manifest is None or not self._is_of_this_source(manifest):
            return
        damaged = _damaged(self.partial, manifest)
        self._files = {name: record for name, record in manifest.files.items() if name not in damaged}

    def has(self, name: str, identity: str | None) -> FileRecord | None:
        """The record of a file that need not be fetched again."""
        record = self._files.get(name)
        return record if record is not None and identity is not None and record.identity == identity else None

    def add(self, name: str, record: FileRecord) -> None:
        """A file is complete; noted at once, so that a kill does not lose it."""
        self._files[name] = record
        self._write(self.partial, version=None)

    @property
    def size_bytes(self) -> int:
        """Of the files that are complete."""
        return sum(record.size for record in self._files.values())

    def check_space(self, missing_bytes: int, all_bytes: int, max_bytes: int | None) -> None:
        """Raises FetchError if the disk, or the limit `max_bytes` of the whole model, is too small."""
        if max_bytes is not None and all_bytes > max_bytes:
            message = f"the model has {gib(all_bytes)}, and a pod's model cache {gib(max_bytes)}; enlarge models.cache.size of the chart"
            raise FetchError(Reason.NO_SPACE, message)
        free = shutil.disk_usage(self.partial).free
        if missing_bytes + RESERVE_BYTES > free:
            message = f"the model needs {gib(missing_bytes)} more, and the model cache has {gib(free)} free; enlarge it, or remove models"
            raise FetchError(Reason.NO_SPACE, message)

    def finish(self, names: Iterable[str], version: str | None) -> None:
        """Makes the folder visible, with these files and nothing else."""
        wanted = set(names)
        self._files = {name: record for name, record in self._files.items() if name in wanted}
        for path in sorted(self.partial.rglob("*"), reverse=True):
            name = path.relative_to(self.partial).as_posix()
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            elif name not in wanted:
                path.unlink()
        self._write(self.partial, version=version)
        self.partial.rename(self.dest)
        sync_folder(self.dest.parent)

    def _is_of_this_source(self, manifest: Manifest) -> bool:
        return (manifest.uri, manifest.revision) == (self._uri, self._revision)

    def _write(self, folder: Path, version: str | None) -> None:
        manifest = Manifest(
            uri=self._uri, revision=self._revision, version=version, files=dict(sorted(self._files.items()))
        )
        path = folder / MANIFEST_NAME
        new = path.with_name(f"{path.name}.new")
        with new.open("wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)


def read_manifest(folder: Path) -> Manifest | None:
    """What a folder says of itself; None if it says nothing that can be read."""
    try:
        return msgspec.json.decode((folder / MANIFEST_NAME).read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _damaged(folder: Path, manifest: Manifest) -> set[str]:
    """Files that are missing or have another size."""
    return {name for name, record in manifest.files.items() if _size(folder / name) != record.size}


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except OSError:
        return None


def gib(size_bytes: int) -> str:
    """For a person."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**27 else f"{size_bytes / 2**20:.1f} MiB"


def sync_folder(folder: Path) -> None:
    """The rename itself is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
