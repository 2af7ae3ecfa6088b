"""Answers that are kept and generations that are shared, with real routers, workers and a real Redis."""

import asyncio
import json
import time

import pytest
import redis
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry
from redis_server import running_redis

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import RouterSettingsEntry, SavingSettings
from quire_contract.router_tenants import TenantEntry
from quire_router.answer import Answer
from quire_router.call import Call, Outcome, Tenant
from quire_router.clocks import Clocks
from quire_router.endpoint_pool import EndpointPool
from quire_router.live_config import LiveConfig
from quire_router.model_versions import ModelVersions
from quire_router.revision_stats import RevisionStats
from quire_router.saving import SavingLayer
from quire_router.saving_metrics import SavingMetrics

BODY = {"model": "m", "prompt": "hello", "temperature": 0}
STREAM = {**BODY, "stream": True}
CACHE, COALESCE = SavingSettings(response_cache=True), SavingSettings(coalesce=True)
EVENT_STREAM = {"Content-Type": "text/event-stream"}


def config_of(worker, saving, revision="r1"):
    return RouterConfig(
        models=[ModelEntry(name="m", service="ns/m")],
        endpoints=[EndpointEntry(id=worker.id, url=worker.url, models=["m"], service="ns/m", revision=revision)],
        settings=RouterSettingsEntry(saving=saving),
    )


def saving_of(router):
    """The layer."""
    handler = router.app._routes["/v1/completions"][1].__self__
    return handler._source.__self__._parts.saving.saving


def running_of(router):
    return list(saving_of(router)._running.values())


def num_readers(router):
    return sum(len(running.generation._readers) for running in running_of(router))


@pytest.fixture
def serve(start_upstream, start_router):
    async def start(behaviour, saving, **settings):
        worker = await start_upstream("a", behaviour)
        router = await start_router(config_of(worker, saving), **settings)
        await router.until_ready(1)
        return worker, router

    return start


def whole(reason="stop"):
    async def behave(request, upstream):
        answer = {"id": upstream.num_calls, "choices": [{"index": 0, "text": "hi", "finish_reason": reason}]}
        return web.json_response(answer, headers={"x-vendor": "v"})

    return behave


def event(data):
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def events_of(number, reason="stop", end=True):
    pieces = [event({"choices": [{"index": 0, "text": f"w{i}"}]}) for i in range(number)]
    last = event({"choices": [{"index": 0, "text": "", "finish_reason": reason}]})
    return [*pieces, last, *([event(b"[DONE]")] if end else [])]


def streaming(parts, gate=None, after=1, then=None):
    """Writes `after` parts, waits for the gate, writes the rest; then ends well or does `then`."""

    async def behave(request, upstream):
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        for number, part in enumerate(parts):
            if gate is not None and number == after:
                await gate.wait()
            await response.write(part)
        if then is not None:
            then(request)
        return response

    return behave


async def ask(router, body, **headers):
    async with router.post(body, headers=headers) as answer:
        return answer.status, answer.headers, await answer.read()


def marks(answers):
    return [headers.get("x-quire-cache") for _, headers, _ in answers]


# Answers that are kept


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["whole", "stream"])
async def test_the_second_answer_is_the_first_ones_bytes_under_its_own_request_id(serve, body):
    worker, router = await serve(streaming(events_of(3)) if "stream" in body else whole(), CACHE)
    began_s = time.time()

    first = await ask(router, body, **{"x-request-id": "one"})
    turned = dict(reversed(list(body.items())))
    second = await ask(router, {**turned, "user": "u"}, **{"x-request-id": "two"})

    assert marks([first, second]) == ["miss", "hit"]
    assert first[2] == second[2]
    assert (second[1]["x-request-id"], worker.num_calls) == ("two", 1)
    assert 0 <= int(second[1]["Age"]) <= time.time() - began_s
    assert second[1]["Content-Type"] == first[1]["Content-Type"]
    assert "x-quire-worker" not in second[1]


async def test_streams_and_whole_answers_are_kept_apart(serve):
    worker, router = await serve(streaming(events_of(3)), CACHE)

    answers = [await ask(router, body) for body in (STREAM, BODY)]

    assert marks(answers) == ["miss", "miss"]
    assert worker.num_calls == 2


