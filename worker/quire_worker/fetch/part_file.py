"""A file that is being received: what there is of it survives a kill, and its digests are known at any time.

    name.part    the bytes so far
    name.etag    which version of the file they are of, where the source said it

Blocking: callers run it in threads. This module must not know the network.
"""

import errno
import hashlib
import os
from pathlib import Path

from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.remote import Checksum

PART_SUFFIX = ".part"
ETAG_SUFFIX = ".etag"
_READ_BYTES = 4 * 1024 * 1024
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


def disk_error(error: OSError, folder: Path) -> FetchError:
    """What a failed write means for a person."""
    if error.errno in _FULL:
        return FetchError(
            Reason.NO_SPACE,
            f"the model cache is full ({error.strerror}); enlarge it, or remove models that nobody uses",
        )
    if error.errno in _UNWRITABLE:
        message = (
            f"{folder}: {error.strerror}; the model cache must be writable for user {os.getuid()} (group {os.getgid()})"
        )
        return FetchError(Reason.CACHE_UNUSABLE, message)
    return FetchError(Reason.CACHE_UNUSABLE, f"{folder}: {error.strerror or error}; look at the model cache's volume")


class PartFile:
    """One file in the making."""

    def __init__(self, final: Path, checksum: Checksum | None, expected_size: int | None) -> None:
        """Continues what is there. `checksum` says which digest is needed beside SHA-256; git's needs the size beforehand."""
        self._final = final
        self._path = final.with_name(final.name + PART_SUFFIX)
        self._etag_path = final.with_name(final.name + ETAG_SUFFIX)
        self._checksum = checksum
        self._expected_size = expected_size
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.is_file() and not self._path.exists():
            final.rename(self._path)  # complete once, but not noted as such: looked at again, not fetched again
        self._file = self._path.open("ab")
        self.size = 0
        """Bytes so far."""
        self._begin_digests()
        self._read_again()

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)
        self._digest(data)

    def restart(self) -> None:
        """Forget everything."""
        self._file.truncate(0)
        self._etag_path.unlink(missing_ok=True)
        self.size = 0
        self._begin_digests()

    @property
    def etag(self) -> str | None:
        """The version that the bytes are of."""
        try:
            return self._etag_path.read_text("ascii") or None
        except (OSError, UnicodeDecodeError):
            return None

    def set_etag(self, etag: str | None) -> None:
        """The version that the bytes from now on are of."""
        if etag is None or not etag.isascii():
            self._etag_path.unlink(missing_ok=True)
        else:
            self._etag_path.write_text(etag, "ascii")

    @property
    def sha256(self) -> str:
        """Of the bytes so far."""
        return self._sha256.hexdigest()

    def matches(self) -> bool:
        """Whether the bytes are those that the source vouches for; True if it vouches for none."""
        if self._checksum is None:
            return True
        digest = self._sha256 if self._second is None else self._second
        return digest.hexdigest() == self._checksum.hexdigest

    def finish(self) -> None:
        """Make it the final file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._path.replace(self._final)
        self._etag_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Keep what there is for the next time."""
        self._file.close()

    def _begin_digests(self) -> None:
        self._sha256 = hashlib.sha256()
        self._second: hashlib._Hash | None = None
        match self._checksum.kind if self._checksum else None:
            case "md5":
                self._second = hashlib.md5(usedforsecurity=False)
            case "git-sha1":
                self._second = hashlib.sha1(f"blob {self._expected_size}\0".encode(), usedforsecurity=False)
            case _:
                pass

    def _read_again(self) -> None:
        with self._path.open("rb") as file:
            while data := file.read(_READ_BYTES):
                self._digest(data)

    def _digest(self, data: bytes) -> None:
        self.size += len(data)
        self._sha256.update(data)
        if self._second is not None:
            self._second.update(data)
