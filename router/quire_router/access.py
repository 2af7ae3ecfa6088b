"""Who may call the router: tenants and holders of one of its own keys, or everybody if it knows neither.

A key is looked up by its SHA-256, so what the look-up's time tells is of a digest, which leads to no key. Health, readiness and metrics
are open; /debug/route shows all tenants' requests and is for holders of the router's own keys.
"""

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence

from quire_contract import names
from quire_contract.openai.errors import (
    CODE_KEY_EXPIRED,
    CODE_NOT_ALLOWED,
    CODE_TENANT_SUSPENDED,
    ApiError,
    unauthorized,
)
from quire_contract.trust import presented_key
from quire_router.answer import Answer, Source
from quire_router.call import Call, Outcome, Tenant
from quire_router.tenants import KnownKey, TenantBook

OPEN_PATHS = frozenset(
    {names.PATH_HEALTH, names.PATH_READY, names.PATH_METRICS, names.PATH_REVISION_STATS, names.PATH_DEMAND}
)
"""The last two are not open to anybody: their own handler asks for the release's token instead."""


class Access:
    """Decides on one caller at a time. Keeps only digests of keys, and no decision: a revoked key fails at the next request."""

    def __init__(self, api_keys: Sequence[str], tenants: TenantBook, wall_clock: Callable[[], float]) -> None:
        """`wall_clock`: Unix time in seconds, by which keys expire."""
        self._plain = frozenset(_digest(key) for key in api_keys)
        self.tenants = tenants
        """What is known of them."""
        self._wall_clock = wall_clock

    def check(self, path: str, headers: Mapping[str, str]) -> Tenant | None:
        """Who asks for `path`; None: nobody's tenant. ApiError 401 for an unknown or expired key, 403 for a suspended tenant."""
        if (not self._plain and self.tenants.is_empty) or path in OPEN_PATHS:
            return None
        presented = presented_key(headers)
        if presented is None:
            raise unauthorized()
        digest = _digest(presented)
        known = self.tenants.find(digest)
        if known is None:
            if digest not in self._plain:
                raise unauthorized()
            if self.tenants.require_tenant and path != names.PATH_DEBUG_ROUTE:
                raise unauthorized("This router asks for a tenant's key; the key that was sent is the router's own.")
            return None
        check_still(known, self._wall_clock())
        if path == names.PATH_DEBUG_ROUTE:
            message = f"{path} is not for tenants; ask the admin port, or send one of the router's own keys."
            raise ApiError(403, message, type="permission_error", code=CODE_NOT_ALLOWED)
        return known.tenant


class AccessLayer:
    """Looks again when a request is about to go to a worker: it may have waited for minutes. What runs already runs to its end."""

    def __init__(self, tenants: TenantBook, wall_clock: Callable[[], float]) -> None:
        self._tenants = tenants
        self._wall_clock = wall_clock

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer. ApiError 401 if its key has gone or expired meanwhile, 403 if its tenant was suspended."""
        if call.tenant is not None and not self._tenants.is_empty:  # where there are none, everybody is let in
            known = self._tenants.key(call.tenant)
            if known is None:
                raise unauthorized("The key that was sent has been revoked meanwhile.")
            check_still(known, self._wall_clock())
        return inner(call, outcome)


def check_still(known: KnownKey, now_s: float) -> None:
    """ApiError 401 for a key that has expired by `now_s`, 403 for one of a suspended tenant."""
    if known.expires_ts is not None and known.expires_ts <= now_s:
        raise ApiError(
            401,
            f"The key {known.tenant.key_id!r} has expired; use the tenant's newer one.",
            type="authentication_error",
            code=CODE_KEY_EXPIRED,
            headers={"WWW-Authenticate": "Bearer"},
        )
    if known.tenant.entry.suspended:
        raise ApiError(403, "The tenant is suspended.", type="permission_error", code=CODE_TENANT_SUSPENDED)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