async def test_nothing_is_kept_and_nothing_said_unless_it_is_turned_on(serve):
    worker, router = await serve(whole(), SavingSettings())

    answers = [await ask(router, BODY) for _ in range(2)]

    assert marks(answers) == [None, None]
    assert worker.num_calls == 2


async def test_what_is_drawn_anew_each_time_goes_by(serve):
    worker, router = await serve(whole(), CACHE)

    answers = [await ask(router, {**BODY, "temperature": 1}) for _ in range(2)]

    assert marks(answers) == ["bypass", "bypass"]
    assert worker.num_calls == 2


async def test_one_keys_answer_is_not_anothers(serve):
    worker, router = await serve(whole(), CACHE)

    answers = [await ask(router, BODY, Authorization=f"Bearer {key}") for key in ("a", "b", "a")]

    assert marks(answers) == ["miss", "miss", "hit"]
    assert worker.num_calls == 2


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("no-store", "", ["bypass", "miss"]),
        ("", "no-store", ["miss", "bypass"]),
        ("", "no-cache", ["miss", "miss"]),
        ("no-cache", "", ["miss", "hit"]),
        ("", "max-age=100", ["miss", "hit"]),
        ("", "only-if-cached", ["miss", "hit"]),
    ],
)
async def test_cache_control_is_obeyed(serve, first, second, expected):
    _, router = await serve(whole(), CACHE)

    answers = [await ask(router, BODY, **({"Cache-Control": wish} if wish else {})) for wish in (first, second)]

    assert marks(answers) == expected


@pytest.mark.parametrize("body", [BODY, {**BODY, "temperature": 1}])
async def test_only_if_cached_without_an_answer_is_a_504_that_no_worker_sees(serve, body):
    worker, router = await serve(whole(), CACHE)

    status, _, text = await ask(router, body, **{"Cache-Control": "only-if-cached"})

    assert (status, json.loads(text)["error"]["code"]) == (504, "not_cached")
    assert worker.num_calls == 0


@pytest.mark.parametrize(
    ("body", "behaviour"),
    [
        (BODY, whole("content_filter")),
        (BODY, whole(None)),
        (STREAM, streaming(events_of(2, end=False))),
        (STREAM, streaming([*events_of(2, end=False), event({"error": {"message": "x"}}), event(b"[DONE]")])),
        (STREAM, streaming(events_of(2, end=False), then=lambda request: request.transport.abort())),
    ],
    ids=["filtered", "unfinished", "no end", "error", "died"],
)
async def test_what_did_not_end_well_is_not_kept(serve, body, behaviour):
    worker, router = await serve(behaviour, CACHE)

    answers = [await ask(router, body) for _ in range(2)]

    assert marks(answers) == ["miss", "miss"]
    assert worker.num_calls == 2


async def test_what_is_too_long_is_not_kept(serve):
    long = SavingSettings(response_cache=True, max_response_kib=1)
    worker, router = await serve(streaming(events_of(100)), long)

    answers = [await ask(router, STREAM) for _ in range(2)]

    assert marks(answers) == ["miss", "miss"]
    assert worker.num_calls == 2
    assert answers[1][2] == b"".join(events_of(100))


async def test_an_answer_that_its_worker_does_not_want_kept_is_not(serve):
    async def behave(request, upstream):
        return web.json_response({"choices": [{"finish_reason": "stop"}]}, headers={"Cache-Control": "no-store"})

    _, router = await serve(behave, CACHE)

    answers = [await ask(router, BODY) for _ in range(2)]

    assert marks(answers) == ["miss", "miss"]


async def test_an_answer_dies_with_its_models_revision_and_with_its_time(serve, until):
    worker, router = await serve(whole(), CACHE)
    first = await ask(router, BODY)

    write_config(router.config_path, config_of(worker, CACHE, revision="r2"))
    await until(lambda: router.app._pool.get("a").entry.revision == "r2")
    second = [await ask(router, BODY) for _ in range(2)]
    expired = SavingSettings(response_cache=True, response_ttl_s=0.0)
    write_config(router.config_path, config_of(worker, expired, revision="r2"))
    await until(lambda: saving_of(router)._live.settings.saving.response_ttl_s == 0)
    third = await ask(router, BODY)

    assert marks([first, *second, third]) == ["miss", "miss", "hit", "miss"]


# Generations that are shared


