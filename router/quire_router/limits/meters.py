"""All limits of one tenant in one router: what a request needs is reserved whole or not at all, and the store is asked for many at once.

Used from the event loop only. It must not know requests, prices or errors of an API.
"""

import asyncio
import datetime
from collections.abc import Callable, Iterable

import msgspec

from quire_router.limits.accounts import (
    FOR_LIFE,
    HELD_WAIT_S,
    MINUTE_S,
    ONLY_HELD,
    Grant,
    LimitStore,
    LimitsUnavailableError,
    Order,
)
from quire_router.limits.meter import Demands, Meter, Name, RefusedError
from quire_router.limits.metering import metering

HEARTBEAT_S = 4.0
"""A meter that holds something says so this often at least; Redis believes it dead after 15 s."""
MAX_ROUNDS = 8


class Limits(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A tenant's limits; None: not limited."""

    requests: int | None = None
    concurrency: int | None = None
    tokens: int | None = None
    tokens_day: int | None = None
    tokens_month: int | None = None
    balance: int | None = None


class TenantMeters:
    """All of one tenant's. `clock`: monotonic, in seconds; `wall_clock`: Unix time in seconds, for days and months."""

    def __init__(
        self, tenant_id: str, store: LimitStore, clock: Callable[[], float], wall_clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._clock = clock
        self._wall_clock = wall_clock
        self._native = metering()
        self._prefix = f"{{{tenant_id}}}:"
        self._flight: asyncio.Task[None] | None = None
        self._num_flights = 0
        self._limits = Limits()
        self._lease_percent = 0
        self._old: list[Meter] = []
        self._period_ends_s = float("-inf")
        self.requests = self._meter("requests", "requests", MINUTE_S)
        self.concurrency = self._meter("concurrency", "concurrency", ONLY_HELD)
        self.tokens = self._meter("tokens", "tokens", MINUTE_S)
        self.balance = self._meter("balance", "balance", FOR_LIFE, life_s=0)
        self.tokens_day = self.tokens_month = self.tokens
        self._look_at_calendar()

    def apply(self, limits: Limits, lease_percent: int) -> None:
        """Hold to `limits` from now on."""
        self._limits = limits
        self._lease_percent = lease_percent
        for meter in self.current:
            meter.plan(getattr(limits, meter.name), lease_percent)
        self._list_limited()

    @property
    def current(self) -> tuple[Meter, ...]:
        """Those of this day and month."""
        if self._wall_clock() >= self._period_ends_s:
            self._look_at_calendar()
        return self.requests, self.concurrency, self.tokens, self.tokens_day, self.tokens_month, self.balance

    def token_meters(self) -> tuple[Meter, ...]:
        """Those with a limit that count tokens."""
        if self._has_periods and self._wall_clock() >= self._period_ends_s:
            self._look_at_calendar()
        return self._limited_tokens

    def request_demands(self) -> tuple[tuple[Meter, int], ...]:
        """One request of each meter with a limit that counts them; those at the same time first, so that a refusal costs none of a
        minute's."""
        return self._request_demands

    @property
    def period_wait_s(self) -> tuple[float, float]:
        """Seconds until the next day and the next month (UTC)."""
        now_s = self._wall_clock()
        day = datetime.datetime.fromtimestamp(now_s, datetime.UTC).date()
        month = (day.replace(day=1) + datetime.timedelta(days=32)).replace(day=1)
        return _midnight_s(day + datetime.timedelta(days=1)) - now_s, _midnight_s(month) - now_s

    def try_reserve(self, demands: Demands, *, refills: bool = False) -> bool:
        """Reserve all of it if it is at hand, or nothing. `refills`: as `refill_early` does, if it was at hand."""
        found = None if self._native is None else self._native.reserve(demands)
        if found is None:
            found = _reserve(demands)
        if found == _IS_LOW and refills:
            self.refill_early(demands)
        return found != _NOT_AT_HAND

    async def reserve(self, demands: Demands) -> None:
        """Reserve all of it, of meters with a limit, or nothing. RefusedError names the limit; LimitsUnavailableError."""
        if self.try_reserve(demands):
            return
        ticket: int | None = None
        for _ in range(MAX_ROUNDS):
            now_s = self._clock()
            short = [(m, n) for m, n in demands if m.available < n]
            for meter, number in short:
                refusal = meter.refusal(number, now_s)
                if refusal is not None:
                    self._give_back_soon(demands)
                    raise refusal
            ticket = await self._obtain(short, ticket)
            if self.try_reserve(demands):
                return
        raise RefusedError(*demands[0], HELD_WAIT_S)

    def settle_each(self, demands: Demands, spent: int) -> None:
        """As `settle`, where so much was taken of each."""
        is_idle = None if self._native is None else self._native.settle(demands, spent)
        if is_idle is None:
            self.settle(demands, (spent,) * len(demands))
        elif is_idle and self._flight is None:
            self._give_back_soon(demands)

    def settle(self, demands: Iterable[tuple[Meter, int | None]], used: Iterable[int]) -> None:
        """After the work: what it really took. What was reserved of each meter (None: it was only counted) is free again."""
        is_idle = False
        for (meter, number), spent in zip(demands, used, strict=True):
            gone = 0 if meter.window_s == ONLY_HELD else spent
            meter.total += gone
            if number is not None:
                meter.reserved -= number
                meter.held -= gone
                if number > gone:
                    meter.refused_until_s = 0.0  # there may be room again
            if not meter.spare and meter.held > meter.reserved:
                is_idle = True
        if is_idle and self._flight is None:
            self._give_back_soon(demands)

    def refill_early(self, demands: Demands) -> None:
        """Fetch more in the background where half of the lease is gone, so that no request waits; not of what comes back by itself."""
        if self._flight is not None:
            return
        is_low = False
        for meter, _ in demands:
            if meter.window_s == ONLY_HELD:
                continue
            if meter.spare > 2 * (meter.held - meter.reserved) and self._clock() >= meter.refused_until_s:
                meter.wanted = max(meter.wanted, 1)
                meter.least = 1
                is_low = True
        if is_low:
            self._begin_flight()

    def at_rest(self) -> bool:
        """Whether nothing needs to be told to the store."""
        return self._flight is None and all(meter.is_at_rest for meter in (*self.current, *self._old))

    async def tick(self) -> None:
        """Report what was used, give back what lies idle, keep the rest alive. About once a second, and at the end."""
        if self._flight is None:
            self._begin_flight(is_tick=True)
        if self._flight is not None:
            await asyncio.shield(self._flight)

    async def refresh(self) -> None:
        """Ask how things stand."""
        while self._flight is not None:
            await asyncio.shield(self._flight)
        now_s = self._clock()
        told = [(m, m.order(now_s, keep=m.spare)) for m in self.current if m.limit is not None or m is self.balance]
        try:
            grants = self._store.at_once([order for _, order in told])
        except LimitsUnavailableError:
            return
        if grants is not None:
            _take(told, grants, now_s)
            return
        await asyncio.shield(self._fly(told))

    async def give_back(self) -> None:
        """Hold nothing any more; the process ends."""
        for meter in (*self.current, *self._old):
            meter.is_used = False
        await self.tick()
        await self.tick()

    def orders(self, now_s: float, *, is_tick: bool) -> list[tuple[Meter, Order]]:
        """What to tell the store now."""
        told = []
        for meter in (*self.current, *self._old):
            keep = meter.spare if meter.is_used or not is_tick else 0
            due = meter.total != meter.acked or meter.available > keep
            due = due or (bool(meter.held) and now_s - meter.sent_s >= HEARTBEAT_S)
            if is_tick:
                meter.is_used = False
            if due or meter.wanted:
                told.append((meter, meter.order(now_s, keep=max(keep, meter.wanted))))
        return told

    async def _obtain(self, short: Demands, ticket: int | None) -> int:
        """One word to the store for all who wait now. Gives the number of the flight that this demand goes with, to be given back here by
        who still waits: a demand is told once."""
        if ticket is None or ticket < self._num_flights - (self._flight is not None):
            ticket = self._num_flights
            for meter, number in short:
                meter.wanted += number
                meter.least = min(meter.least, number) if meter.least else number
        if self._flight is None:
            now_s = self._clock()
            told = self.orders(now_s, is_tick=False)
            grants = self._store.at_once([order for _, order in told])
            if grants is not None:
                self._num_flights += 1
                _take(told, grants, now_s)
                return ticket
            self._fly(told)
        assert self._flight is not None, "there is a flight to wait for"
        await asyncio.shield(self._flight)
        return ticket

    def _give_back_soon(self, demands: Iterable[tuple[Meter, int | None]]) -> None:
        """Of few units even one matters: another router may be refused for want of it."""
        for meter, _ in demands:
            if not meter.spare and meter.held > meter.reserved and self._flight is None:
                self._begin_flight()
                return

    def _begin_flight(self, *, is_tick: bool = False) -> None:
        now_s = self._clock()
        told = self.orders(now_s, is_tick=is_tick)
        if not told:
            return
        try:
            grants = self._store.at_once([order for _, order in told])
        except LimitsUnavailableError:
            return
        if grants is None:
            self._fly(told)
        else:
            self._num_flights += 1
            _take(told, grants, now_s)
            self._forget_old()

    def _fly(self, told: list[tuple[Meter, Order]]) -> "asyncio.Task[None]":
        self._num_flights += 1
        self._flight = asyncio.create_task(self._exchange(told))
        return self._flight

    async def _exchange(self, told: list[tuple[Meter, Order]]) -> None:
        try:
            grants = await self._store.exchange([order for _, order in told])
            _take(told, grants, self._clock())
        except LimitsUnavailableError:
            pass  # whoever waits finds that it is still short, and asks again
        finally:
            self._flight = None
            self._forget_old()

    def _meter(self, name: Name, key: str, window_s: int, life_s: int = 3600) -> Meter:
        meter = Meter(name, self._prefix + key, window_s, life_s)
        meter.plan(getattr(self._limits, name), self._lease_percent)
        return meter

    def _look_at_calendar(self) -> None:
        day = datetime.datetime.fromtimestamp(self._wall_clock(), datetime.UTC).date()
        self._period_ends_s = _midnight_s(day + datetime.timedelta(days=1))
        keys = {"tokens_day": f"tokens:{day}", "tokens_month": f"tokens:{day:%Y-%m}"}
        if not self.tokens_day.key.endswith(keys["tokens_day"]):
            self._old.append(self.tokens_day)
            self.tokens_day = self._meter("tokens_day", keys["tokens_day"], FOR_LIFE, 3 * 86_400)
        if not self.tokens_month.key.endswith(keys["tokens_month"]):
            self._old.append(self.tokens_month)
            self.tokens_month = self._meter("tokens_month", keys["tokens_month"], FOR_LIFE, 40 * 86_400)
        self._forget_old()
        self._list_limited()

    def _list_limited(self) -> None:
        tokens = (self.tokens, self.tokens_day, self.tokens_month)
        self._limited_tokens = tuple(meter for meter in tokens if meter.limit is not None)
        self._has_periods = self.tokens_day.limit is not None or self.tokens_month.limit is not None
        self.has_quota = self._has_periods or self.balance.limit is not None
        """Whether anything is limited that ends an answer: a minute's limit lets it go on."""
        requests = (self.concurrency, self.requests)
        self._request_demands = tuple((meter, 1) for meter in requests if meter.limit is not None)

    def _forget_old(self) -> None:
        self._old = [meter for meter in self._old if not meter.is_at_rest and meter is not self.tokens]


_NOT_AT_HAND, _IS_LOW = 0, 2


def _reserve(demands: Demands) -> int:
    """_NOT_AT_HAND, and nothing has changed; 1: it is reserved; _IS_LOW: and little is left."""
    for meter, number in demands:
        if meter.held - meter.reserved < number:
            return _NOT_AT_HAND
    found = 1
    for meter, number in demands:
        meter.reserved = reserved = meter.reserved + number
        meter.is_used = True
        if meter.spare > 2 * (meter.held - reserved):
            found = _IS_LOW
    return found


def _take(told: Iterable[tuple[Meter, Order]], grants: Iterable[Grant], now_s: float) -> None:
    for (meter, order), grant in zip(told, grants, strict=True):
        meter.take(order, grant, now_s)


def _midnight_s(day: datetime.date) -> float:
    return datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp()
