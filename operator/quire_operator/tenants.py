"""What becomes of Tenants: what routers are told of each, and what its condition says. A key belongs to one tenant, the oldest that has it.

Pure but for a memory of what was parsed: there may be thousands of tenants, and one of them changes at a time.
This module must not know requests, shards or routers.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from quire_contract.router_tenants import TenantEntry, TenantKeyEntry, TenantLimitsEntry
from quire_operator.api.tenant import TENANT, Tenant, TenantLimits, TenantSpec
from quire_operator.api.validation import InvalidResourceError, Problem, parse_resource

TenantKey = tuple[str, str]
_MAX_NAMED = 10


@dataclass(frozen=True, kw_only=True)
class TenantDecision:
    """What becomes of one Tenant."""

    entry: TenantEntry
    """What routers are told. Of an invalid tenant, that nobody may call as it: a release whose only tenant is written wrongly must not
    open to everybody."""
    problems: tuple[Problem, ...] = ()
    """Why it is not enforced as it is written."""
    reason: str = "Accepted"
    spec: TenantSpec | None = None
    """None if it is invalid."""


@dataclass(frozen=True, kw_only=True)
class _Parsed:
    version: tuple[str, int]
    """The document's uid and generation."""
    age: tuple[str, str]
    decision: TenantDecision


class TenantBook:
    """All tenants, and who has which key. What one change costs does not depend on how many tenants there are."""

    def __init__(self, home: str | None) -> None:
        """`home` is the release's own namespace, whose tenants may use the models of every one."""
        self._home = home
        self._parsed: dict[TenantKey, _Parsed] = {}
        self._holders: dict[str, set[TenantKey]] = {}

    def put(self, document: Mapping[str, Any]) -> frozenset[TenantKey] | None:
        """Learn of a tenant. The others whom its keys concern; None if the document says nothing new: its status does not."""
        meta = document["metadata"]
        key, version = (meta["namespace"], meta["name"]), (meta.get("uid") or "", meta.get("generation") or 0)
        known = self._parsed.get(key)
        if known is not None and known.version == version:
            return None
        concerned = self._let_go(key)
        parsed = self._parsed[key] = _Parsed(
            version=version,
            age=(meta.get("creationTimestamp") or "", meta.get("uid") or ""),
            decision=decide_tenant(document, self._home),
        )
        for digest in _digests(parsed):
            holders = self._holders.setdefault(digest, set())
            concerned |= holders
            holders.add(key)
        return frozenset(concerned)

    def drop(self, key: TenantKey) -> frozenset[TenantKey] | None:
        """Forget a tenant. The others whom its keys concern; None if there was no such tenant."""
        if key not in self._parsed:
            return None
        concerned = self._let_go(key)
        del self._parsed[key]
        return frozenset(concerned)

    def decision(self, key: TenantKey) -> TenantDecision | None:
        """What becomes of a tenant; None if there is none."""
        parsed = self._parsed.get(key)
        return None if parsed is None else without_taken_keys(parsed.decision, self._older_holders(key, parsed))

    def decisions(self) -> Iterator[tuple[TenantKey, TenantDecision]]:
        """What becomes of each."""
        for key, parsed in self._parsed.items():
            yield key, without_taken_keys(parsed.decision, self._older_holders(key, parsed))

    def _older_holders(self, key: TenantKey, parsed: _Parsed) -> dict[str, str]:
        older = {}
        for digest in _digests(parsed):
            oldest = min(self._holders[digest], key=lambda holder: self._parsed[holder].age)
            if oldest != key:
                older[digest] = "/".join(oldest)
        return older

    def _let_go(self, key: TenantKey) -> set[TenantKey]:
        """Take a tenant's keys from it. Those who have one of them, too."""
        concerned: set[TenantKey] = set()
        known = self._parsed.get(key)
        for digest in _digests(known) if known is not None else ():
            holders = self._holders[digest]
            holders.discard(key)
            concerned |= holders
            if not holders:
                del self._holders[digest]
        return concerned


def _digests(parsed: _Parsed) -> list[str]:
    return [key.sha256 for key in parsed.decision.entry.keys]


