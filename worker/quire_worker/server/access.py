"""Who may call which route, and with whom a caller shares cached prefixes.

With trust credentials (a worker of a release): only holders of the token, who alone may also use `x-quire-*` headers. Without: holders
of an API key, or everybody if there is none. Health, readiness and metrics are open to all.
Comparisons take the same time for every wrong key.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence

from quire_contract import names
from quire_contract.trust import Trust, bearer_token, presented_token
from quire_worker.server.keys import KeyFile, Keys

OPEN_PATHS = frozenset({names.PATH_HEALTH, names.PATH_READY, names.PATH_METRICS})
_API_KEY_HEADER = "x-api-key"
"""Anthropic's clients send the key in it."""
_SALT_PURPOSE = b"quire cache salt 1\0"


class Access:
    """Decides on one caller at a time; keeps only digests of keys."""

    def __init__(
        self,
        api_keys: Sequence[str],
        trust: Trust | None,
        key_file: KeyFile | None = None,
        *,
        share_prefix_cache: bool = False,
    ) -> None:
        """`share_prefix_cache`: callers with different keys may find each other's prefixes in the cache."""
        self._keys = Keys(api_keys, key_file)
        self._trust = trust
        self._shares = share_prefix_cache

    @property
    def is_open(self) -> bool:
        """Nobody is asked for anything."""
        return self._trust is None and self._keys.is_empty

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
        return self._keys.is_empty or self._key_of(headers) is not None

    def cache_scope(self, headers: Mapping[str, str]) -> bytes | None:
        """What tells this caller's cached prefixes from other callers'; None: nothing does. A release's routers send salts themselves."""
        if self._shares or self._trust is not None or self._keys.is_empty:
            return None
        return self._key_of(headers)

    def _key_of(self, headers: Mapping[str, str]) -> bytes | None:
        """The digest of the valid key that the caller presents."""
        bearer = self._keys.find(bearer_token(headers))
        return bearer or self._keys.find(headers.get(_API_KEY_HEADER))

    def may_control(self, peer: str | None) -> bool:
        """Whether a caller whom `may_call` let through may also drain: a router or operator of the release, or somebody on this machine.

        A key is for using the model; who holds one must not be able to take it from the others."""
        if self._trust is not None:
            return True
        try:
            return peer is not None and ipaddress.ip_address(peer).is_loopback
        except ValueError:
            return False


def scoped_salt(scope: bytes | None, requested: str | None) -> str | None:
    """The cache salt of a caller's request: `requested` within the caller's own scope.

    From the key itself, so that all replicas and lives of a worker agree; events show it, and it tells nothing of the key."""
    if scope is None:
        return requested
    return hmac.new(scope, _SALT_PURPOSE + (requested or "").encode(), hashlib.sha256).hexdigest()
