"""What accounts answer, the same in this process and in a real Redis. Clocks are passed in."""

import itertools
import random

import pytest

from quire_router.limits.accounts import FOR_LIFE, HELD_WAIT_S, MINUTE_S, ONLY_HELD, LocalAccounts, Order
from quire_router.limits.redis_store import RedisAccounts
from quire_router.redis_link import RedisAwayError, RedisLink
from tests.redis_server import running_redis

START = 1_800_000_000.0
PATIENCE_S = 120.0
"""These tests are of what Redis says, not of how long it takes."""


class Clock:
    def __init__(self):
        self.now = START

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def clock():
    return Clock()


_prefixes = itertools.count()


@pytest.fixture
async def routers(redis_server, clock):
    """Three stores on one Redis, as three routers have them."""
    prefix = f"test{next(_prefixes)}:"
    links = [RedisLink(redis_server.url, None, lambda: None, call_s=PATIENCE_S) for _ in range(3)]
    yield [
        RedisAccounts(
            link,
            LocalAccounts(clock),
            router_id=f"r{i}",
            prefix=prefix,
            may_stand_in=lambda: True,
            clock=clock,
        )
        for i, link in enumerate(links)
    ]
    for link in links:
        await link.close()


@pytest.fixture(params=["local", "redis"])
def store(request, clock, routers):
    return LocalAccounts(clock) if request.param == "local" else routers[0]


def order(window_s, limit, total=0, **fields):
    return Order(key="{t}:x", window_s=window_s, limit=limit, total=total, **fields)


async def ask(store, *args, **fields):
    return (await store.exchange([order(*args, **fields)]))[0]


async def test_a_window_never_holds_more_than_its_limit_and_says_when_it_will_have_room(store, clock):
    clock.now = START + 0.9
    first = await ask(store, MINUTE_S, 10, want=8, least=8)
    spent = await ask(store, MINUTE_S, 10, total=8, want=3, least=3)
    clock.now = START + 60.9
    at_a_minute = await ask(store, MINUTE_S, 10, total=8, want=3, least=3)
    clock.now = START + 61
    after = await ask(store, MINUTE_S, 10, total=8, want=3, least=3)

    assert (first.extra, first.used) == (8, 0)
    assert (spent.extra, spent.used, spent.wait_s) == (0, 8, pytest.approx(60.1))
    assert (at_a_minute.extra, at_a_minute.wait_s) == (0, pytest.approx(0.1))
    assert (after.extra, after.used) == (3, 0)


async def test_the_wait_is_for_as_many_units_as_are_asked_for(store, clock):
    await ask(store, MINUTE_S, 10, total=4)
    clock.now = START + 20
    await ask(store, MINUTE_S, 10, total=10)

    few = await ask(store, MINUTE_S, 10, total=10, want=3, least=3)
    many = await ask(store, MINUTE_S, 10, total=10, want=6, least=6)

    assert (few.wait_s, many.wait_s) == (pytest.approx(41), pytest.approx(61))


async def test_part_of_what_is_wanted_is_granted_unless_less_than_the_least(store):
    part = await ask(store, FOR_LIFE, 10, total=4, want=9, least=5)
    nothing = await ask(store, FOR_LIFE, 10, total=4, need=6, want=9, least=1)

    assert (part.extra, part.used) == (6, 4)
    assert (nothing.extra, nothing.wait_s) == (0, HELD_WAIT_S)


async def test_what_has_begun_is_held_beyond_the_limit_and_nothing_is_added(store):
    over = await ask(store, ONLY_HELD, 3, total=7, need=5, want=1, least=1)
    [counted] = await store.exchange([Order(key="{t}:y", window_s=FOR_LIFE, limit=None, total=50, want=2, least=1)])

    assert (over.extra, over.used) == (0, 0)
    assert (counted.extra, counted.used) == (2, 50)


async def test_a_report_that_is_repeated_counts_once(store):
    for _ in range(3):
        last = await ask(store, FOR_LIFE, 100, total=30)

    assert last.used == 30


async def test_routers_share_one_limit(routers):
    a, b, c = routers

    first = await ask(a, MINUTE_S, 10, want=6, least=1)
    second = await ask(b, MINUTE_S, 10, want=6, least=1)
    third = await ask(c, MINUTE_S, 10, want=1, least=1)
    await ask(a, MINUTE_S, 10, total=2)
    fourth = await ask(c, MINUTE_S, 10, want=9, least=1)

    assert [grant.extra for grant in (first, second, third, fourth)] == [6, 4, 0, 4]
    assert (fourth.used, fourth.others) == (2, 4)


@pytest.mark.parametrize(("window_s", "used"), [(ONLY_HELD, 0), (FOR_LIFE, 6), (MINUTE_S, 6)])
async def test_what_a_dead_router_held_is_free_again_or_counts_as_used(window_s, used, routers, clock):
    a, b, _ = routers
    await ask(a, window_s, 10, want=6, least=1)

    clock.now = START + 14
    alive = await ask(b, window_s, 10, want=10, least=10)
    clock.now = START + 16
    dead = await ask(b, window_s, 10, want=1, least=1)

    assert (alive.extra, alive.others) == (0, 6)
    assert (dead.extra, dead.others, dead.used) == (1, 0, used)


