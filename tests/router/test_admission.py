"""Requests that wait in a real router for real upstreams: who starts, who is refused and how, and that nobody is forgotten."""

import asyncio
import json
import random
from collections import Counter

import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDict

from quire_contract.load_report import LoadReport
from quire_contract.openai.errors import ApiError
from quire_contract.router_config import (
    EndpointEntry,
    ModelEntry,
    RouteEntry,
    RouterConfig,
    RouteTargetEntry,
    ServiceEntry,
    write_config,
)
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_router.call import Call, Outcome, Tenant

BODY = {"model": "m", "prompt": "hello"}
STREAM = {**BODY, "stream": True}
EVENTS = b'data: {"text": "hi"}\n\ndata: [DONE]\n\n'


class Gate:
    """Upstream behaviour: keeps every request until it is opened, then answers in the request's form; counts who comes."""

    def __init__(self):
        self.opened = asyncio.Event()
        self.order = []
        self.now = self.most = 0

    async def __call__(self, request, upstream):
        body = json.loads(upstream.bodies[-1])
        self.order.append(body.get("user"))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.opened.wait()
            await asyncio.sleep(0)
        finally:
            self.now -= 1
        if body.get("stream"):
            return web.Response(body=EVENTS, headers={"Content-Type": "text/event-stream"})
        return web.json_response({"from": upstream.id})


def config_of(*upstreams, model="m", **admission):
    """One service; each worker takes one request at a time unless `admission` says otherwise."""
    settings = AdmissionSettings(**{"in_flight_per_worker": 1, **admission})
    return RouterConfig(
        models=[ModelEntry(name=model, service="ns/svc")],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[model], service="ns/svc") for u in upstreams],
        settings=RouterSettingsEntry(admission=settings),
    )


def calls_of(router):
    return router.app._routes["/v1/completions"][1].__self__


def room_of(router):
    """The waiting room of a running router."""
    return router.app._pool.on_change.__self__


def num_waiting(router):
    return len(room_of(router).waiters())


def is_at_rest(router):
    """Whether nothing of any request is left."""
    room = room_of(router)
    return (
        not room._waiting
        and room.holding.size_bytes == 0
        and all(line.granted == line.num_light == 0 and not line.models for line in room.lines)
        and all(endpoint.num_in_flight == 0 for endpoint in router.app._pool)
    )


async def ask(router, body=BODY, path="/v1/completions", **options):
    """(status, body, headers)."""
    async with router.post(body, path, **options) as answer:
        return answer.status, await answer.read(), answer.headers


def asking(router, number, body=BODY, path="/v1/completions"):
    return [asyncio.create_task(ask(router, body, path)) for _ in range(number)]


async def statuses(tasks):
    return Counter([status for status, _, _ in await asyncio.gather(*tasks)])


def call_of(tenant, number=0, weight=1, priority=0, **values):
    """As the router's outer layers would give it."""
    body = msgspec.json.encode({**BODY, "user": tenant, "number": number})
    entry = TenantEntry(id=tenant, weight=weight, priority=priority)
    values = {"targets": ("m",), "first_byte_timeout_s": None, "prompt": None, "keep_key": False, **values}
    return Call(
        request_id=f"{tenant}-{number}",
        model="m",
        path="/v1/completions",
        body=body,
        is_stream=False,
        headers=CIMultiDict(),
        tenant=Tenant(entry=entry, key_id="k"),
        **values,
    )


async def answered(router, call):
    """The status of a call that is given to the router's layers."""
    try:
        answer = await calls_of(router)._source(call, Outcome())
    except ApiError as error:
        return error.status
    await answer.close()
    return answer.status


async def until_waiting(router, until, number):
    await until(lambda: num_waiting(router) == number)


async def test_no_more_requests_run_than_there_is_room_for_and_all_are_served(start_upstream, start_router, until):
    gate = Gate()
    workers = [await start_upstream(name, gate) for name in "ab"]
    router = await start_router(config_of(*workers, in_flight_per_worker=3))
    await router.until_ready(2)

    tasks = asking(router, 50)
    await until_waiting(router, until, 44)
    await until(lambda: gate.now == 6)
    gate.opened.set()
    counts = await statuses(tasks)
    await until(lambda: is_at_rest(router))

    assert (gate.most, counts) == (6, {200: 50})