@pytest.mark.parametrize(
    "saving", [COALESCE, SavingSettings(coalesce=True, response_cache=True)], ids=["alone", "kept"]
)
async def test_equal_requests_in_flight_are_computed_once_and_latecomers_get_all(serve, until, saving):
    gate, parts = asyncio.Event(), events_of(20)
    worker, router = await serve(streaming(parts, gate, after=5), saving)

    async def early():
        async with router.post(STREAM, headers={"x-request-id": "early"}) as answer:
            begun.set()
            return answer.status, answer.headers, await answer.read()

    begun = asyncio.Event()
    first = asyncio.create_task(early())
    await begun.wait()
    others = [asyncio.create_task(ask(router, STREAM, **{"x-request-id": f"late-{i}"})) for i in range(10)]
    await until(lambda: num_readers(router) == 11)
    gate.set()
    answers = [await first, *[await task for task in others]]

    assert {body for _, _, body in answers} == {b"".join(parts)}
    assert marks(answers) == ["miss"] + ["shared"] * 10
    assert [headers["x-request-id"] for _, headers, _ in answers[:2]] == ["early", "late-0"]
    assert (worker.num_calls, len(running_of(router))) == (1, 0)


async def test_who_began_it_may_leave_and_the_rest_get_all(serve, until):
    gate, parts = asyncio.Event(), events_of(20)
    worker, router = await serve(streaming(parts, gate, after=5), COALESCE)
    first = await router.post(STREAM)
    second = asyncio.create_task(ask(router, STREAM))
    await until(lambda: num_readers(router) == 2)

    first.close()
    await until(lambda: num_readers(router) == 1)
    gate.set()

    assert (await second)[2] == b"".join(parts)
    assert (worker.num_calls, worker.num_abandoned) == (1, 0)


async def test_when_all_leave_the_worker_is_left(serve, until):
    worker, router = await serve(streaming(events_of(20), asyncio.Event(), after=5), COALESCE)
    clients = [await router.post(STREAM) for _ in range(3)]

    for client in clients:
        client.close()

    await asyncio.wait_for(worker.abandoned.wait(), 60)
    await until(lambda: router.app._pool.get("a").num_in_flight == 0)
    assert (worker.num_calls, len(running_of(router)), saving_of(router)._shared.num_bytes) == (1, 0, 0)


async def test_a_client_that_reads_nothing_does_not_hold_up_the_others(serve, until):
    long = [event({"choices": [{"index": 0, "text": "x" * 60_000}]})] * 150
    parts, gate = [*long, *events_of(1)], asyncio.Event()
    worker, router = await serve(streaming(parts, gate, after=1), COALESCE)
    host, port = router.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    data = json.dumps(STREAM).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    await reader.readline()
    fast = [asyncio.create_task(ask(router, STREAM)) for _ in range(5)]
    await until(lambda: num_readers(router) == 6)

    gate.set()
    answers = [await task for task in fast]
    writer.transport.abort()
    await until(lambda: saving_of(router)._shared.num_bytes == 0)

    assert {body for _, _, body in answers} == {b"".join(parts)}
    assert worker.num_calls == 1


async def test_abrupt_disconnects_leave_nothing_behind(serve, until):
    worker, router = await serve(streaming(events_of(400), asyncio.Event(), after=300), COALESCE)

    for _ in range(10):
        clients = await asyncio.gather(*(router.post(STREAM) for _ in range(50)))
        for client in clients:
            client.close()

    await until(lambda: router.app._pool.get("a").num_in_flight == 0)
    await until(lambda: worker.num_abandoned == worker.num_calls)
    assert (running_of(router), saving_of(router)._shared.num_bytes) == ([], 0)


@pytest.mark.parametrize(
    "headers", [{"x-quire-coalesce": "off"}, {"Cache-Control": "no-store"}, {"Cache-Control": "no-cache"}]
)
async def test_a_client_may_have_a_generation_of_its_own(serve, until, headers):
    gate = asyncio.Event()
    worker, router = await serve(streaming(events_of(3), gate), COALESCE)

    asked = [asyncio.create_task(ask(router, STREAM)), asyncio.create_task(ask(router, STREAM, **headers))]
    await until(lambda: worker.num_calls == 2)
    gate.set()
    answers = [await task for task in asked]

    assert "shared" not in marks(answers)


