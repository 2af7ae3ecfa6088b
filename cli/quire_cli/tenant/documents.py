"""Tenant resources as plain documents: a new one, one more key, one key less. Pure; this module must not know where they are kept."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from quire_cli.errors import EXIT_FAILED, CommandError
from quire_cli.tenant.keys import NewKey, time_text
from quire_operator.api.resource import API_VERSION
from quire_operator.api.tenant import TENANT
from quire_operator.api.validation import InvalidResourceError, parse_resource

TenantDocument = dict[str, Any]
MAX_KEYS = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What `quire tenant create` may be told; None: not limited."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    max_concurrent_requests: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewTenant:
    """All that `quire tenant create` may be told."""

    name: str
    display_name: str | None = None
    models: tuple[str, ...] = ()
    limits: Limits = Limits()
    credit: str | None = None
    """Makes it a prepaid one."""
    priority: int = 0
    weight: int = 1


@dataclass(frozen=True, kw_only=True)
class Change:
    """A changed document, and what to tell about it."""

    document: TenantDocument
    lines: tuple[str, ...]


def made_tenant(wanted: NewTenant, key: NewKey) -> TenantDocument:
    """The resource, with one key. CommandError naming what cannot be."""
    limits = {
        "requestsPerMinute": wanted.limits.requests_per_minute,
        "tokensPerMinute": wanted.limits.tokens_per_minute,
        "tokensPerDay": wanted.limits.tokens_per_day,
        "tokensPerMonth": wanted.limits.tokens_per_month,
        "maxConcurrentRequests": wanted.limits.max_concurrent_requests,
    }
    spec = {
        "displayName": wanted.display_name,
        "keys": [key.entry],
        "models": list(wanted.models) or None,
        "limits": {name: value for name, value in limits.items() if value is not None} or None,
        "billing": None if wanted.credit is None else {"mode": "Prepaid", "credit": wanted.credit},
        "priority": wanted.priority or None,
        "weight": None if wanted.weight == 1 else wanted.weight,
    }
    document = {
        "apiVersion": API_VERSION,
        "kind": TENANT.kind,
        "metadata": {"name": wanted.name},
        "spec": {name: value for name, value in spec.items() if value is not None},
    }
    check(document)
    return document


def rotated(
    document: Mapping[str, Any], key: NewKey, *, replaced: str | None, overlap: timedelta, now: datetime
) -> Change:
    """One more key; the one that it replaces works for `overlap` longer. Keys that expired are removed.

    `replaced` is its id; None: the only one that works for longer than that. CommandError if that leaves a choice.
    """
    name = document["metadata"]["name"]
    end = now + overlap
    live = [entry for entry in keys_of(document) if not _ends_by(entry, now)]
    old = _replaced(name, live, replaced, end)
    kept = []
    lines = [f"{name}: key {key.entry['id']} works{_until(key.entry)}"]
    for entry in live:
        if old is None or entry["id"] != old["id"]:
            kept.append(entry)
        elif overlap:
            kept.append({**entry, "expiresAt": time_text(end)})
            lines.append(f"{name}: key {entry['id']} works until {time_text(end)}")
        else:
            lines.append(f"{name}: key {entry['id']} is revoked")
    if len(kept) >= MAX_KEYS:
        raise CommandError(f"{name} has {len(kept)} keys, the most that there may be; revoke one first")
    return _changed(document, [*kept, key.entry], lines)


def without_key(document: Mapping[str, Any], key_id: str) -> Change:
    """One key less. CommandError that names the others if there is no such key."""
    name = document["metadata"]["name"]
    entries = keys_of(document)
    kept = [entry for entry in entries if entry["id"] != key_id]
    if len(kept) == len(entries):
        raise CommandError(f"{name} has no key {key_id}; it has: {_ids(entries)}", exit_code=EXIT_FAILED)
    lines = [f"{name}: key {key_id} is revoked"]
    if not kept:
        lines.append(f"{name} has no key left: nobody can call as this tenant until quire tenant rotate {name}")
    return _changed(document, kept, lines)


def keys_of(document: Mapping[str, Any]) -> list[dict[str, str]]:
    """The keys in its spec."""
    return list((document.get("spec") or {}).get("keys") or ())


def summary_row(document: Mapping[str, Any], now: datetime) -> list[str]:
    """Name, keys, models, limits, billing and whether routers enforce it: one row of `quire tenant list`."""
    spec = document.get("spec") or {}
    live = [entry for entry in keys_of(document) if not _ends_by(entry, now)]
    models = spec.get("models") or []
    billing = spec.get("billing") or {}
    return [
        document["metadata"]["name"],
        ",".join(entry["id"] + ("*" if "expiresAt" in entry else "") for entry in live) or "none",
        ",".join(models[:3]) + (f",+{len(models) - 3}" if len(models) > 3 else "") or "all",
        ",".join(_limits(spec.get("limits") or {})) or "none",
        f"prepaid {billing['credit']}" if billing.get("mode") == "Prepaid" else "postpaid",
        "suspended" if spec.get("suspended") else _accepted(document),
    ]


SUMMARY_TITLES = ("NAME", "KEYS", "MODELS", "LIMITS", "BILLING", "STATE")


def check(document: Mapping[str, Any]) -> None:
    """CommandError with every problem of a Tenant."""
    try:
        parse_resource(dict(document), TENANT)
    except InvalidResourceError as error:
        raise CommandError(*map(str, error.problems)) from None


def _limits(limits: Mapping[str, int]) -> Iterator[str]:
    units = {
        "requestsPerMinute": "req/min",
        "tokensPerMinute": "tok/min",
        "tokensPerDay": "tok/day",
        "tokensPerMonth": "tok/month",
        "maxConcurrentRequests": "at once",
    }
    for name, unit in units.items():
        if name in limits:
            yield f"{limits[name]} {unit}"


def _accepted(document: Mapping[str, Any]) -> str:
    conditions = (document.get("status") or {}).get("conditions") or ()
    found = next((one for one in conditions if one.get("type") == "Accepted"), None)
    if found is None:
        return "-"
    return "enforced" if found.get("status") == "True" else str(found.get("reason"))


def _replaced(name: str, live: Sequence[dict[str, str]], wanted: str | None, end: datetime) -> dict[str, str] | None:
    if wanted is not None:
        found = next((entry for entry in live if entry["id"] == wanted), None)
        if found is None:
            raise CommandError(f"--key-id {wanted}: {name} has no such key; it has: {_ids(live)}")
        return found
    lasting = [entry for entry in live if not _ends_by(entry, end)]
    if len(lasting) > 1:
        raise CommandError(f"{name} has several keys: {_ids(lasting)}; name the one to replace with --key-id")
    return lasting[0] if lasting else None


def _ends_by(entry: Mapping[str, str], time: datetime) -> bool:
    text = entry.get("expiresAt")
    return text is not None and datetime.fromisoformat(text).astimezone(UTC) <= time


def _until(entry: Mapping[str, str]) -> str:
    return f" until {entry['expiresAt']}" if "expiresAt" in entry else ""


def _ids(entries: Sequence[Mapping[str, str]]) -> str:
    return ", ".join(entry["id"] for entry in entries) or "none"


def _changed(document: Mapping[str, Any], keys: Sequence[Mapping[str, str]], lines: Sequence[str]) -> Change:
    changed = copy.deepcopy(dict(document))
    changed["spec"] = {**(changed.get("spec") or {}), "keys": [dict(entry) for entry in keys]}
    check({name: value for name, value in changed.items() if name != "status"})
    return Change(document=changed, lines=tuple(lines))
