"""Requests for models without a worker: what they may take of the router, who is told, and how the first worker gets them."""

import asyncio
import json
from collections import Counter

import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDict

from quire_contract.demand_report import decode_demand
from quire_contract.load_report import LOST_AFTER_S, LoadReport
from quire_contract.openai.errors import ApiError
from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouteEntry,
    RouterConfig,
    RouteTargetEntry,
    decode_config,
    encode_config,
    write_config,
)
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from quire_router.call import Call, Outcome, Tenant
from quire_router.endpoints import Endpoint, Reservation
from quire_router.revision_stats import RevisionCounts
from quire_router.room import room_at
from tests.router.tenant_help import key_entry, tenant

BODY = {"model": "m", "prompt": "hello"}
LARGE = {"model": "m", "prompt": "x" * 400_000}
RULES = AdmissionSettings(in_flight_per_worker=20)
IDLE = {"running": 0, "waiting": 0, "free_blocks": 100, "total_blocks": 100, "uncached_tokens": 0, "max_num_seqs": 8}


def entry_of(tenant_id):
    return tenant(tenant_id, key_entry(tenant_id, "k"))


def config_of(*upstreams, tenants=(), **admission):
    """Two services: "m" with the workers, "n" without any."""
    return RouterConfig(
        models=[ModelEntry(name="m", service="ns/m"), ModelEntry(name="n", service="ns/n")],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=["m"], service="ns/m") for u in upstreams],
        tenants=[entry_of(tenant_id) for tenant_id in tenants],
        settings=RouterSettingsEntry(admission=AdmissionSettings(**admission)),
    )


def room_of(router):
    return router.app._pool.on_change.__self__


def num_waiting(router):
    return len(room_of(router).waiters())


async def ask(router, body=BODY):
    async with router.post(body) as answer:
        return answer.status, await answer.read(), answer.headers


def asking(router, number, body=BODY):
    return [asyncio.create_task(ask(router, body)) for _ in range(number)]