async def test_tenants_share_a_full_worker_by_weight(start_upstream, start_router, until):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate)))
    await router.until_ready(1)
    first = asyncio.create_task(answered(router, call_of("first")))
    await until(lambda: gate.now == 1)

    calls = [call_of("light", i) for i in range(60)] + [call_of("heavy", i, weight=3) for i in range(60)]
    tasks = [asyncio.create_task(answered(router, call)) for call in calls]
    await until_waiting(router, until, 120)
    gate.opened.set()
    found = await asyncio.gather(first, *tasks)
    served = Counter(gate.order[1:41])

    assert set(found) == {200}
    assert served["heavy"] == pytest.approx(30, abs=2)
    assert served["light"] == pytest.approx(10, abs=2)


async def test_a_tenant_of_a_higher_priority_overtakes(start_upstream, start_router, until):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate)))
    await router.until_ready(1)
    first = asyncio.create_task(answered(router, call_of("first")))
    await until(lambda: gate.now == 1)

    low = [asyncio.create_task(answered(router, call_of("low", i))) for i in range(8)]
    await until_waiting(router, until, 8)
    high = [asyncio.create_task(answered(router, call_of("high", i, priority=10))) for i in range(8)]
    await until_waiting(router, until, 16)
    gate.opened.set()
    await asyncio.gather(first, *low, *high)

    assert gate.order[1:] == ["high"] * 8 + ["low"] * 8


async def test_a_model_without_a_worker_holds_every_kind_of_request_and_serves_all_when_one_is_ready(
    start_upstream, start_router, until
):
    gate = Gate()
    gate.opened.set()
    worker = await start_upstream("a", gate)
    worker.ready_status = 503
    router = await start_router(config_of(worker, in_flight_per_worker=2))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

    tasks = [
        *asking(router, 20),
        *asking(router, 20, STREAM),
        *asking(router, 5, chat, "/v1/chat/completions"),
        *asking(router, 5, {"model": "m", "input": "x"}, "/v1/embeddings"),
        *asking(router, 5, {"model": "m", "prompt": "x"}, "/tokenize"),
    ]
    await until_waiting(router, until, 55)
    async with router.get("/metrics") as answer:
        metrics = await answer.text()
    before = worker.num_calls
    worker.ready_status = 200
    counts = await statuses(tasks)
    await until(lambda: is_at_rest(router))

    assert 'quire_router_held_requests{model="m"} 55.0' in metrics
    assert 'quire_router_queue_length{band="normal",model="m"} 55.0' in metrics
    assert (before, counts) == (0, {200: 55})


async def test_a_name_that_nobody_declared_is_refused_at_once(start_upstream, start_router):
    router = await start_router(config_of())

    status, body, _ = await ask(router, {**BODY, "model": "nobody"})

    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


async def test_without_a_worker_in_time_the_answer_is_503_and_says_why_and_when_to_come_back(start_router):
    router = await start_router(config_of(no_endpoint_timeout_s=0.1))

    status, body, headers = await ask(router)

    assert (status, headers["x-quire-reason"], headers["Retry-After"]) == (503, "no_endpoint", "10")
    assert json.loads(body)["error"]["code"] == "no_endpoint"


@pytest.mark.parametrize("timeout_s", [0.1, 0.0])
async def test_with_full_workers_for_too_long_the_answer_is_429(timeout_s, start_upstream, start_router, until):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate), queue_timeout_s=timeout_s))
    await router.until_ready(1)
    (first,) = asking(router, 1)
    await until(lambda: gate.now == 1)

    status, body, headers = await ask(router)
    gate.opened.set()
    await first

    assert (status, headers["x-quire-reason"]) == (429, "queue_timeout")
    assert int(headers["Retry-After"]) >= 1
    assert json.loads(body)["error"]["type"] == "rate_limit_error"


