"""Limits over two routers and a real Redis: held exactly while it is there; it may stop, freeze or forget everything under load."""

import asyncio
import json
import time

import aiohttp
import pytest
import redis
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import LimitSettings, RouterSettingsEntry
from quire_contract.router_tenants import PriceEntry, TenantEntry, TenantLimitsEntry
from quire_router.__main__ import running
from quire_router.config import RouterSettings
from tests.redis_server import running_redis
from tests.router.tenant_help import bearer, key_entry, until_true

BODY = {"model": "m", "prompt": "x" * 40, "max_tokens": 20}
PATIENT_S, HURRIED_S = 120.0, 0.25
"""For Redis. Routers that do not wait count by themselves meanwhile, and keep to no common limit."""
USED = 15
"""Tokens of each answer; 30 are reserved."""


@pytest.fixture
def redis_server(tmp_path):
    with running_redis(tmp_path) as server:
        yield server


async def answer(request, upstream):
    return web.json_response({"usage": {"prompt_tokens": 10, "completion_tokens": 5}})


def config_of(worker, settings=None, **limits):
    return RouterConfig(
        models=[ModelEntry(name="m", price=PriceEntry(input="1000000", output="1000000"))],
        endpoints=[EndpointEntry(id="a", url=worker.url, models=["m"])],
        tenants=[TenantEntry(id="t", keys=[key_entry("k")], limits=TenantLimitsEntry(**limits))],
        settings=settings,
    )


@pytest.fixture
def two_routers(start_upstream, start_router, redis_server):
    async def start(behaviour=answer, settings=None, redis_timeout_s=PATIENT_S, **limits):
        worker = await start_upstream("a", behaviour)
        config = config_of(worker, settings, **limits)
        routers = [
            await start_router(
                config,
                redis_url=redis_server.url,
                redis_timeout_s=redis_timeout_s,
                admin_port=0,
                admin_token="t" * 16,
            )
            for _ in range(2)
        ]
        for router in routers:
            await router.until_ready(1)
        return routers, worker

    return start


async def ask(router, body=BODY):
    async with router.post(body, headers=bearer("k")) as reply:
        await reply.read()
        return reply.status


async def clients(routers, number, each):
    """Statuses of `number` clients at once, with `each` requests one after another, spread over the routers."""

    async def client(i):
        return [await ask(routers[(i + j) % len(routers)]) for j in range(each)]

    return [status for found in await asyncio.gather(*(client(i) for i in range(number))) for status in found]


async def shown(router):
    headers = {"Authorization": "Bearer " + "t" * 16}
    async with router.session.get(router.app.admin_url + "/admin/tenants", headers=headers) as reply:
        return (await reply.json())["data"][0]


async def until_used(router, name, number):
    async def is_it():
        return (await shown(router))["limits"][name]["used"] == number

    await until_true(is_it)


async def test_fifty_clients_of_two_routers_get_exactly_what_a_minute_allows(two_routers):
    routers, worker = await two_routers(requests_per_minute=10)

    found = await clients(routers, 50, 2)

    assert (found.count(200), found.count(429)) == (10, 90)
    assert worker.num_calls == 10


async def test_a_larger_limit_is_never_exceeded_and_but_for_a_lease_used_up(two_routers):
    routers, _ = await two_routers(requests_per_minute=200)

    found = await clients(routers, 50, 10)

    assert set(found) == {200, 429}
    assert 200 - 20 <= found.count(200) <= 200


def chatting(num_tokens):
    """Streams so many tokens to whoever asks, one an event."""

    async def behave(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(num_tokens):
            await response.write(b'data: {"choices":[{"index":0,"delta":{"content":"w%d "}}]}\n\n' % number)
            for _ in range(20):
                await asyncio.sleep(0)
        await response.write(b"data: [DONE]\n\n")
        return response

    return behave


@pytest.mark.parametrize("lease_percent", [0, 10])
async def test_streams_that_name_no_maximum_end_together_with_a_quota_of_both_routers(lease_percent, two_routers):
    limit = 3000
    settings = RouterSettingsEntry(limits=LimitSettings(default_output_tokens=20, lease_percent=lease_percent))
    routers, _ = await two_routers(chatting(1000), settings, tokens_per_day=limit)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}

    async def stream(router):
        async with router.post(body, "/v1/chat/completions", headers=bearer("k")) as reply:
            return reply.status, await reply.read()

    found = await asyncio.gather(*(stream(routers[i % 2]) for i in range(10)))
    ends = [text.split(b"\n\n")[-3] for _, text in found]
    sent = sum(text.count(b'"content"') for _, text in found)

    async def is_told():
        return (await shown(routers[0]))["limits"]["tokens_day"]["used"] >= 0.9 * limit - 10 * 20

    await until_true(is_told)
    used = (await shown(routers[0]))["limits"]["tokens_day"]["used"]
    assert [status for status, _ in found] == [200] * 10
    assert [b'"code":"insufficient_quota"' in end for end in ends] == [True] * 10
    assert sent <= used <= limit + 10
    assert sent >= 0.8 * limit - 10 * 20


async def test_requests_at_the_same_time_are_counted_over_both_routers(two_routers, until):
    most, now, go = 0, 0, asyncio.Event()

    async def hold(request, upstream):
        nonlocal most, now
        now += 1
        most = max(most, now)
        await go.wait()
        now -= 1
        return await answer(request, upstream)

    routers, _ = await two_routers(hold, max_concurrent_requests=3)

    tasks = [asyncio.create_task(ask(routers[i % 2])) for i in range(50)]
    await until(lambda: sum(task.done() for task in tasks) == 47)
    go.set()
    first = [await task for task in tasks]

    async def all_pass():
        return await clients(routers, 3, 1) == [200] * 3

    await until_true(all_pass)

    assert (first.count(200), first.count(429)) == (3, 47)
    assert most == 3


