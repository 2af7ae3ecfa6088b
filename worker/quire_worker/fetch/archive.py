"""A model out of a tar archive: regular files of the names a model has, from one folder of it.

Links, devices and paths that lead out are refused.

Blocking: callers run it in a thread. This module must not know where the archive came from.
"""

import hashlib
import posixpath
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from quire_worker.fetch import selection
from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.store import FileRecord
from quire_worker.models.safetensors_files import INDEX_NAME

_READ_BYTES = 4 * 1024 * 1024
_MAX_MEMBERS = 10_000
_RESERVE_BYTES = 64 * 1024 * 1024


def extract(archive: Path, folder: Path, on_file: Callable[[str, int], None]) -> dict[str, FileRecord]:
    """Writes the model's files into `folder`; `on_file` hears name and bytes written. Raises FetchError, OSError if the disk refuses."""
    try:
        with tarfile.open(archive) as tar:
            members = _members(tar)
            names = selection.needed(members, _index(tar, members))
            return {name: _write(tar, members[name], name, folder, on_file) for name in names}
    except (tarfile.TarError, EOFError) as error:
        raise FetchError(Reason.INVALID_MODEL, f"the archive cannot be read: {error}") from None


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
