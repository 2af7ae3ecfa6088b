"""Keys and tenants for tests."""

import asyncio
import hashlib

from quire_contract.router_tenants import TenantEntry, TenantKeyEntry

POLL_S = 0.01


def key_entry(key, key_id="k1", expires_ts=None):
    return TenantKeyEntry(id=key_id, sha256=hashlib.sha256(key.encode()).hexdigest(), expires_ts=expires_ts)


def tenant(tenant_id, *keys, **fields):
    entries = [key_entry(k, f"k{i}") if isinstance(k, str) else k for i, k in enumerate(keys)]
    return TenantEntry(id=tenant_id, keys=entries, **fields)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


async def until_true(look, timeout_s=120.0):
    """Wait until `await look()` is true: what it asks for comes about in other processes and tasks."""
    async with asyncio.timeout(timeout_s):
        while not await look():  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)