async def test_tokens_of_a_day_are_never_overspent_by_fifty_clients(two_routers):
    routers, worker = await two_routers(tokens_per_day=1500)

    found = await clients(routers, 50, 6)
    while 200 in (more := await clients(routers, 4, 1)):
        found += more
    await until_used(routers[0], "tokens_day", found.count(200) * USED)

    assert worker.num_calls * USED <= 1500
    assert worker.num_calls * USED >= 1500 - 2 * 150 - 30
    assert found.count(200) == worker.num_calls


async def test_what_a_router_holds_idle_is_soon_free_for_the_other(two_routers):
    routers, _ = await two_routers(tokens_per_day=1000)
    await ask(routers[0])
    await until_used(routers[1], "tokens_day", USED)

    async def all_is_back():
        return (await shown(routers[1]))["limits"]["tokens_day"]["remaining"] == 1000 - USED

    await until_true(all_is_back)

    assert (await shown(routers[1]))["spent"] == "15"


@pytest.mark.parametrize("trouble", ["stop", "freeze", "restart"])
async def test_requests_go_on_while_redis_is_in_trouble_and_counts_are_right_after(trouble, two_routers, redis_server):
    routers, worker = await two_routers(
        tokens_per_day=1_000_000, max_concurrent_requests=100, redis_timeout_s=HURRIED_S
    )
    assert set(await clients(routers, 10, 5)) == {200}
    await until_used(routers[1], "tokens_day", 50 * USED)

    if trouble == "freeze":
        redis_server.freeze()
    else:
        redis_server.stop()
    if trouble == "restart":
        redis_server.start()
    started = time.monotonic()
    during = await clients(routers, 50, 10)
    took_s = time.monotonic() - started
    if trouble == "freeze":
        redis_server.thaw()
    elif trouble == "stop":
        redis_server.start()
    after = await clients(routers, 10, 5)

    assert set(during) | set(after) == {200}
    assert took_s < 30
    for router in routers:
        await until_used(router, "tokens_day", 600 * USED)
    assert worker.num_calls == 600
    assert (await shown(routers[0]))["spent"] == str(600 * USED)


async def test_without_redis_each_router_counts_by_itself(two_routers, redis_server):
    routers, _ = await two_routers(requests_per_minute=10, redis_timeout_s=HURRIED_S)
    redis_server.stop()

    found = await clients(routers, 50, 2)

    assert 10 <= found.count(200) <= 20
    assert set(found) == {200, 429}


async def test_without_redis_tenants_with_limits_are_refused_where_the_release_says_so(two_routers, redis_server):
    settings = RouterSettingsEntry(limits=LimitSettings(without_redis="refuse"))
    routers, _ = await two_routers(settings=settings, requests_per_minute=10, redis_timeout_s=HURRIED_S)
    redis_server.stop()

    async with routers[0].post(BODY, headers=bearer("k")) as reply:
        refusal = reply.status, reply.headers["Retry-After"], (await reply.json())["error"]["code"]
    redis_server.start()

    async def passes():
        return await ask(routers[0]) == 200

    await until_true(passes)
    assert refusal == (503, "1", "limits_unavailable")


async def test_each_request_is_one_record_in_redis_whatever_happened_to_redis(two_routers, redis_server):
    routers, _ = await two_routers(tokens_per_day=1_000_000, redis_timeout_s=HURRIED_S)
    headers = {"Authorization": "Bearer " + "t" * 16}
    await clients(routers, 5, 4)
    redis_server.freeze()
    await clients(routers, 5, 4)
    redis_server.thaw()
    await clients(routers, 5, 4)

    async def usage(query):
        async with routers[0].session.get(routers[0].app.admin_url + "/admin/usage?" + query, headers=headers) as reply:
            return await reply.json() if reply.status == 200 else {"data": []}

    async def all_are_written():
        return len((await usage("limit=1000"))["data"]) >= 60

    await until_true(all_are_written)
    records = (await usage("limit=1000"))["data"]
    sums = (await usage("group_by=tenant,model"))["data"]

    assert len({record["id"] for record in records}) == len(records) == 60
    assert sums == [
        {
            "tenant": "t",
            "model": "m",
            "requests": 60,
            "prompt_tokens": 600,
            "cached_tokens": 0,
            "output_tokens": 300,
            "cost": "900",
        }
    ]
    assert "x" * 40 not in json.dumps(records)


async def test_a_router_that_ends_gives_back_what_it_held_and_writes_down_what_was_used(
    start_upstream, redis_server, tmp_path
):
    worker = await start_upstream("a", answer)
    path = tmp_path / "ending.json"
    write_config(path, config_of(worker, tokens_per_day=1000, max_concurrent_requests=100))
    redis_settings = {"redis_url": redis_server.url, "redis_timeout_s": PATIENT_S}
    settings = RouterSettings(config=path, port=0, shutdown_timeout_s=0.2, **redis_settings)

    async with running(settings, None) as (_, url), aiohttp.ClientSession() as session:
        async with asyncio.timeout(60):
            while True:
                async with session.post(url + "/v1/completions", json=BODY, headers=bearer("k")) as reply:
                    if reply.status == 200:
                        break
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        lines = [v for key in client.keys("quire:limit:*") for f, v in client.hgetall(key).items() if f[:2] == "r:"]
        records = client.xlen("quire:{usage}:records")

    assert {line.split(":")[0] for line in lines} == {"0"}
    assert records >= 1
