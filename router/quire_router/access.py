"""Who may call the router: holders of one of its keys, or everybody if it has none. Health, readiness and metrics are open."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from quire_contract import names
from quire_contract.openai.errors import unauthorized
from quire_contract.trust import presented_key

OPEN_PATHS = frozenset(
    {names.PATH_HEALTH, names.PATH_READY, names.PATH_METRICS, names.PATH_REVISION_STATS, names.PATH_DEMAND}
)
"""The last two are not open to anybody: their own handler asks for the release's token instead."""


class Access:
    """Keeps only digests of keys, and compares in the same time whatever is presented."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in api_keys]

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """ApiError 401 unless the caller may ask for `path`."""
        if not self._digests or path in OPEN_PATHS:
            return
        presented = _digest(presented_key(headers) or "")
        matches = [hmac.compare_digest(presented, digest) for digest in self._digests]
        if not any(matches):
            raise unauthorized()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
