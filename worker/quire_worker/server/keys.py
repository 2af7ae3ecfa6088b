"""API keys: which there are, and whose a presented one is. Only digests are kept.

Keys come from the command line or the environment, and from a file that may change while the worker runs. Knows no HTTP.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from quire_contract.telemetry import log_event
from quire_worker.errors import ConfigError

_log = logging.getLogger(__name__)
_HASHED = re.compile(r"[A-Za-z0-9._-]{1,64}:([0-9a-f]{64})")
_PLAIN = re.compile(r"[!-9;-~]+")
"""Printable ASCII without spaces and colons: a hash with a typing error must not become a key."""
_MAX_FILE_BYTES = 4 * 1024 * 1024


class KeyFile:
    """One key a line, `name:sha256 in hex` or plain; empty lines and those that begin with # say nothing."""

    def __init__(self, path: Path) -> None:
        """ConfigError, which names the line but never what stands there, for a file that cannot be used."""
        self.paths = [path]
        self.digests = _read(path)

    def reload(self) -> None:
        """Read it again. A file that cannot be used changes nothing: the old keys stay, and the log says why."""
        try:
            digests = _read(self.paths[0])
        except ConfigError as error:
            log_event(_log, logging.ERROR, "API keys stay as they were", reason=str(error))
            return
        if digests != self.digests:
            self.digests = digests
            log_event(_log, logging.INFO, "API keys read again", num_keys=len(digests))


class Keys:
    """All keys of one worker."""

    def __init__(self, plain: Sequence[str], file: KeyFile | None = None) -> None:
        self._fixed = tuple(digest_of(key) for key in plain)
        self._file = file

    @property
    def is_empty(self) -> bool:
        """No key is asked for."""
        return self._file is None and not self._fixed

    def find(self, presented: str | None) -> bytes | None:
        """The digest of a key that is valid now. Takes the same time for every wrong one."""
        digest = digest_of(presented or "")
        known = self._fixed if self._file is None else self._fixed + self._file.digests
        matches = [hmac.compare_digest(digest, each) for each in known]
        return digest if any(matches) else None


def digest_of(key: str) -> bytes:
    """SHA-256: keys are long and random, so it need not be slow."""
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()


def key_line(name: str, key: str) -> str:
    """A line for a key file. ConfigError for a name that cannot stand in one."""
    line = f"{name}:{digest_of(key).hex()}"
    if not _HASHED.fullmatch(line):
        raise ConfigError("a key's name has 1 to 64 of A-Z a-z 0-9 . _ -")
    return line


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        text = data.decode("ascii")
    except OSError as error:
        raise ConfigError(f"--api-key-file: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--api-key-file: {path} holds characters that are not ASCII") from None
    if len(data) > _MAX_FILE_BYTES:
        raise ConfigError(f"--api-key-file: {path} is larger than {_MAX_FILE_BYTES} bytes")
    digests = []
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.strip()
        if entry and not entry.startswith("#"):
            digests.append(_digest_in(entry, f"--api-key-file: {path}, line {number}"))
    if not digests:
        raise ConfigError(f"--api-key-file: {path} holds no key; `quire-worker hash-key NAME` makes a line for one")
    return tuple(dict.fromkeys(digests))


def _digest_in(entry: str, where: str) -> bytes:
    hashed = _HASHED.fullmatch(entry)
    if hashed is not None:
        return bytes.fromhex(hashed[1])
    if _PLAIN.fullmatch(entry):
        return digest_of(entry)
    raise ConfigError(f"{where}: is neither NAME:SHA256HEX (64 small hex digits) nor a key without spaces and colons")