async def test_a_full_queue_refuses_and_its_retry_after_follows_how_fast_it_drains(start_upstream, start_router, until):
    gate = Gate()
    config = config_of(await start_upstream("a", gate), queue_timeout_s=77.0)
    config = msgspec.structs.replace(config, services=[ServiceEntry(id="ns/svc", max_queued_requests=4)])
    router = await start_router(config)
    await router.until_ready(1)
    tasks = asking(router, 1)
    await until(lambda: gate.now == 1)
    tasks += asking(router, 4)
    await until_waiting(router, until, 4)

    status, body, headers = await ask(router)
    gate.opened.set()
    counts = await statuses(tasks)
    gate.opened.clear()
    more = asking(router, 5)
    await until_waiting(router, until, 4)
    later, _, later_headers = await ask(router)
    gate.opened.set()
    await statuses(more)

    assert (status, headers["x-quire-reason"], headers["Retry-After"]) == (429, "queue_full", "77")
    assert json.loads(body)["error"]["code"] == "queue_full"
    assert counts == {200: 5}
    assert (later, int(later_headers["Retry-After"]) < 77) == (429, True)


async def test_in_a_full_queue_a_better_claim_takes_the_place_of_the_newest_of_who_has_most(
    start_upstream, start_router, until
):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate), max_queued_requests=4))
    await router.until_ready(1)
    first = asyncio.create_task(answered(router, call_of("first")))
    await until(lambda: gate.now == 1)
    greedy = [asyncio.create_task(answered(router, call_of("greedy", i))) for i in range(4)]
    await until_waiting(router, until, 4)

    modest = asyncio.create_task(answered(router, call_of("modest")))
    high = asyncio.create_task(answered(router, call_of("high", priority=1)))
    low = asyncio.create_task(answered(router, call_of("low", priority=-1)))
    found_low = await low
    await until(lambda: sum(task.done() for task in greedy) == 2)
    gate.opened.set()

    assert found_low == 429
    assert [await task for task in greedy] == [200, 200, 429, 429]
    assert (await modest, await high, await first) == (200, 200, 200)


async def test_bodies_of_all_models_together_are_bounded(start_upstream, start_router, until):
    gate = Gate()
    gate.opened.set()
    router = await start_router(config_of(max_queued_mib=1, no_endpoint_timeout_s=30))
    large = {**BODY, "prompt": "x" * 400_000}
    kept = asking(router, 2, large)
    await until_waiting(router, until, 2)

    status, body, headers = await ask(router, large)
    for task in kept:
        task.cancel()
    await until(lambda: is_at_rest(router))

    assert (status, headers["x-quire-reason"]) == (429, "queue_full")
    assert "memory" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["plain", "stream"])
async def test_clients_that_leave_while_they_wait_are_forgotten_at_once(body, start_upstream, start_router, until):
    gate = Gate()
    worker = await start_upstream("a", gate)
    router = await start_router(config_of(worker, comment_s=0.02))
    await router.until_ready(1)
    (first,) = asking(router, 1)
    await until(lambda: gate.now == 1)
    leaving = asking(router, 30, body)
    staying = asking(router, 3, body)
    await until_waiting(router, until, 33)

    for task in leaving:
        task.cancel()
    await until_waiting(router, until, 3)
    gate.opened.set()
    counts = await statuses([first, *staying])
    await until(lambda: is_at_rest(router))
    async with router.get("/metrics") as answer:
        metrics = await answer.text()

    assert counts == {200: 4}
    assert worker.num_calls == 4
    assert 'quire_router_queue_dropped_total{reason="client_left"} 30.0' in metrics


async def test_a_waiting_stream_hears_that_it_is_alive_and_then_gets_its_events(start_upstream, start_router, until):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate), comment_s=0.05))
    await router.until_ready(1)
    (first,) = asking(router, 1)
    await until(lambda: gate.now == 1)

    async with router.post(STREAM, headers={"X-Request-Id": "req-1"}) as answer:
        comments = [await answer.content.readuntil(b"\n\n") for _ in range(3)]
        gate.opened.set()
        rest = await answer.read()
    await first
    await until(lambda: is_at_rest(router))

    assert (answer.status, answer.content_type, answer.headers["x-request-id"]) == (200, "text/event-stream", "req-1")
    assert comments == [b": waiting\n\n"] * 3
    assert rest.replace(b": waiting\n\n", b"") == EVENTS


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/completions", STREAM, [b'"code":"no_endpoint"', b"data: [DONE]"]),
        (
            "/v1/responses",
            {"model": "m", "input": "x", "stream": True},
            [b"event: error", b'"code":"no_endpoint"'],
        ),
        (
            "/v1/messages",
            {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}], "stream": True},
            [b"event: error", b'"type":"overloaded_error"'],
        ),
    ],
    ids=["completions", "responses", "messages"],
)
async def test_a_stream_that_waited_in_vain_ends_with_an_error_event_of_its_api(
    path, body, expected, start_router, logged
):
    router = await start_router(config_of(no_endpoint_timeout_s=1.0, comment_s=0.05))

    status, text, _ = await ask(router, body, path)

    assert status == 200
    assert text.startswith(b": waiting\n\n")
    assert [word in text for word in expected] == [True] * len(expected)
    assert "no ready worker" in text.decode()
    assert "status=503" in logged()


