"""A model out of a tar archive: regular files of the names a model has, from one folder of it.

Links, devices and paths that lead out are refused. So is what would grow too far: a small compressed file can stand for terabytes, and a
header in it for more than the memory.

Blocking: callers run it in a thread. This module must not know where the archive came from.
"""

import gzip
import hashlib
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from quire_worker.fetch import selection
from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.store import FileRecord
from quire_worker.models.safetensors_files import INDEX_NAME

_READ_BYTES = 4 * 1024 * 1024
_MAX_MEMBERS = 10_000
_RESERVE_BYTES = 64 * 1024 * 1024


def extract(
    archive: Path, folder: Path, on_file: Callable[[str, int], None], max_bytes: int | None = None
) -> dict[str, FileRecord]:
    """Writes the model's files into `folder`; `on_file` hears name and bytes written. `max_bytes` is for archive and files together.

    Raises FetchError, OSError if the disk refuses.
    """
    try:
        with _opened(archive, shutil.disk_usage(folder).total) as tar:
            members = _members(tar)
            names = selection.needed(members, _index(tar, members))
            _check_total(archive, sum(members[name].size for name in names), max_bytes)
            in_order = sorted(names, key=lambda name: members[name].offset_data)  # each way back is a new beginning
            return {name: _write(tar, members[name], name, folder, on_file) for name in in_order}
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError) as error:
        raise FetchError(Reason.INVALID_MODEL, f"the archive cannot be read: {error}") from None


class _Guarded:
    """What tarfile reads: refuses a piece that no member of ours needs at once, and an archive larger than `max_bytes` when unpacked."""

    def __init__(self, file: IO[bytes], max_bytes: int) -> None:
        self._file = file
        self._max_bytes = max_bytes
        self.tell = file.tell
        self.close = file.close

    def read(self, size: int = -1) -> bytes:
        """Like a file's."""
        if not 0 <= size <= selection.MAX_INDEX_BYTES:
            raise tarfile.ReadError(f"a header or file in it wants {size} bytes at once")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        """Like a file's, from its beginning. In a compressed archive it reads all that lies between."""
        if position > self._max_bytes:
            raise tarfile.ReadError(f"it has more than {self._max_bytes} bytes unpacked, which is more than the disk")
        return self._file.seek(position)


@contextmanager
def _opened(archive: Path, max_bytes: int) -> Iterator[tarfile.TarFile]:
    with archive.open("rb") as raw:
        is_compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file = cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_compressed else raw
        guarded = cast("IO[bytes]", _Guarded(file, max_bytes))
        with tarfile.open(fileobj=guarded, mode="r:") as tar:
            yield tar
        if is_compressed:  # its checksum is behind the end
            while guarded.read(_READ_BYTES):
                guarded.seek(guarded.tell())


def _check_total(archive: Path, content_bytes: int, max_bytes: int | None) -> None:
    needed_bytes = archive.stat().st_size + content_bytes
    if max_bytes is not None and needed_bytes > max_bytes:
        message = (
            f"the archive and its content take {needed_bytes} bytes, and a pod's model cache {max_bytes}; "
            "enlarge models.cache.size of the chart"
        )
        raise FetchError(Reason.NO_SPACE, message)


def _members(tar: tarfile.TarFile) -> dict[str, tarfile.TarInfo]:
    """Regular files by their name below the folder that config.json lies in."""
    files: dict[str, tarfile.TarInfo] = {}
    for member in _bounded(tar):
        name = posixpath.normpath(member.name) if not member.name.startswith("/") else member.name
        if member.isdir():
            continue
        if not member.isreg():
            raise FetchError(
                Reason.INVALID_MODEL, f"the archive holds {name[:200]!r}, which is a link or a device; pack plain files"
            )
        files[selection.check_name(name)] = member
    roots = sorted({posixpath.dirname(name) for name in files if posixpath.basename(name) == selection.CONFIG}, key=len)
    if not roots:
        raise FetchError(
            Reason.INVALID_MODEL, f"the archive has no {selection.CONFIG}; it must hold a model in Hugging Face format"
        )
    prefix = f"{roots[0]}/" if roots[0] else ""
    return {name.removeprefix(prefix): member for name, member in files.items() if name.startswith(prefix)}


def _bounded(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for number, member in enumerate(tar):
        if number >= _MAX_MEMBERS:
            raise FetchError(
                Reason.INVALID_MODEL, f"the archive has more than {_MAX_MEMBERS} members; pack the model alone"
            )
        yield member


def _index(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> bytes | None:
    member = members.get(INDEX_NAME)
    if member is None:
        return None
    if member.size > selection.MAX_INDEX_BYTES:
        raise FetchError(Reason.INVALID_MODEL, f"{INDEX_NAME} of the archive has {member.size} bytes; that is no index")
    file = tar.extractfile(member)
    assert file is not None, "it is a regular file"
    return file.read()


def _write(
    tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, folder: Path, on_file: Callable[[str, int], None]
) -> FileRecord:
    if member.size + _RESERVE_BYTES > shutil.disk_usage(folder).free:
        raise FetchError(
            Reason.NO_SPACE,
            f"{name} of the archive does not fit; the model cache must hold the archive and its content",
        )
    source = tar.extractfile(member)
    assert source is not None, "it is a regular file"
    path, digest, size = folder / name, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as target:
        while data := source.read(_READ_BYTES):
            target.write(data)
            digest.update(data)
            size += len(data)
            on_file(name, size)
    if size != member.size:
        raise FetchError(Reason.INVALID_MODEL, f"the archive ends within {name}")
    return FileRecord(size=size, sha256=digest.hexdigest())