def decide_tenant(document: Mapping[str, Any], home: str | None) -> TenantDecision:
    """What becomes of a Tenant if no other one has its keys."""
    namespace, name = document["metadata"]["namespace"], document["metadata"]["name"]
    tenant_id, scope = f"{namespace}/{name}", None if namespace == home else namespace
    try:
        tenant = parse_resource(dict(document), TENANT)
    except InvalidResourceError as error:
        closed = TenantEntry(id=tenant_id, namespace=scope, suspended=True)
        return TenantDecision(entry=closed, problems=error.problems, reason="InvalidSpec")
    assert isinstance(tenant, Tenant)
    return TenantDecision(entry=tenant_entry(tenant, tenant_id, namespace=scope), spec=tenant.spec)


def tenant_entry(tenant: Tenant, tenant_id: str, namespace: str | None) -> TenantEntry:
    """The tenant as routers are told of it, under `tenant_id`; `namespace`: the only one whose models it may use."""
    spec = tenant.spec
    return TenantEntry(
        id=tenant_id,
        keys=[
            TenantKeyEntry(id=key.id, sha256=key.sha256, expires_ts=None if at is None else _timestamp(at))
            for key in spec.keys
            for at in (key.expires_at,)
        ],
        namespace=namespace,
        models=list(spec.models),
        limits=TenantLimitsEntry(**{name: getattr(spec.limits, name) for name in TenantLimits.model_fields}),
        billing="prepaid" if spec.billing.mode == "Prepaid" else "postpaid",
        credit=spec.billing.credit or "0",
        priority=spec.priority,
        weight=spec.weight,
        shares_cache=spec.cache_sharing == "Shared",
        response_cache=spec.response_cache == "Enabled",
        suspended=spec.suspended,
    )


def without_taken_keys(decision: TenantDecision, older: Mapping[str, str]) -> TenantDecision:
    """The decision without keys that an older tenant has: these go on working for that one, the others for this one.

    `older`: digest -> that tenant's id. So a digest that becomes known to another is no way to take a tenant's place.
    """
    entry = decision.entry
    if not older:
        return decision
    problems = tuple(
        Problem(
            path=f"spec.keys[{i}].sha256",
            message=f"is a key of the older Tenant {older[key.sha256]}; remove it here (routers take this tenant's other keys)",
        )
        for i, key in enumerate(entry.keys)
        if key.sha256 in older
    )
    kept = [key for key in entry.keys if key.sha256 not in older]
    return TenantDecision(
        entry=msgspec.structs.replace(entry, keys=kept), problems=problems, reason="KeyConflict", spec=decision.spec
    )


def enforcement_text(decision: TenantDecision, known_models: Collection[str]) -> str:
    """What routers enforce of an accepted tenant, and what it may have been written by mistake."""
    spec, entry = decision.spec, decision.entry
    assert spec is not None, "an invalid one is not enforced"
    scope = "every model" if entry.namespace is None else f"every model of namespace {entry.namespace}"
    told = [
        "every request is refused, for it is suspended" if spec.suspended else "",
        f"{len(spec.keys)} key{'' if len(spec.keys) == 1 else 's'}",
        scope if not spec.models else f"{len(spec.models)} model{'' if len(spec.models) == 1 else 's'}",
        *_limits(spec.limits),
        f"prepaid {spec.billing.credit}" if spec.billing.mode == "Prepaid" else "",
    ]
    text = f"Routers enforce it: {'; '.join(filter(None, told))}."
    return " ".join((text, *(f"Warning: {line}." for line in _warnings(spec, known_models))))


def _limits(limits: TenantLimits) -> Iterator[str]:
    words = {
        "requests_per_minute": "requests/minute",
        "tokens_per_minute": "tokens/minute",
        "tokens_per_day": "tokens/day",
        "tokens_per_month": "tokens/month",
        "max_concurrent_requests": "requests at once",
    }
    for name, unit in words.items():
        value = getattr(limits, name)
        if value is not None:
            yield f"{value} {unit}"


def _warnings(spec: TenantSpec, known_models: Collection[str]) -> Iterator[str]:
    if not spec.keys:
        yield "spec.keys is empty, so nobody can call as this tenant; make a key with quire tenant rotate"
    unknown = [model for model in spec.models if model not in known_models]
    if unknown:
        more = f" and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
        named = ", ".join(map(repr, unknown[:_MAX_NAMED]))
        yield f"spec.models: nothing that it may use is called {named}{more} now"


def _timestamp(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
