"""The meters of all tenants, kept in line with the configuration, and told to the store about once a second."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from quire_contract.router_config import RouterConfig
from quire_contract.router_settings import RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_router.limits.accounts import LimitStore
from quire_router.limits.meters import Limits, TenantMeters
from quire_router.prices import nano

log = logging.getLogger("quire_router.limits")

TICK_S = 1.0
MAX_AT_ONCE = 16
"""Tenants whose meters are told to the store at the same time."""


class MeterBook:
    """One for the process. `clock`: monotonic, in seconds; `wall_clock`: Unix time in seconds."""

    def __init__(self, store: LimitStore, clock: Callable[[], float], wall_clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._entries: dict[str, TenantEntry] = {}
        self._lease_percent = RouterSettingsEntry().limits.lease_percent
        self._meters: dict[str, TenantMeters] = {}
        self._active: dict[str, TenantMeters] = {}

    def swap(self, config: RouterConfig) -> None:
        """Hold to the limits of `config` from now on. Meters of tenants that are gone stay until all is told."""
        settings = config.settings or RouterSettingsEntry()
        before, self._entries = self._entries, {entry.id: entry for entry in config.tenants}
        is_same = self._lease_percent == settings.limits.lease_percent
        self._lease_percent = settings.limits.lease_percent
        for tenant_id in list(self._meters):
            entry = self._entries.get(tenant_id)
            if entry is not None and not (is_same and entry == before.get(tenant_id)):
                self._meters[tenant_id].apply(limits_of(entry), self._lease_percent)

    def of(self, entry: TenantEntry) -> TenantMeters:
        """The tenant's meters, to be used now."""
        meters = self._active.get(entry.id)
        if meters is None:
            meters = self._active[entry.id] = self.look_at(entry)
        return meters

    def look_at(self, entry: TenantEntry) -> TenantMeters:
        """The tenant's meters, to be read."""
        meters = self._meters.get(entry.id)
        if meters is None:
            meters = TenantMeters(entry.id, self._store, self._clock, self._wall_clock)
            meters.apply(limits_of(self._entries.get(entry.id, entry)), self._lease_percent)
            self._meters[entry.id] = meters
        return meters

    @property
    def num_leases(self) -> int:
        """Meters that hold units now."""
        return sum(meter.held > 0 for meters in self._active.values() for meter in meters.current)

    async def tick(self) -> None:
        """Tell the store what has changed; forget who has nothing to tell."""
        await self._of_all(TenantMeters.tick)
        self._active = {i: m for i, m in self._active.items() if not m.at_rest()}
        self._meters = {i: m for i, m in self._meters.items() if i in self._entries or i in self._active}

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.tick()
            except Exception:  # a loop that must live: nothing would be told to the other routers any more
                log.exception("telling limits to their store failed; it is tried again")

    async def close(self) -> None:
        """Give back all that is held."""
        await self._of_all(TenantMeters.give_back)

    async def _of_all(self, act: Callable[[TenantMeters], Awaitable[None]]) -> None:
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def one(meters: TenantMeters) -> None:
            async with gate:
                await act(meters)

        await asyncio.gather(*(one(meters) for meters in self._active.values()))


def limits_of(entry: TenantEntry) -> Limits:
    """What holds for a tenant."""
    limits = entry.limits
    return Limits(
        requests=limits.requests_per_minute,
        concurrency=limits.max_concurrent_requests,
        tokens=limits.tokens_per_minute,
        tokens_day=limits.tokens_per_day,
        tokens_month=limits.tokens_per_month,
        balance=nano(entry.credit) if entry.billing == "prepaid" else None,
    )
