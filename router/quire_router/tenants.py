"""Tenants as the router looks them up: whose key it is, what they may use, what keeps their cached prefixes apart.

Swapped as a whole with the configuration, and nothing of it is kept elsewhere: a key that was revoked is unknown at the next request.
It must not know requests or limits.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping

import msgspec

from quire_contract.router_config import RouteEntry, RouterConfig
from quire_contract.router_tenants import TenantEntry
from quire_contract.trust import Trust
from quire_router.call import Tenant

_SALT_PURPOSE = b"quire tenant cache salt 1\0"
_SALT_KEY_PURPOSE = b"quire cache-salt key 1"


class KnownKey(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A key of a tenant."""

    tenant: Tenant
    expires_ts: float | None
    """Unix time in seconds; None: never."""
    lasts: bool
    """Whether it is good for as long as the configuration is: it never expires, and its tenant is not suspended."""


class TenantBook:
    """All tenants. One for the process; `swap` follows the live configuration."""

    def __init__(self, salt_key: bytes | None) -> None:
        """`salt_key`: None if workers would not believe our salts."""
        self._salt_key = salt_key
        self._keys: dict[bytes, KnownKey] = {}
        self._by_id: dict[tuple[str, str], KnownKey] = {}
        self._tenants: dict[str, TenantEntry] = {}
        self._visible: dict[str, frozenset[str]] = {}
        self._config = RouterConfig(models=[], endpoints=[])
        self.require_tenant = False
        """Whether requests without a tenant's key are refused."""
        self.is_empty = True
        """Whether there is no tenant and none is required."""
        self._lasting: dict[int, Tenant] = {}

    def swap(self, config: RouterConfig) -> None:
        """Know the tenants of `config` from now on, and no others."""
        if config.tenants != self._config.tenants:
            self._tenants = {entry.id: entry for entry in config.tenants}
            self._keys = {
                bytes.fromhex(key.sha256): KnownKey(
                    tenant=Tenant(entry=entry, key_id=key.id),
                    expires_ts=key.expires_ts,
                    lasts=key.expires_ts is None and not entry.suspended,
                )
                for entry in reversed(
                    config.tenants
                )  # of one key in two shards the first says whose it is, as of anything else
                for key in entry.keys
            }
            self._by_id = {(known.tenant.entry.id, known.tenant.key_id): known for known in self._keys.values()}
            self._lasting = {id(known.tenant): known.tenant for known in self._by_id.values() if known.lasts}
        self.require_tenant = config.require_tenant
        self.is_empty = not self._tenants and not self.require_tenant
        self._config = config
        self._visible = {}

    @property
    def tenants(self) -> Mapping[str, TenantEntry]:
        """All of them by id."""
        return self._tenants

    def find(self, digest: bytes) -> KnownKey | None:
        """The key with this SHA-256. What a look-up's time tells is of the digest, from which no key can be guessed."""
        return self._keys.get(digest)

    def is_as_it_was(self, tenant: Tenant) -> bool:
        """Whether nothing has changed since `tenant` was found here, and its key lasts. False: look at `key`."""
        return id(tenant) in self._lasting  # it lives, so no other one has its place

    def key(self, tenant: Tenant) -> KnownKey | None:
        """The key that was presented as it stands now; None: it was revoked, or its tenant is gone."""
        known = self._by_id.get((tenant.entry.id, tenant.key_id))
        if known is None or known.tenant.entry is tenant.entry:
            return known
        was, now = (_sha256_of(entry, tenant.key_id) for entry in (tenant.entry, known.tenant.entry))
        return known if was == now else None  # otherwise another one has its id

    def may_use(self, tenant: Tenant | None, model: str) -> bool:
        """Whether the model or route exists for the tenant; None: a caller who is none."""
        if tenant is None:
            return True
        visible = self._visible.get(tenant.entry.id)
        return model in (self._visible_to(tenant.entry) if visible is None else visible)

    def visible(self, tenant: Tenant | None, names: Iterable[str]) -> list[str]:
        """Those of `names` that the tenant may use, in their order."""
        return [name for name in names if self.may_use(tenant, name)]

    def salt(self, tenant: Tenant | None, requested: str | None) -> str | None:
        """What the blocks of a prompt are hashed with: the tenant's own, with `requested` (the body's) inside. None: nothing of the
        tenant's, so that the body's holds."""
        if tenant is None or tenant.entry.shares_cache or self._salt_key is None:
            return None
        tenant_id = tenant.entry.id.encode()
        message = b"%s%d:%s%s" % (
            _SALT_PURPOSE,
            len(tenant_id),
            tenant_id,
            (requested or "").encode("utf-8", "replace"),
        )
        return hmac.digest(self._salt_key, message, "sha256").hex()

    def _visible_to(self, entry: TenantEntry) -> frozenset[str]:
        entry = self._tenants.get(entry.id, entry)  # as it stands now: whoever asks may have come before the last swap
        visible = self._visible[entry.id] = _visible(entry, self._config)
        return visible


def salt_key(trust: Trust | None) -> bytes | None:
    """The key of the tenants' salts: of what a release keeps for it, or of its token where it keeps nothing. Equal in all routers of a
    release. None without trust: workers obey nobody then."""
    if trust is None:
        return None
    return hmac.digest((trust.cache_salt or trust.token).encode(), _SALT_KEY_PURPOSE, hashlib.sha256)


def _visible(entry: TenantEntry, config: RouterConfig) -> frozenset[str]:
    served = {m.name for m in config.models if entry.namespace is None or _namespace(m.service) == entry.namespace}
    routes = {route.model for route in config.routes if entry.namespace is None or _leads_to(route) <= served}
    found = served | routes
    return frozenset(found & set(entry.models) if entry.models else found)


def _leads_to(route: RouteEntry) -> set[str]:
    targets = {target.model for target in route.targets}
    return {*targets, *route.fallbacks, *(step.model for step in route.complexity)}


def _sha256_of(entry: TenantEntry, key_id: str) -> str | None:
    return next((key.sha256 for key in entry.keys if key.id == key_id), None)


def _namespace(service: str) -> str:
    return service.partition("/")[0]