async def test_a_workers_refusal_after_a_comment_comes_as_an_error_event(start_upstream, start_router, until):
    async def refuse(request, upstream):
        error = {"message": "prompt: is too long", "type": "invalid_request_error", "param": "prompt", "code": "c"}
        return web.json_response({"error": error}, status=400)

    worker = await start_upstream("a", refuse)
    worker.ready_status = 503
    router = await start_router(config_of(worker, comment_s=0.02))

    async with router.post(STREAM) as answer:
        await answer.content.readuntil(b"\n\n")
        worker.ready_status = 200
        text = await answer.read()
    event = next(line for line in text.splitlines() if line.startswith(b"data: {"))

    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "prompt: is too long"
    assert text.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("field", "status", "code"), [("timeout_s", 504, "deadline_exceeded"), ("queue_timeout_s", 429, "queue_timeout")]
)
async def test_a_clients_own_limits_hold_while_it_waits(field, status, code, start_upstream, start_router, until):
    gate = Gate()
    router = await start_router(config_of(await start_upstream("a", gate)))
    await router.until_ready(1)
    (first,) = asking(router, 1)
    await until(lambda: gate.now == 1)

    found, body, _ = await ask(router, {**BODY, field: 0.1})
    gate.opened.set()
    await first

    assert (found, json.loads(body)["error"]["code"]) == (status, code)


async def test_when_a_worker_appears_the_limit_for_full_workers_counts_from_then(start_upstream, start_router, until):
    gate = Gate()
    worker = await start_upstream("a", gate)
    worker.ready_status = 503
    router = await start_router(config_of(worker, no_endpoint_timeout_s=600, queue_timeout_s=0.2))

    tasks = asking(router, 3)
    await until_waiting(router, until, 3)
    worker.ready_status = 200
    await until(lambda: sum(task.done() for task in tasks) == 2)
    gate.opened.set()

    assert await statuses(tasks) == {200: 1, 429: 2}


async def test_token_counting_needs_a_worker_but_no_room(start_upstream, start_router, until):
    gate = Gate()
    worker = await start_upstream("a", gate)
    router = await start_router(config_of(worker))
    await router.until_ready(1)
    tasks = asking(router, 2)
    await until_waiting(router, until, 1)

    counting = asking(router, 2, BODY, "/tokenize")
    await until(lambda: gate.now == 3)
    gate.opened.set()

    assert await statuses([*tasks, *counting]) == {200: 4}


def route_config(targets, fallbacks, **admission):
    """The route "m" over models that have a worker of their own."""
    upstreams = [*targets, *fallbacks]
    route = RouteEntry(
        model="m",
        targets=[RouteTargetEntry(model=f"model-{u.id}") for u in targets],
        fallbacks=[f"model-{u.id}" for u in fallbacks],
    )
    return RouterConfig(
        models=[ModelEntry(name=f"model-{u.id}") for u in upstreams],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[f"model-{u.id}"]) for u in upstreams],
        routes=[route],
        settings=RouterSettingsEntry(admission=AdmissionSettings(**{"in_flight_per_worker": 1, **admission})),
    )


async def test_a_route_waits_for_whichever_target_has_room_first(start_upstream, start_router, until):
    gates = [Gate(), Gate()]
    workers = [await start_upstream(name, gate) for name, gate in zip("ab", gates, strict=True)]
    router = await start_router(route_config(workers, []))
    await router.until_ready(2)

    tasks = asking(router, 6)
    await until_waiting(router, until, 4)
    gates[1].opened.set()
    await until(lambda: sum(task.done() for task in tasks) == 5)
    gates[0].opened.set()
    counts = await statuses(tasks)
    await until(lambda: is_at_rest(router))

    assert counts == {200: 6}
    assert (workers[0].num_calls, workers[1].num_calls) == (1, 5)


