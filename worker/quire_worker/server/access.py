"""Who may call which route.

With trust credentials (a worker of a release): only holders of the token, who alone may also use `x-quire-*` headers. Without: holders
of an API key, or everybody if there is none. Health, readiness and metrics are open to all.
Comparisons take the same time for every wrong key.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence

from quire_contract import names
from quire_contract.trust import Trust, presented_key, presented_token

OPEN_PATHS = frozenset({names.PATH_HEALTH, names.PATH_READY, names.PATH_METRICS})


class Access:
    """Decides on one caller at a time; keeps only digests of keys."""

    def __init__(self, api_keys: Sequence[str], trust: Trust | None) -> None:
        self._key_digests = [_digest(key) for key in api_keys]
        self._trust = trust

    @property
    def is_open(self) -> bool:
        """Nobody is asked for anything."""
        return self._trust is None and not self._key_digests

    def is_trusted(self, headers: Mapping[str, str]) -> bool:
        """Whether the caller is a router or operator of our release."""
        if self._trust is None:
            return False
        return self._trust.admits(presented_token(headers))

    def may_call(self, path: str, headers: Mapping[str, str]) -> bool:
        if path in OPEN_PATHS:
            return True
        if self._trust is not None:
            return self.is_trusted(headers)
        if not self._key_digests:
            return True
        presented = _digest(presented_key(headers) or "")
        matches = [hmac.compare_digest(presented, digest) for digest in self._key_digests]
        return any(matches)

    def may_control(self, peer: str | None) -> bool:
        """Whether a caller whom `may_call` let through may also drain: on a server open to everybody, only from this machine."""
        if not self.is_open:
            return True
        try:
            return peer is not None and ipaddress.ip_address(peer).is_loopback
        except ValueError:
            return False


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
