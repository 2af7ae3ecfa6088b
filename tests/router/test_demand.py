"""What a router tells whoever scales its services: numbers when asked, and the beginning of a queue at once."""

import asyncio

import msgspec
import pytest
from aiohttp import web

from quire_contract.demand_report import DemandReport, ServiceDemand, WorkerDemand, decode_demand, encode_demand
from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from quire_contract.wire import WireError
from quire_router.demand import kv_used_tokens
from quire_router.latency import RATIO

POLL_S = 0.005
BODY = {"model": "m", "prompt": "hello"}
DEMAND = ServiceDemand(
    held=1,
    held_oldest_s=0.5,
    held_without_worker=1,
    queued=2,
    running=3,
    unreported=4,
    arrivals=5,
    arrivals_per_s=0.1,
    endpoints=2,
    ready_endpoints=1,
)
REPORT = DemandReport(router="r", boot="b", sequence=1, edge=2, ts=3.0, services={"ns/svc": DEMAND})


def config_of(*upstreams):
    return RouterConfig(
        models=[ModelEntry(name="m", service="ns/svc"), ModelEntry(name="n", service="ns/other")],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=["m"], service="ns/svc") for u in upstreams],
        settings=RouterSettingsEntry(admission=AdmissionSettings(in_flight_per_worker=2)),
    )


@pytest.fixture
def trust():
    return Trust.generate()


@pytest.fixture
def start(start_router, trust):
    async def started(*upstreams):
        return await start_router(config_of(*upstreams), trust)

    return started


async def demand(router, trust, **query):
    async with router.get("/internal/demand", params=query, headers={"x-quire-token": trust.token}) as answer:
        assert answer.status == 200, await answer.text()
        return decode_demand(await answer.read())


async def ask(router, model="m"):
    async with router.post({**BODY, "model": model}) as answer:
        return answer.status


def asking(router, number, model="m"):
    return [asyncio.create_task(ask(router, model)) for _ in range(number)]


def room_of(router):
    return router.app._pool.on_change.__self__


def test_a_report_survives_the_wire_and_nothing_else_passes_for_one():
    assert decode_demand(encode_demand(REPORT)) == REPORT
    for body in (b"", b"[]", b"\xff", b'{"router": 7}'):
        with pytest.raises(WireError):
            decode_demand(body)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("held", "-5"),
        ("held", "1" + "0" * 400),
        ("max_num_seqs", "1" + "0" * 30),
        ("reporting", "-1"),
        ("arrivals_per_s", "1e308"),
        ("ttft_p95_s", "-1.0"),
        ("held_oldest_s", "NaN"),
    ],
)
def test_numbers_that_nobody_can_reckon_with_pass_for_no_report(field, value):
    whole = {**msgspec.to_builtins(DEMAND), field: msgspec.Raw(value.encode())}
    body = msgspec.json.encode({**msgspec.to_builtins(REPORT), "services": {"ns/svc": whole}})

    with pytest.raises(WireError, match="demand report"):
        decode_demand(body)


def test_a_worker_with_more_free_blocks_than_blocks_uses_none():
    report = LoadReport(
        pod="p", model="m", epoch="e", ts=0, kv_seq=0, running=0, waiting=0, free_blocks=9, total_blocks=4,
        uncached_tokens=0,
    )  # fmt: skip

    assert kv_used_tokens(report) == 0


async def test_only_the_releases_own_parts_are_told(start, trust):
    router = await start()

    async with router.get("/internal/demand") as nobody:
        statuses = [nobody.status]
    for query in ({"since": "x"}, {"wait": "-1"}, {"wait": "nan"}):
        async with router.get("/internal/demand", params=query, headers={"x-quire-token": trust.token}) as answer:
            statuses.append(answer.status)

    assert statuses == [401, 400, 400, 400]


