"""API keys: how one is made, what is kept of it, and how long it lives. This module must not know where tenants are written."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from quire_cli.errors import CommandError

PREFIX = "sk-quire-"
"""By which scanners of source code and people know a key that leaked."""
_KEY_BYTES = 32
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_NUM_DIGITS = 43
"""62 ** 43 > 2 ** 256."""
_DURATION = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key that was just made."""

    key: str
    """Shown once, kept nowhere."""
    entry: dict[str, str]
    """Its place in a Tenant's spec.keys: id, sha256, expiresAt."""


def new_key(now: datetime, expires_in: timedelta | None, key_id: str | None = None) -> NewKey:
    """A key of 256 random bits. Without `key_id` its id is the day and six random digits."""
    number = int.from_bytes(secrets.token_bytes(_KEY_BYTES), "big")
    digits = []
    for _ in range(_NUM_DIGITS):
        number, digit = divmod(number, len(_BASE62))
        digits.append(_BASE62[digit])
    key = PREFIX + "".join(digits)
    entry = {"id": key_id or f"{now:%Y%m%d}-{secrets.token_hex(3)}", "sha256": digest_of(key)}
    if expires_in is not None:
        entry["expiresAt"] = time_text(now + expires_in)
    return NewKey(key=key, entry=entry)


def digest_of(key: str) -> str:
    """What routers compare. A plain digest is enough for random bits: nobody can try them all."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_duration(flag: str, text: str) -> timedelta:
    """90d, 24h, 30m, 45s or 2w; 0 is none. CommandError that names the flag otherwise."""
    if text == "0":
        return timedelta()
    match = _DURATION.fullmatch(text)
    if match is None:
        raise CommandError(f"{flag} {text}: must be a time such as 90d, 24h or 30m")
    return timedelta(seconds=int(match[1]) * _UNITS[match[2]])


def time_text(time: datetime) -> str:
    """As a Tenant's expiresAt has it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
