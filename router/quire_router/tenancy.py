"""What the router has for tenants, put together: keys, meters, prices, usage, and the tasks that keep them. Called by `__main__` only."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine

from quire_contract.router_config import RouterConfig
from quire_contract.trust import Trust
from quire_router.answer import Layer
from quire_router.clocks import Clocks
from quire_router.limits.accounts import LimitStore, LocalAccounts
from quire_router.limits.book import MeterBook
from quire_router.limits.redis_store import RedisAccounts
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics
from quire_router.prices import Prices
from quire_router.redis_link import RedisLink
from quire_router.shared_store import SharedStore
from quire_router.tenant_layers import RequestLimits, TokenLimits
from quire_router.tenant_metrics import TenantMetrics
from quire_router.tenants import TenantBook, salt_key
from quire_router.usage.memory import MemoryUsage
from quire_router.usage.record import UsageStore
from quire_router.usage.redis_usage import RedisUsage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tenancy:
    """The parts that others ask."""

    tenants: TenantBook
    meters: MeterBook
    usage: UsageStore
    metrics: TenantMetrics
    request_limits: Layer
    token_limits: Layer
    link: RedisLink | None
    """None: nothing is shared with other routers."""


@contextlib.asynccontextmanager
async def tenancy_of(
    *,
    trust: Trust | None,
    live: LiveConfig,
    metrics: RouterMetrics,
    shared: SharedStore | None,
    router_id: str,
    clock: Callable[[], float],
    wall_clock: Callable[[], float],
    model_length: Callable[[str], int | None],
) -> AsyncIterator[Tenancy]:
    """All of it, following the live configuration. `router_id`: of this life of the process; `model_length`: see TokenLimits. At the end
    what was taken in advance is given back, and what was used is written down."""
    async with contextlib.AsyncExitStack() as stack:
        tenant_metrics = TenantMetrics(metrics.registry)
        link = None if shared is None else await stack.enter_async_context(_linked(shared, tenant_metrics))
        local = LocalAccounts(wall_clock)
        store: LimitStore = local
        usage: MemoryUsage | RedisUsage = MemoryUsage(lambda: live.settings.usage.memory_max_records)
        if link is not None and shared is not None:
            store = RedisAccounts(
                link,
                local,
                router_id=router_id,
                prefix=shared.prefix + "limit:",
                may_stand_in=lambda: live.settings.limits.without_redis == "local",
            )
            usage = RedisUsage(
                link,
                router_id=router_id,
                prefix=shared.prefix,
                max_records=lambda: live.settings.usage.stream_max_records,
                max_queued=lambda: live.settings.usage.memory_max_records,
                on_drop=tenant_metrics.usage_dropped.inc,
            )
            stack.push_async_callback(usage.close)
            await stack.enter_async_context(_running(usage.run()))
        meters = MeterBook(store, clock, wall_clock)
        stack.push_async_callback(meters.close)
        await stack.enter_async_context(_running(meters.run()))
        tenants, prices = TenantBook(salt_key(trust)), Prices()

        def follow(config: RouterConfig) -> None:
            for part in (tenants, meters, prices):
                part.swap(config)
            tenant_metrics.keep_only(tenants.tenants)

        live.follow(follow)
        tenant_metrics.show(
            redis_up=lambda: float(link is not None and link.is_up),
            leases=lambda: float(meters.num_leases),
            queued=lambda: float(usage.num_queued if isinstance(usage, RedisUsage) else 0),
        )
        yield Tenancy(
            tenants=tenants,
            meters=meters,
            usage=usage,
            metrics=tenant_metrics,
            request_limits=RequestLimits(meters, tenant_metrics),
            token_limits=TokenLimits(
                book=meters,
                prices=prices,
                usage=usage,
                metrics=tenant_metrics,
                live=live,
                router_id=router_id,
                clocks=Clocks(monotonic=clock, wall=wall_clock),
                model_length=model_length,
            ),
            link=link,
        )


@contextlib.asynccontextmanager
async def _linked(shared: SharedStore, metrics: TenantMetrics) -> AsyncIterator[RedisLink]:
    link = RedisLink(shared.url, shared.password, metrics.redis_errors.inc, call_s=shared.timeout_s)
    try:
        async with _running(link.run()):
            yield link
    finally:
        await link.close()


@contextlib.asynccontextmanager
async def _running(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
