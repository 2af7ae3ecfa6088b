"""Accounts in Redis, shared by all routers of a release; a stand-in in this process answers while Redis is away, if it may.

It must not know tenants: whoever orders chooses the keys.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import redis.asyncio

from quire_router.limits.accounts import Grant, LimitsUnavailableError, LocalAccounts, Order
from quire_router.limits.redis_script import EXCHANGE, FORGET_MS
from quire_router.redis_link import RedisAwayError, RedisLink

MAX_EXACT = 2**53
"""Redis' scripts count in floating point: whole numbers are exact up to here."""


class RedisAccounts:
    """One for the process."""

    def __init__(
        self,
        link: RedisLink,
        stand_in: LocalAccounts,
        *,
        router_id: str,
        prefix: str,
        may_stand_in: Callable[[], bool],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`router_id`: of this life of the process. `prefix`: of all keys. `clock`: Unix seconds; None: Redis' own."""
        self._link = link
        self._stand_in = stand_in
        self._router_id = router_id
        self._prefix = prefix
        self._may_stand_in = may_stand_in
        self._clock = clock
        self._script = link.script(EXCHANGE)

    def at_once(self, orders: Sequence[Order]) -> list[Grant] | None:
        """The stand-in's answers while Redis is away. LimitsUnavailableError if it may not stand in."""
        return None if self._link.is_up else self._without(orders)

    async def exchange(self, orders: Sequence[Order]) -> list[Grant]:
        """Redis' answers, or the stand-in's. All keys are of one tenant: with a cluster they lie in one slot."""
        keys = [self._prefix + order.key for order in orders]
        now = -1 if self._clock is None else int(self._clock() * 1000)
        args: list[Any] = [now, self._router_id]
        for order in orders:
            args += _arguments(order)

        async def work(client: "redis.asyncio.Redis") -> Any:
            return await self._script(keys=keys, args=args, client=client)

        try:
            reply = await self._link.call(work)
        except RedisAwayError:
            return self._without(orders)
        grants = [_grant(line) for line in reply]
        for order, grant in zip(orders, grants, strict=True):
            self._stand_in.note(order, grant.used)
        return grants

    def _without(self, orders: Sequence[Order]) -> list[Grant]:
        if not self._may_stand_in() and any(order.want and order.limit is not None for order in orders):
            raise LimitsUnavailableError
        return [msgspec.structs.replace(grant, confirmed=False) for grant in self._stand_in.at_once(orders)]


def _arguments(order: Order) -> list[Any]:
    return [
        order.window_s,
        -1 if order.limit is None else min(order.limit, MAX_EXACT),
        order.total,
        order.acked,
        order.known,
        order.epoch,
        order.need,
        order.want,
        order.least,
        order.life_s * 1000,
        FORGET_MS,
        order.reports,
    ]


def _grant(line: list[str]) -> Grant:
    extra, used, others, wait_ms, epoch, reports = line
    return Grant(
        extra=int(extra), used=int(used), others=int(others), wait_s=int(wait_ms) / 1000, epoch=epoch, reports=reports
    )
