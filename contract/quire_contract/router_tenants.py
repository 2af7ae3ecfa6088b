"""Tenants as the router's configuration tells them: who may call, with which keys, which models, how much. Keys only as digests."""

import re
from typing import Literal

import msgspec

_DIGEST = re.compile(r"[0-9a-f]{64}")


class TenantKeyEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One API key, by its digest."""

    id: str
    """For logs and revocation; not secret."""
    sha256: str
    """SHA-256 of the key, 64 lower-case hexadecimal digits."""
    expires_ts: float | None = None
    """Unix time in seconds at which it stops working; None: never."""


class TenantLimitsEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How much a tenant may ask for; None: not limited. Tokens are prompt and answer together."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    """In a UTC day."""
    tokens_per_month: int | None = None
    """In a UTC month."""
    max_concurrent_requests: int | None = None


class TenantEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Somebody who sends requests."""

    id: str
    """"namespace/name" of the Tenant; its name alone under `quire up`."""
    keys: list[TenantKeyEntry] = []
    namespace: str | None = None
    """Only models of InferenceServices in this namespace; None: of every one."""
    models: list[str] = []
    """Names of models and routes that it may use; empty: all (of its namespace)."""
    limits: TenantLimitsEntry = TenantLimitsEntry()
    billing: Literal["postpaid", "prepaid"] = "postpaid"
    credit: str = "0"
    """All that was ever paid in, a decimal number of the currency; a prepaid tenant is served while its usage costs less."""
    priority: int = 0
    """-100 to 100; higher goes first when requests wait."""
    weight: int = 1
    """Its share among tenants of one priority when requests wait."""
    shares_cache: bool = False
    """Its cached prefixes may be used by other tenants that share, too."""
    response_cache: bool = True
    """Whether answers may come from the response cache and from another request's generation, where the release uses them."""
    suspended: bool = False
    """Every request is refused, with all keys kept."""


class PriceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a model's tokens cost: decimal numbers of the currency for a million tokens."""

    input: str = "0"
    cached_input: str | None = None
    """Prompt tokens that were in the worker's cache; None: as `input`."""
    output: str = "0"


_DECIMAL = re.compile(r"\d{1,12}(\.\d{1,9})?")


def tenant_problem(tenant: TenantEntry) -> str | None:
    """The first thing that is wrong with it, beginning with the field's name."""
    if not tenant.id:
        return "id: must not be empty"
    for i, key in enumerate(tenant.keys):
        if not _DIGEST.fullmatch(key.sha256):
            return f"keys[{i}].sha256: must be 64 lower-case hexadecimal digits"
    limits = msgspec.structs.asdict(tenant.limits)
    wrong = next((name for name, value in limits.items() if value is not None and value < 1), None)
    if wrong is not None:
        return f"limits.{wrong}: is {limits[wrong]}; give at least 1, or leave it out"
    if not -100 <= tenant.priority <= 100:
        return f"priority: is {tenant.priority}; use -100 to 100"
    if not 1 <= tenant.weight <= 1000:
        return f"weight: is {tenant.weight}; use 1 to 1000"
    return (
        None if _DECIMAL.fullmatch(tenant.credit) else f"credit: {tenant.credit!r} is no decimal number such as 12.50"
    )


def price_problem(price: PriceEntry) -> str | None:
    """The first thing that is wrong with it, beginning with the field's name."""
    for field, value in msgspec.structs.asdict(price).items():
        if value is not None and not _DECIMAL.fullmatch(value):
            return f"{field}: {value!r} is no decimal number such as 0.15"
    return None
