"""Reserve and settle over several routers: properties over random histories. Clocks are passed in; stores are in this process."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_router.limits.accounts import Grant, LocalAccounts, Order, wait_for
from quire_router.limits.meter import RefusedError
from quire_router.limits.meters import Limits, TenantMeters

START = 1_800_000_000.0


class Clock:
    def __init__(self, now=START):
        self.now = now

    def __call__(self):
        return self.now


class SharedAccounts:
    """Accounts of several routers, by the rules that Redis follows, and as far away: an answer takes a turn of the event loop."""

    def __init__(self, clock):
        self.clock = clock
        self.used = {}
        self.slots = {}
        self.held = {}
        self.reported = {}

    def of(self, router):
        return _OneRouter(self, router)

    def answer(self, router, order):
        mine = (order.key, router)
        delta = order.total - self.reported.get(mine, 0)
        self.reported[mine] = order.total
        slots = self.slots.setdefault(order.key, {})
        if order.window_s > 0:
            slots[int(self.clock())] = slots.get(int(self.clock()), 0) + delta
            for second in [s for s in slots if s + order.window_s + 1 <= self.clock()]:
                del slots[second]
            used = sum(slots.values())
        elif order.window_s == 0:
            used = self.used[order.key] = self.used.get(order.key, 0) + delta
        else:
            used = 0
        others = sum(n for (key, who), n in self.held.items() if key == order.key and who != router)
        free = order.limit - used - others - order.need
        fits = free >= max(1, order.least)
        extra = min(order.want, free) if order.want and fits else 0
        wait_s = wait_for(slots, order.window_s, order.least - free, self.clock()) if order.want and not fits else 0.0
        self.held[mine] = order.need + extra
        return Grant(extra=extra, used=used, others=others, wait_s=wait_s)


class _OneRouter:
    def __init__(self, accounts, router):
        self._accounts = accounts
        self._router = router

    def at_once(self, orders):
        return None

    async def exchange(self, orders):
        await asyncio.sleep(0)
        grants = [self._accounts.answer(self._router, order) for order in orders]
        await asyncio.sleep(0)
        return grants


STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(["reserve", "reserve", "settle", "settle", "tick", "wait"]),
        st.integers(1, 60),
        st.integers(0, 100),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.integers(1, 400), st.integers(0, 50))
def test_two_routers_never_use_more_than_the_limit_and_give_everything_back(steps, limit, lease_percent):
    asyncio.run(_history(steps, limit, lease_percent))


async def _history(steps, limit, lease_percent):
    clock = Clock()
    accounts = SharedAccounts(clock)
    routers = [TenantMeters("t", accounts.of(i), clock, clock) for i in range(2)]
    for meters in routers:
        meters.apply(Limits(tokens=limit, concurrency=3), lease_percent)
    running = [[], []]
    spent = []

    for who, action, number, percent in steps:
        meters = routers[who]
        if action == "reserve":
            demands = [(meters.concurrency, 1), (meters.tokens, number)]
            try:
                await meters.reserve(demands)
                running[who].append(demands)
            except RefusedError as error:
                assert error.demand in (1, number)
                assert error.wait_s > 0
        elif action == "settle" and running[who]:
            demands = running[who].pop(0)
            used = demands[1][1] * percent // 100
            meters.settle(demands, (1, used))
            spent.append((clock.now, used))
        elif action == "tick":
            await meters.tick()
        elif action == "wait":
            clock.now += number
        reserved = sum(demands[1][1] for mine in running for demands in mine)
        window = sum(used for at_s, used in spent if clock.now - at_s < 60)
        assert window + reserved <= limit
        assert sum(map(len, running)) <= 3
        assert all(m.reserved >= 0 and m.held >= m.reserved for router in routers for m in router.current)

    for who, meters in enumerate(routers):
        for demands in running[who]:
            meters.settle(demands, (1, 0))
        await meters.give_back()
    assert all(meter.is_at_rest for meters in routers for meter in meters.current)
    assert not any(accounts.held.values())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 150)), max_size=30), st.integers(1, 500))
def test_what_is_left_is_the_limit_less_what_was_settled(requests, limit):
    clock = Clock()
    meters = TenantMeters("t", LocalAccounts(clock), clock, clock)
    meters.apply(Limits(tokens_month=limit), 10)
    used_in_all = 0

    async def history():
        nonlocal used_in_all
        for number, percent in requests:
            demands = [(meters.tokens_month, number)]
            try:
                await meters.reserve(demands)
            except RefusedError:
                assert used_in_all + number > limit
                clock.now += 1
                continue
            used = number * percent // 100
            meters.settle(demands, (used,))
            used_in_all += used
        await meters.refresh()

    asyncio.run(history())

    assert meters.tokens_month.used == used_in_all
    assert meters.tokens_month.remaining == max(0, limit - used_in_all)


async def test_a_new_day_begins_at_midnight_utc_and_requests_are_charged_to_the_day_in_which_they_began():
    clock = Clock(1_800_057_599.0)  # 2027-01-15T23:59:59Z
    store = LocalAccounts(clock)
    meters = TenantMeters("t", store, clock, clock)
    meters.apply(Limits(tokens_day=10, tokens_month=100), 0)

    old = [(meter, 10) for meter in meters.token_meters()]
    await meters.reserve(old)
    before = meters.period_wait_s
    clock.now += 1
    new = [(meter, 10) for meter in meters.token_meters()]
    await meters.reserve(new)
    meters.settle(old, (7, 7))
    await meters.tick()

    assert before == (1.0, 1.0 + 16 * 86_400)
    assert meters.tokens_day.used == 0
    assert meters.tokens_month.used == 7
    [yesterday] = store.at_once([Order(key="{t}:tokens:2027-01-15", window_s=0, limit=10, total=0)])
    assert yesterday.used == 7


async def test_many_who_wait_are_served_by_few_words_to_the_store():
    clock = Clock()
    accounts = SharedAccounts(clock)
    orders = []

    class Counting(_OneRouter):
        async def exchange(self, told):
            orders.append(len(told))
            return await super().exchange(told)

    meters = TenantMeters("t", Counting(accounts, 0), clock, clock)
    meters.apply(Limits(requests=60), 1)

    results = await asyncio.gather(
        *(meters.reserve([(meters.requests, 1)]) for _ in range(100)), return_exceptions=True
    )

    assert sum(result is None for result in results) == 60
    assert len(orders) <= 4


async def test_a_refusal_is_repeated_without_asking():
    clock = Clock()
    store = LocalAccounts(clock)
    meters = TenantMeters("t", store, clock, clock)
    meters.apply(Limits(requests=1), 10)
    demands = [(meters.requests, 1)]

    await meters.reserve(demands)
    meters.settle(demands, (1,))
    waits = []
    for _ in range(3):
        try:
            await meters.reserve(demands)
        except RefusedError as error:
            waits.append(error.wait_s)
        clock.now += 0.05
    clock.now = START + 61
    await meters.reserve(demands)

    assert [round(wait, 2) for wait in waits] == [61.0, 60.95, 60.9]