async def test_a_router_that_was_only_silent_takes_back_what_it_had_not_used(routers, clock):
    a, b, _ = routers
    await ask(a, FOR_LIFE, 10, want=6, least=1)
    clock.now = START + 16
    await ask(b, FOR_LIFE, 10)

    back = await ask(a, FOR_LIFE, 10, total=2)

    assert back.used == 2


async def test_an_account_that_was_lost_is_made_anew_from_what_routers_know(routers, redis_server):
    a, b, c = routers
    first = await ask(a, FOR_LIFE, 100, total=30)
    second = await ask(b, FOR_LIFE, 100, total=12)
    for store in routers:
        await store._link.call(lambda client: client.flushall())

    after_a = await ask(a, FOR_LIFE, 100, total=35, acked=30, known=first.used, epoch=first.epoch)
    after_b = await ask(b, FOR_LIFE, 100, total=14, acked=12, known=second.used, epoch=second.epoch)
    again = await ask(b, FOR_LIFE, 100, total=14, acked=12, known=second.used, epoch=second.epoch)
    new = await ask(c, FOR_LIFE, 100, total=1)

    assert (first.used, second.used) == (30, 42)
    assert after_a.used == 35
    assert (after_b.used, again.used, new.used) == (49, 49, 50)


@pytest.mark.parametrize("seed", range(12))
async def test_nothing_counts_twice_or_is_forgotten_when_answers_and_the_account_are_lost(seed, routers, clock):
    rng = random.Random(seed)
    known = [{"acked": 0, "known": 0, "epoch": "", "reports": ""} for _ in routers]
    totals = [0, 0, 0]

    async def tell(i, *, is_heard):
        """Its total; what it hears it brings back the next time."""
        answer = await ask(routers[i], FOR_LIFE, None, total=totals[i], **known[i])
        if is_heard:
            known[i] = {"acked": totals[i], "known": answer.used, "epoch": answer.epoch, "reports": answer.reports}
        return answer.used

    for _ in range(80):
        i = rng.randrange(3)
        totals[i] += rng.randrange(5)
        clock.now += rng.choice((0.1, 20.0))
        if rng.random() < 0.1:
            await routers[0]._link.call(lambda client: client.flushall())
        await tell(i, is_heard=rng.random() < 0.7)
    for i in rng.sample(range(3), 3):
        await tell(i, is_heard=True)

    assert [await tell(i, is_heard=True) for i in range(3)] == [sum(totals)] * 3


async def test_while_redis_is_away_the_stand_in_goes_on_from_what_was_known(routers, redis_server, clock):
    a, b, _ = routers
    await ask(a, FOR_LIFE, 10, total=4)
    await ask(b, FOR_LIFE, 10, total=3)
    known = await ask(a, FOR_LIFE, 10, total=4)

    async def fail(client):
        raise TimeoutError

    with pytest.raises(RedisAwayError):
        await a._link.call(fail)
    at_once = a.at_once([order(FOR_LIFE, 10, total=5, want=9, least=1)])
    a._link.is_up = True
    back = await ask(a, FOR_LIFE, 10, total=6, acked=4, known=known.used, epoch=known.epoch)

    assert [(g.extra, g.used, g.confirmed) for g in at_once] == [(2, 8, False)]
    assert (back.used, back.confirmed) == (9, True)


@pytest.mark.parametrize("window_s", [MINUTE_S, FOR_LIFE, ONLY_HELD])
@pytest.mark.parametrize("seed", range(8))
async def test_redis_and_this_process_answer_alike_whatever_is_ordered(window_s, seed, routers, clock):
    rng = random.Random(seed)
    local, total, told = LocalAccounts(clock), 0, []

    for _ in range(60):
        clock.now += rng.choice([0, 0, 0.3, 1, 7, 50])
        total += rng.choice([0, 1, 20])
        want = rng.choice([0, 1, 5, 40])
        one = order(
            window_s, 100, total=total, need=rng.choice([0, 3, 90]), want=want, least=min(want, rng.choice([1, 5]))
        )
        told.append((await local.exchange([one]), await routers[0].exchange([one])))

    alike = [(a.extra, a.used, a.others, round(a.wait_s, 2)) for [a], _ in told]
    assert alike == [(b.extra, b.used, b.others, round(b.wait_s, 2)) for _, [b] in told]


async def test_a_password_may_come_beside_the_address(redis_server):
    url = redis_server.url.replace("/0", "/1")
    admin = RedisLink(url, None, lambda: None, call_s=PATIENCE_S)
    await admin.call(lambda client: client.acl_setuser("default", enabled=True, passwords=["+s3cret"], reset=False))
    right, none, in_url = (
        RedisLink(address, password, lambda: None, call_s=PATIENCE_S)
        for address, password in ((url, "s3cret"), (url, "wrong"), (url.replace("//", "//:s3cret@"), None))
    )

    answers = [await right.call(lambda client: client.ping()), await in_url.call(lambda client: client.ping())]
    with pytest.raises(RedisAwayError) as refused:
        await none.call(lambda client: client.ping())
    await right.call(lambda client: client.acl_setuser("default", enabled=True, nopass=True, keys=["*"], reset=False))

    assert answers == [True, True]
    assert "s3cret" not in str(refused.value) + repr(right.__dict__)
    for link in (admin, right, none, in_url):
        await link.close()