async def end(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def call_of(tenant, number, prompt="hello"):
    entry = None if tenant is None else Tenant(entry=entry_of(tenant), key_id="k")
    return Call(
        request_id=f"{tenant}-{number}",
        model="m",
        targets=("m",),
        path="/v1/completions",
        body=msgspec.json.encode({**BODY, "prompt": prompt, "number": number}),
        is_stream=False,
        headers=CIMultiDict(),
        tenant=entry,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
    )


async def answered(router, call):
    """The status of a call that is given to the router's layers, as the outer ones would."""
    try:
        answer = await router.app._routes["/v1/completions"][1].__self__._source(call, Outcome())
    except ApiError as error:
        return error.status, error.message
    await answer.close()
    return answer.status, ""


async def test_one_service_without_a_worker_leaves_the_others_half_of_the_memory(start_router, until):
    router = await start_router(config_of(max_queued_mib=2))
    held = asking(router, 2, LARGE)
    await until(lambda: num_waiting(router) == 2)

    refused = [await ask(router, LARGE) for _ in range(2)]
    others = asking(router, 2, {**LARGE, "model": "n"})
    await until(lambda: num_waiting(router) == 4)
    await end([*held, *others])
    await until(lambda: num_waiting(router) == 0)

    assert [(status, headers["x-quire-reason"]) for status, _, headers in refused] == [(429, "queue_full")] * 2
    assert room_of(router).holding.size_bytes == 0


async def test_one_tenant_of_several_waits_with_half_of_the_places_and_who_has_none_with_all(start_router, until):
    router = await start_router(config_of(tenants=["ns/a", "ns/b"], max_queued_requests=6))
    greedy = [asyncio.create_task(answered(router, call_of("ns/a", number))) for number in range(5)]
    await until(lambda: sum(task.done() for task in greedy) == 2)

    modest = [asyncio.create_task(answered(router, call_of("ns/b", number))) for number in range(1)]
    await until(lambda: num_waiting(router) == 4)
    refused = [task.result() for task in greedy if task.done()]
    await end([*greedy, *modest])
    anonymous = [asyncio.create_task(answered(router, call_of(None, number))) for number in range(6)]
    await until(lambda: num_waiting(router) == 6)
    await end(anonymous)

    words = "As many requests of this tenant wait as may, or hold as much memory; this one is for the model `m`."
    assert refused == [(429, words)] * 2
    assert room_of(router).holding._of_tenant == room_of(router).holding._of_line == {}


async def test_one_tenants_large_bodies_leave_the_other_half_of_the_memory(start_router, until):
    router = await start_router(config_of(tenants=["ns/a", "ns/b"], max_queued_mib=1, max_queued_service_percent=100))
    tasks = [asyncio.create_task(answered(router, call_of("ns/a", n, "x" * 300_000))) for n in range(2)]
    await until(tasks[1].done)

    tasks.append(asyncio.create_task(answered(router, call_of("ns/b", 0, "x" * 300_000))))
    await until(lambda: num_waiting(router) == 2)
    refused = tasks[1].result()
    await end(tasks)

    assert refused[0] == 429


@pytest.mark.parametrize("percent", [101, 1000])
def test_a_share_above_all_is_refused_by_name(percent):
    data = RouterConfig(models=[], endpoints=[])

    for field in ("max_queued_service_percent", "max_queued_tenant_percent"):
        settings = RouterSettingsEntry(admission=AdmissionSettings(**{field: percent}))
        config = msgspec.structs.replace(data, settings=settings)
        with pytest.raises(ValueError, match=f"admission.{field}: is {percent}; it must be at most 100"):
            decode(config)


def decode(config):
    return decode_config(encode_config(config))


def endpoint(events="tcp://127.0.0.1:5557"):
    return Endpoint(EndpointEntry(id="a", url="http://a:1", models=["m"], events=events), RevisionCounts())


def test_a_worker_that_will_report_gets_a_few_requests_until_it_has():
    silent, speaking = endpoint(events=None), endpoint()
    for worker in (silent, speaking):
        worker.mark_ready(100.0)

    before = [room_at(worker, RULES, 100.1).requests for worker in (silent, speaking)]
    with Reservation(speaking, 1, 100.1):
        one_less = room_at(speaking, RULES, 100.2).requests
    never_reports = room_at(speaking, RULES, 100.0 + LOST_AFTER_S).requests
    speaking.take_report(LoadReport(pod="a", model="m", epoch="e", ts=0.0, kv_seq=0, **IDLE), 100.3)
    after = room_at(speaking, RULES, 100.4).requests

    assert before == [20, 4]
    assert (one_less, never_reports, after) == (3, 20, 8 + 5)


def test_a_new_life_of_a_worker_gets_a_few_requests_again_and_a_moment_away_does_not_count():
    worker = endpoint()
    worker.mark_ready(100.0)
    worker.mark_ready(105.0)

    known = room_at(worker, RULES, 105.1).requests
    worker.restarted()
    worker.mark_ready(200.0)
    reborn = room_at(worker, RULES, 200.1).requests

    assert (known, reborn) == (20, 4)


async def test_what_was_held_starts_in_fair_order_and_never_beyond_what_the_first_worker_takes(
    start_upstream, start_router, until
):
    here, order, most = asyncio.Semaphore(0), [], 0

    async def one_by_one(request, upstream):
        nonlocal most
        order.append(json.loads(upstream.bodies[-1])["number"] // 100)
        most = max(most, len(order) - answered_so_far())
        await here.acquire()
        done.append(1)
        return web.json_response({})

    def answered_so_far():
        return len(done)

    done: list[int] = []
    worker = await start_upstream("a", one_by_one)
    worker.ready_status = 503
    router = await start_router(config_of(worker, tenants=["ns/a", "ns/b"], in_flight_per_worker=3))
    first = [asyncio.create_task(answered(router, call_of("ns/a", 100 + n))) for n in range(12)]
    await until(lambda: num_waiting(router) == 12)
    second = [asyncio.create_task(answered(router, call_of("ns/b", 200 + n))) for n in range(4)]
    await until(lambda: num_waiting(router) == 16)

    worker.ready_status = 200
    await until(lambda: len(order) == 3)
    for _ in range(16):
        here.release()
    statuses = Counter(status for status, _ in await asyncio.gather(*first, *second))

    assert (statuses, most) == ({200: 16}, 3)
    assert Counter(order[:8]) == {1: 4, 2: 4}


@pytest.fixture
def trust():
    return Trust.generate()


async def demand(router, trust, **query):
    async with router.get("/internal/demand", params=query, headers={"x-quire-token": trust.token}) as answer:
        return decode_demand(await answer.read())


async def test_a_burst_to_a_model_at_zero_wakes_it_once(start_router, trust, until):
    router = await start_router(config_of(), trust)
    known = await demand(router, trust)

    waiting = asyncio.create_task(demand(router, trust, since=known.edge, wait=30))
    tasks = asking(router, 50)
    told = await asyncio.wait_for(waiting, 60)
    await until(lambda: num_waiting(router) == 50)
    later = await demand(router, trust)
    await end(tasks)

    assert told.edge == later.edge == known.edge + 1
    assert later.services["ns/m"].held == 50


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_model_at_zero_is_woken_although_its_fallback_serves(
    stream, start_upstream, start_router, trust, until
):
    go = asyncio.Event()

    async def wait(request, upstream):
        if not stream:
            await go.wait()
            return web.json_response({})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    worker = await start_upstream("a", wait)
    config = config_of(worker)
    route = RouteEntry(model="r", targets=[RouteTargetEntry(model="n")], fallbacks=["m"])
    router = await start_router(msgspec.structs.replace(config, routes=[route]), trust)
    await router.until_ready(1)
    known = await demand(router, trust)

    waiting = asyncio.create_task(demand(router, trust, since=known.edge, wait=30))
    tasks = asking(router, 2, {**BODY, "model": "r", "stream": stream})
    told = await asyncio.wait_for(waiting, 60)
    await until(lambda: worker.num_calls == 2)
    during = (await demand(router, trust)).services
    go.set()
    statuses = [status for status, _, _ in await asyncio.gather(*tasks)]
    after = (await demand(router, trust)).services

    assert told.services["ns/n"].held >= 1
    assert (during["ns/n"].held, during["ns/n"].held_without_worker, during["ns/m"].unreported) == (2, 2, 2)
    assert statuses == [200, 200]
    assert (after["ns/n"].held, after["ns/m"].held) == (0, 0)


async def test_a_declared_model_is_listed_and_held_at_zero_and_after_its_last_worker_went(
    start_upstream, start_router, until
):
    worker = await start_upstream("a")
    router = await start_router(config_of(worker, no_endpoint_timeout_s=0.3))
    await router.until_ready(1)

    write_config(router.config_path, config_of(no_endpoint_timeout_s=0.3))
    await until(lambda: not list(router.app._pool))
    async with router.get("/v1/models") as answer:
        listed = [model["id"] for model in (await answer.json())["data"]]
    status, body, headers = await ask(router)

    assert listed == ["m", "n"]
    assert (status, headers["Retry-After"], headers["x-quire-reason"]) == (503, "10", "no_endpoint")
    assert "has no ready worker" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize(
    ("path", "wrong", "told"),
    [
        ("/v1/completions", {"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "temperature": "hot"}, "temperature"),
        ("/v1/completions", {"prompt": "x" * 70_000, "top_p": 7}, "top_p"),
    ],
)
async def test_what_no_worker_would_accept_is_refused_at_once_and_wakes_nobody(start_router, path, wrong, told):
    router = await start_router(config_of(no_endpoint_timeout_s=600.0))

    async with router.post({"model": "n", **wrong}, path=path) as answer:
        status, error = answer.status, (await answer.json())["error"]

    assert (status, error["type"], error["param"]) == (400, "invalid_request_error", told)
    assert num_waiting(router) == 0