async def test_held_requests_are_told_with_the_age_of_the_oldest(start, start_upstream, trust, until):
    worker = await start_upstream("a")
    worker.ready_status = 503
    router = await start(worker)
    empty = await demand(router, trust)
    tasks = asking(router, 3)
    await until(lambda: len(room_of(router).waiters()) == 3)

    held = await demand(router, trust)
    worker.ready_status = 200
    statuses = await asyncio.gather(*tasks)
    after = await demand(router, trust)

    service = held.services["ns/svc"]
    assert (service.held, service.held_without_worker, service.arrivals, service.endpoints) == (3, 3, 3, 1)
    assert 0 < service.held_oldest_s < 10
    assert service.arrivals_per_s > 0
    assert (empty.services["ns/svc"].held, held.services["ns/other"].held) == (0, 0)
    assert (after.services["ns/svc"].held, after.services["ns/svc"].ready_endpoints) == (0, 1)
    assert empty.sequence < held.sequence < after.sequence
    assert empty.boot == held.boot
    assert statuses == [200] * 3


async def test_what_workers_report_is_told_apart_from_what_they_cannot_know_yet(start, start_upstream, trust, until):
    arrived, go = asyncio.Semaphore(0), asyncio.Event()

    async def wait(request, upstream):
        arrived.release()
        await go.wait()
        return await answer(request, upstream)

    workers = [await start_upstream(name) for name in "ab"]
    answer = workers[0].behaviour
    for worker in workers:
        worker.behaviour = wait
    router = await start(*workers)
    await router.until_ready(2)
    values = {"running": 7, "waiting": 2, "free_blocks": 9, "total_blocks": 9, "uncached_tokens": 0}
    report = LoadReport(pod="a", model="m", epoch="e", ts=0.0, kv_seq=0, **values)
    router.app._pool.get("a").take_report(report, room_of(router)._clock())

    tasks = asking(router, 3)
    for _ in range(3):
        await arrived.acquire()
    told = (await demand(router, trust)).services["ns/svc"]
    go.set()
    await asyncio.gather(*tasks)

    assert (told.running, told.queued, told.unreported, told.held) == (7, 2, 3, 0)


async def test_who_asks_for_the_next_edge_hears_of_the_first_held_request_at_once(start, trust, until):
    router = await start()
    known = await demand(router, trust)

    waiting = asyncio.create_task(demand(router, trust, since=known.edge, wait=30))
    await until(lambda: len(room_of(router).on_held.__self__._asking) == 1)
    tasks = asking(router, 1)
    told = await asyncio.wait_for(waiting, 25)
    missed = await asyncio.wait_for(demand(router, trust, since=known.edge, wait=30), 25)
    for task in tasks:
        task.cancel()

    assert told.edge == missed.edge == known.edge + 1
    assert told.services["ns/svc"].held == 1


async def test_a_question_without_an_edge_is_answered_when_its_time_is_over(start, trust):
    router = await start()
    known = await demand(router, trust)

    told = await demand(router, trust, since=known.edge, wait=0.05)

    assert (told.edge, told.sequence) == (known.edge, known.sequence + 1)


async def test_edges_of_one_service_that_follow_closely_are_told_as_one_later(start, trust, until):
    router = await start()
    known = await demand(router, trust)

    (task,) = asking(router, 1)
    await until(lambda: len(room_of(router).waiters()) == 1)
    at_once = await demand(router, trust)
    (line,) = (line for line in room_of(router).lines if line.queue)
    feed = room_of(router).on_held.__self__
    feed._edge_s[line.service] = feed._clock()  # however long ago that was by now
    for _ in range(3):
        feed.note_held(line)
    soon = feed._report()
    later = await asyncio.wait_for(demand(router, trust, since=soon.edge, wait=30), 25)
    task.cancel()

    assert [report.edge - known.edge for report in (at_once, soon, later)] == [1, 1, 2]


async def test_a_router_that_ends_keeps_nobody_waiting(start, trust, until):
    router = await start()
    known = await demand(router, trust)
    feed = room_of(router).on_held.__self__

    waiting = asyncio.create_task(demand(router, trust, since=known.edge, wait=30))
    await until(lambda: len(feed._asking) == 1)
    feed.close()
    told = await asyncio.wait_for(waiting, 25)

    assert told.edge == known.edge