async def test_a_failure_before_the_first_byte_is_everybodys(serve, until):
    gate = asyncio.Event()

    async def behave(request, upstream):
        await gate.wait()
        return web.json_response({"error": {"message": "bad"}}, status=400)

    worker, router = await serve(behave, COALESCE)
    asked = [asyncio.create_task(ask(router, BODY)) for _ in range(3)]
    await until(lambda: num_readers(router) == 3)

    gate.set()
    answers = [await task for task in asked]

    assert [status for status, _, _ in answers] == [400] * 3
    assert worker.num_calls == 1


async def test_a_stream_that_breaks_ends_with_an_error_for_all(serve, until):
    gate = asyncio.Event()
    dies = streaming(events_of(6)[:6], gate, after=3, then=lambda request: request.transport.abort())
    worker, router = await serve(dies, COALESCE)
    asked = [asyncio.create_task(ask(router, STREAM)) for _ in range(3)]
    await until(lambda: num_readers(router) == 3)

    gate.set()
    answers = [await task for task in asked]

    assert all(b"stream_broken" in body for _, _, body in answers)
    assert worker.num_calls == 1


async def test_what_became_of_calls_is_counted(serve):
    _, router = await serve(whole(), CACHE)
    for body in (BODY, BODY, BODY, {**BODY, "temperature": 1}):
        await ask(router, body)

    async with router.get("/metrics") as answer:
        text = await answer.text()

    for result, number in {"hit": 2, "miss": 1, "bypass": 1, "shared": 0}.items():
        assert f'quire_router_response_cache_total{{result="{result}"}} {number}.0' in text
    assert "quire_router_response_cache_bytes 1" in text


# Several routers


async def test_an_answer_of_one_router_is_known_to_the_other(serve, start_router, until, tmp_path):
    with running_redis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        worker, one = await serve(streaming(events_of(3)), CACHE, redis_url=server.url)
        two = await start_router(config_of(worker, CACHE), redis_url=server.url)
        await two.until_ready(1)

        for seed in range(100):  # a busy machine may make Redis too late for one request, which is a miss then
            body = {**STREAM, "seed": seed}
            first = await ask(one, body)
            await until(lambda expected=seed + 1: client.zcard("quire:{answers}:order") >= expected)
            second = await ask(two, body)
            if marks([second]) == ["hit"]:
                break
        server.stop()
        num_calls = worker.num_calls
        third = await ask(two, body)

    assert marks([first, second, third]) == ["miss", "hit", "hit"]
    assert first[2] == second[2] == third[2]
    assert worker.num_calls == num_calls


@pytest.mark.parametrize("trouble", ["stop", "freeze"])
async def test_a_redis_that_is_dead_or_hangs_is_a_miss(serve, tmp_path, trouble):
    with running_redis(tmp_path) as server:
        worker, router = await serve(whole(), CACHE, redis_url=server.url)
        getattr(server, trouble)()

        answers = [await ask(router, {**BODY, "seed": seed}) for seed in (1, 2, 1)]

    assert marks(answers) == ["miss", "miss", "hit"]
    assert worker.num_calls == 2


# Tenants


async def test_a_tenant_that_does_not_want_it_always_gets_an_answer_of_its_own():
    live = LiveConfig()
    live.swap(
        RouterConfig(
            models=[],
            endpoints=[],
            settings=RouterSettingsEntry(saving=SavingSettings(response_cache=True, coalesce=True)),
        )
    )
    pool = EndpointPool(RevisionStats(boot="b"))
    layer = SavingLayer(
        live=live, versions=ModelVersions(pool), redis=None, metrics=SavingMetrics(CollectorRegistry()), clocks=Clocks()
    )
    asked = []

    async def inner(call, outcome):
        asked.append(call.request_id)
        return Answer(status=200, headers=CIMultiDict(), body=b"{}")

    for wants, expected in ((False, None), (True, "miss")):
        tenant = Tenant(entry=TenantEntry(id="t", response_cache=wants), key_id="k")
        answer = await layer.answer(call_of(tenant), Outcome(), inner)
        assert answer.headers.get("x-quire-cache") == expected

    assert asked == ["r", "r"]


def call_of(tenant):
    return Call(
        request_id="r",
        model="m",
        targets=("m",),
        path="/v1/completions",
        body=json.dumps(BODY).encode(),
        is_stream=False,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
        headers=CIMultiDict(),
        tenant=tenant,
    )