async def test_a_fallback_is_for_targets_without_a_worker_not_for_full_ones(start_upstream, start_router, until):
    gate, other = Gate(), Gate()
    other.opened.set()
    main, spare = await start_upstream("a", gate), await start_upstream("b", other)
    router = await start_router(route_config([main], [spare]))
    await router.until_ready(2)

    tasks = asking(router, 4)
    await until_waiting(router, until, 3)
    while_full = spare.num_calls
    main.ready_status = 503
    await until(lambda: spare.num_calls == 3)
    gate.opened.set()

    assert while_full == 0
    assert await statuses(tasks) == {200: 4}


async def test_a_model_that_leaves_the_configuration_lets_those_go_that_wait_for_it(start_router, until):
    router = await start_router(config_of())
    tasks = asking(router, 3)
    await until_waiting(router, until, 3)

    write_config(router.config_path, config_of(model="other"))
    counts = await statuses(tasks)
    await until(lambda: is_at_rest(router))

    assert counts == {404: 3}


async def test_each_service_has_its_own_time_to_wake(start_router, until):
    config = config_of(no_endpoint_timeout_s=0, comment_s=0.05)
    models = [ModelEntry(name=name, service=f"ns/{name}") for name in ("short", "long", "never")]
    services = [ServiceEntry(id="ns/short", hold_timeout_s=1.0), ServiceEntry(id="ns/long", hold_timeout_s=600)]
    router = await start_router(msgspec.structs.replace(config, models=models, services=services))
    waits = asking(router, 2, {**STREAM, "model": "long"})

    never, _, reason = await ask(router, {**STREAM, "model": "never"})
    short, _, headers = await ask(router, {**BODY, "model": "short"})
    told, text, _ = await ask(router, {**STREAM, "model": "short"})
    await until_waiting(router, until, 2)
    quick = [ServiceEntry(id="ns/long", hold_timeout_s=0.1)]
    write_config(router.config_path, msgspec.structs.replace(config, models=models, services=quick))

    assert (never, reason["x-quire-reason"]) == (503, "not_ready")
    assert (short, headers["x-quire-reason"], headers["Retry-After"]) == (503, "no_endpoint", "10")
    assert (told, text.count(b": waiting") >= 2, b'"code":"no_endpoint"' in text) == (200, True, True)
    assert await statuses(waits) == {200: 2}, "who was told already that the stream lives hears of its end as an event"
    assert num_waiting(router) == 0


async def test_new_limits_hold_for_those_who_wait_already(start_router, until):
    router = await start_router(config_of(no_endpoint_timeout_s=600))
    tasks = asking(router, 3)
    await until_waiting(router, until, 3)

    write_config(router.config_path, config_of(no_endpoint_timeout_s=0.1))

    assert await statuses(tasks) == {503: 3}


async def test_a_router_that_ends_refuses_those_without_a_worker_and_serves_the_others(
    start_upstream, start_router, until
):
    gate = Gate()
    worker = await start_upstream("a", gate)
    config = config_of(worker)
    config = msgspec.structs.replace(config, models=[*config.models, ModelEntry(name="zero", service="ns/zero")])
    router = await start_router(config)
    await router.until_ready(1)
    tasks = asking(router, 2)
    held = asking(router, 2, {**BODY, "model": "zero"})
    await until_waiting(router, until, 3)

    room_of(router).close()
    refused = await asyncio.gather(*held)
    gate.opened.set()

    assert [(status, headers["x-quire-reason"]) for status, _, headers in refused] == [(503, "draining")] * 2
    assert await statuses(tasks) == {200: 2}