def report_of(pod, **values):
    usual = {"running": 0, "waiting": 0, "free_blocks": 9, "total_blocks": 9, "uncached_tokens": 0}
    return LoadReport(pod=pod, model="m", epoch="e", ts=0.0, kv_seq=0, **usual | values)


async def test_kv_capacity_and_each_worker_are_told_of_those_that_report(start, start_upstream, trust):
    workers = [await start_upstream(name) for name in "abc"]
    router = await start(*workers)
    await router.until_ready(3)
    now_s = room_of(router)._clock()
    pool = router.app._pool
    pool.get("a").take_report(report_of("a", running=3, free_blocks=6, total_blocks=10, max_num_seqs=8), now_s)
    pool.get("b").take_report(report_of("b", waiting=1, draining=True, total_blocks=20, max_num_seqs=16), now_s)
    pool.get("c").take_report(report_of("c", running=50, max_num_seqs=99), now_s - 60)

    told = (await demand(router, trust)).services["ns/svc"]

    assert (told.kv_used_tokens, told.kv_total_tokens, told.max_num_seqs, told.reporting) == (15 * 16, 30 * 16, 24, 2)
    assert told.workers == {
        "a": WorkerDemand(in_flight=3, kv_used_tokens=4 * 16),
        "b": WorkerDemand(in_flight=1, kv_used_tokens=11 * 16, draining=True, ready=False),
        "c": WorkerDemand(in_flight=0),
    }


async def test_latencies_of_the_last_minute_are_told_once_there_are_any(start, start_upstream, trust):
    go = asyncio.Event()

    async def two_events(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await go.wait()
        await response.write(b"data: [DONE]\n\n")
        return response

    worker = await start_upstream("a", two_events)
    router = await start(worker)
    await router.until_ready(1)
    before = (await demand(router, trust)).services["ns/svc"]

    async with router.post({**BODY, "stream": True}) as answer:
        await answer.content.readuntil(b"\n\n")
        await asyncio.sleep(POLL_S)
        go.set()
        await answer.read()
    told = (await demand(router, trust)).services

    assert (before.queue_wait_p95_s, before.ttft_p95_s, before.inter_token_p95_s) == (None, None, None)
    assert told["ns/svc"].queue_wait_p95_s == 0.0
    assert 0 <= told["ns/svc"].ttft_p95_s < 10
    assert POLL_S / RATIO <= told["ns/svc"].inter_token_p95_s < 10
    assert (told["ns/other"].queue_wait_p95_s, told["ns/other"].ttft_p95_s) == (None, None)


async def test_a_wait_for_a_worker_is_part_of_both_latencies(start, start_upstream, trust, until):
    worker = await start_upstream("a")
    worker.ready_status = 503
    router = await start(worker)
    task = asyncio.create_task(ask_stream(router))
    await until(lambda: len(room_of(router).waiters()) == 1)
    room_of(router).waiters()[0].joined_s -= 30

    worker.ready_status = 200
    status = await task
    told = (await demand(router, trust)).services["ns/svc"]

    assert status == 200
    assert 30 / RATIO <= told.queue_wait_p95_s <= 40 * RATIO


async def ask_stream(router):
    async with router.post({**BODY, "stream": True}) as answer:
        await answer.read()
        return answer.status


async def test_metrics_tell_what_is_this_routers_own_apart_from_what_workers_told_everybody(
    start, start_upstream, trust, until
):
    worker = await start_upstream("a")
    router = await start(worker)
    await router.until_ready(1)
    report = report_of("a", running=4, waiting=2)
    tasks = asking(router, 3, model="n")
    await until(lambda: len(room_of(router).waiters()) == 3)
    router.app._pool.get("a").take_report(report, room_of(router)._clock())

    text = router.app._metrics.render().decode()
    for task in tasks:
        task.cancel()

    assert 'quire_router_demand_own_requests{service="ns/svc"} 0.0' in text
    assert 'quire_router_demand_worker_requests{service="ns/svc"} 6.0' in text
    assert 'quire_router_demand_own_requests{service="ns/other"} 3.0' in text
    assert 'quire_router_demand_worker_requests{service="ns/other"} 0.0' in text