async def test_load_reports_decide_and_late_ones_stop_nothing(start_upstream, start_router, until):
    gate = Gate()
    gate.opened.set()
    router = await start_router(config_of(await start_upstream("a", gate), in_flight_per_worker=8))
    await router.until_ready(1)
    endpoint = router.app._pool.get("a")
    room = room_of(router)
    usual = {"running": 4, "max_num_seqs": 4, "free_blocks": 50, "total_blocks": 100, "uncached_tokens": 0}
    full = LoadReport(pod="a", model="m", epoch="e", ts=0.0, kv_seq=0, waiting=9, **usual)

    endpoint.take_report(full, room._clock())
    tasks = asking(router, 5)
    await until_waiting(router, until, 5)
    endpoint.take_report(msgspec.structs.replace(full, waiting=3), room._clock())
    await until(lambda: sum(task.done() for task in tasks) >= 2)
    waiting = num_waiting(router)
    endpoint.take_report(full, room._clock() - 60)
    counts = await statuses(tasks)

    assert waiting <= 3
    assert counts == {200: 5}


async def test_whatever_ends_requests_no_place_is_lost(start_upstream, start_router, until):
    rng = random.Random(3)

    async def any_of(request, upstream):
        kind = rng.randrange(5)
        for _ in range(rng.randrange(4)):
            await asyncio.sleep(0)
        if kind == 0:
            request.transport.abort()
        if kind == 1:
            return web.json_response({}, status=503, headers={"x-quire-reason": "draining"})
        if kind == 2:
            return web.json_response({}, status=500)
        return web.Response(body=EVENTS, headers={"Content-Type": "text/event-stream"})

    workers = [await start_upstream(name, any_of) for name in "abc"]
    router = await start_router(
        config_of(*workers, in_flight_per_worker=2, queue_timeout_s=0.5, max_queued_requests=40, comment_s=0.05)
    )
    await router.until_ready(3)

    tasks = []
    for number in range(300):
        tasks += asking(router, 1, STREAM if number % 2 else BODY)
        if number % 3 == 0:
            rng.choice(tasks).cancel()
        await asyncio.sleep(0)
    await asyncio.wait(tasks, timeout=120)
    await until(lambda: is_at_rest(router))

    assert all(task.done() for task in tasks)
    assert sum(not task.cancelled() for task in tasks) >= 150


async def test_of_a_burst_beyond_queue_and_workers_exactly_what_fits_is_served_and_the_rest_told_when_to_come_back(
    start_upstream, start_router, until
):
    gate = Gate()
    workers = [await start_upstream(name, gate) for name in "ab"]
    router = await start_router(config_of(*workers, in_flight_per_worker=2, max_queued_requests=50))
    await router.until_ready(2)

    tasks = asking(router, 200)
    await until(lambda: sum(task.done() for task in tasks) == 146)
    gate.opened.set()
    answers = await asyncio.gather(*tasks)
    refused = [headers for status, _, headers in answers if status == 429]

    assert Counter(status for status, _, _ in answers) == {200: 54, 429: 146}
    assert all(int(headers["Retry-After"]) >= 1 for headers in refused)
    assert gate.most == 4


async def test_two_thousand_requests_are_held_and_leave_nothing_behind(start_router, until):
    router = await start_router(config_of(max_queued_requests=2000))
    calls = [call_of(f"tenant {i % 50}", i) for i in range(2000)]

    tasks = [asyncio.create_task(answered(router, call)) for call in calls]
    await until_waiting(router, until, 2000)
    held_bytes = room_of(router).holding.size_bytes
    one_more = await answered(router, call_of("tenant 0", 2001))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert held_bytes == sum(len(call.body) for call in calls)
    assert one_more == 429
    assert is_at_rest(router)


async def test_a_request_whose_only_worker_leaves_before_it_answers_waits_for_the_next_one(
    start_upstream, start_router, until
):
    async def leave(request, upstream):
        upstream.ready_status = 503
        return web.json_response({}, status=503, headers={"x-quire-reason": "draining"})

    worker = await start_upstream("a", leave)
    config = config_of(worker, comment_s=0.05, in_flight_per_worker=100)
    router = await start_router(config)
    await router.until_ready(1)

    tasks = [*asking(router, 4), *asking(router, 4, STREAM)]
    await until_waiting(router, until, 8)
    gate = Gate()
    gate.opened.set()
    other = await start_upstream("b", gate)
    write_config(router.config_path, config_of(other, in_flight_per_worker=100))
    counts = await statuses(tasks)
    await until(lambda: is_at_rest(router))

    assert counts == {200: 8}
    assert (len(gate.order), num_waiting(router)) == (8, 0)
