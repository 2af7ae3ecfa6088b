"""Workers that fall silent, keep failing or are slow: what becomes of requests that wait there, and of those to come."""

import asyncio
import re
import time

import msgspec
import pytest
from aiohttp import ClientSession, web
from multidict import CIMultiDict

from quire_contract.load_report import LoadReport
from quire_contract.openai.errors import ApiError
from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import EndpointEntry, read_config, write_config
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_contract.router_tenants import TenantEntry
from quire_contract.trust import Trust
from quire_router import headers as header_rules
from quire_router.call import Call, Tenant
from quire_router.endpoints import Endpoint, Reservation
from quire_router.hedging import Hedger
from quire_router.idle_guard import NOT_WAITING, IdleGuard
from quire_router.native.library import native
from quire_router.revision_stats import RevisionStats
from quire_router.scoring import Choice
from quire_router.upstream import RetryableError, Timeouts, Upstreams, request_of
from quire_router.worker_client import WorkerClient

POLL_S = 0.005
STREAM = {"model": "m", "prompt": "hello", "stream": True}
WHOLE = b"data: one\n\ndata: [DONE]\n\n"
EVENT_STREAM = {"Content-Type": "text/event-stream"}


async def a_while():
    for _ in range(4):
        await asyncio.sleep(POLL_S)


async def hang(request, upstream):
    await asyncio.Event().wait()
    return web.Response()


async def answer(request, upstream):
    response = web.StreamResponse(headers=EVENT_STREAM)
    await response.prepare(request)
    await response.write(WHOLE)
    return response


async def fail(request, upstream):
    return web.json_response({"error": {"message": "broken"}}, status=500)


@pytest.fixture
def serve(start_upstream, start_router, make_config):
    async def start(*behaviours, faults, trust=None, **settings):
        upstreams = [await start_upstream(f"w{i}", behaviour) for i, behaviour in enumerate(behaviours)]
        config = msgspec.structs.replace(make_config(*upstreams), settings=RouterSettingsEntry(faults=faults))
        router = await start_router(config, trust, **settings)
        await router.until_ready(len(upstreams))
        return router, upstreams

    return start


async def metric(router, name):
    async with router.get("/metrics") as answered:
        text = await answered.text()
    return {m[1] or "": float(m[2]) for m in re.finditer(rf"^{name}(?:{{(.*)}})? ([0-9.e+]+)$", text, re.MULTILINE)}


def report(pod, epoch="e1"):
    return LoadReport(
        pod=pod,
        model="m",
        epoch=epoch,
        ts=0,
        kv_seq=0,
        running=0,
        waiting=0,
        free_blocks=9,
        total_blocks=9,
        uncached_tokens=0,
    )


async def ask(router, body=STREAM):
    async with router.post(body) as answered:
        return answered.status, await answered.read()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_requests_that_wait_at_a_worker_that_fell_silent_are_answered_elsewhere_long_before_their_limit(
    serve, until, is_stream
):
    router, (stopped, well) = await serve(
        hang, answer, faults=FaultSettings(lost_after_s=0.3), first_byte_timeout_s=600.0
    )
    well.ready_status = 503
    await router.until_ready(1)

    asking = [asyncio.create_task(ask(router, {**STREAM, "stream": is_stream})) for _ in range(3)]
    await until(lambda: stopped.num_calls == 3)
    router.app._pool.get("w0").take_report(report("w0"), time.monotonic())
    stopped.is_stopped, well.ready_status = True, 200
    answers = await asyncio.wait_for(asyncio.gather(*asking), 120)

    assert answers == [(200, WHOLE)] * 3
    assert (await metric(router, "quire_router_retries_total"))['reason="lost"'] == 3
    assert not router.app._pool.get("w0").uses


async def test_requests_at_a_worker_that_left_the_configuration_and_then_fell_silent_are_answered_elsewhere(
    serve, until
):
    router, (stopped, well) = await serve(
        hang, answer, faults=FaultSettings(lost_after_s=0.3), first_byte_timeout_s=600.0
    )
    well.ready_status = 503
    await router.until_ready(1)

    asking = asyncio.create_task(ask(router))
    await until(lambda: stopped.num_calls == 1)
    left = router.app._pool.get("w0")
    left.take_report(report("w0"), time.monotonic())
    well.ready_status = 200
    config = read_config(router.config_path)
    write_config(router.config_path, msgspec.structs.replace(config, endpoints=config.endpoints[1:]))
    await until(lambda: router.app._pool.get("w0") is None)
    await until(lambda: time.monotonic() - left.heard_s > 0.0)
    waited_while_it_answered = not asking.done()
    stopped.is_stopped = True
    answered = await asyncio.wait_for(asking, 120)

    assert waited_while_it_answered
    assert answered == (200, WHOLE)
    assert not left.uses


async def test_a_worker_that_is_silent_but_answers_its_probes_keeps_its_requests(serve, until):
    router, (quiet,) = await serve(hang, faults=FaultSettings(lost_after_s=0.05), first_byte_timeout_s=600.0)
    asking = asyncio.create_task(ask(router))
    await until(lambda: quiet.num_calls == 1)

    endpoint = router.app._pool.get("w0")
    endpoint.take_report(report("w0"), time.monotonic())
    endpoint.forget_report()
    await until(lambda: time.monotonic() - endpoint.heard_s > 1.0)
    waits = not asking.done()
    asking.cancel()

    assert waits


async def test_a_worker_whose_server_hangs_loses_its_requests_although_its_engine_goes_on_reporting(serve, until):
    router, (deaf, well) = await serve(hang, answer, faults=FaultSettings(lost_after_s=0.2), first_byte_timeout_s=600.0)
    endpoint = router.app._pool.get("w0")
    well.ready_status = 503
    await router.until_ready(1)

    asking = asyncio.create_task(ask(router))
    await until(lambda: deaf.num_calls == 1)
    deaf.is_stopped, well.ready_status = True, 200
    async with asyncio.timeout(120):
        while not asking.done():
            endpoint.take_report(report("w0"), time.monotonic())
            await asyncio.sleep(POLL_S)

    assert asking.result() == (200, WHOLE)


async def test_a_worker_that_keeps_failing_is_left_out_and_comes_back_by_a_request_that_succeeds(serve):
    faults = FaultSettings(consecutive_failures=3, ejection_s=600.0)
    router, (bad, _) = await serve(fail, answer, faults=faults)
    endpoint = router.app._pool.get("w0")

    async def until_ejected():
        while not endpoint.health.is_ejected:
            await ask(router)

    await asyncio.wait_for(until_ejected(), 60)
    calls = bad.num_calls
    statuses = {(await ask(router))[0] for _ in range(10)}
    calls_while_out = bad.num_calls - calls
    states = await metric(router, "quire_router_endpoints")
    bad.behaviour = answer
    endpoint.health = msgspec.structs.replace(endpoint.health, until_s=time.monotonic())  # its time out is over

    async def until_back():
        while endpoint.health.is_ejected:
            await ask(router)

    await asyncio.wait_for(until_back(), 60)

    assert (statuses, calls_while_out) == ({200}, 0)
    assert (states['state="ejected"'], states['state="ready"']) == (1, 1)
    assert await metric(router, "quire_router_ejections_total") == {"": 1}
    async with router.get("/debug/route?explain=1&limit=200") as shown:
        decisions = (await shown.json())["decisions"]
    assert any(c.get("dropped") == "ejected" for d in decisions for c in d["candidates"])


async def test_refusals_of_a_full_or_draining_worker_and_errors_of_clients_eject_nobody(serve):
    answers = iter(
        [(503, "queue_full"), (503, "draining"), (503, "queue_timeout"), (504, "deadline"), (400, ""), (429, "")] * 9
    )

    async def refuse(request, upstream):
        status, reason = next(answers)
        return web.json_response({}, status=status, headers={"x-quire-reason": reason} if reason else {})

    router, _ = await serve(refuse, answer, faults=FaultSettings(consecutive_failures=1))

    for _ in range(30):
        await ask(router)

    assert not any(endpoint.health.failures or endpoint.health.is_ejected for endpoint in router.app._pool)


async def test_the_only_worker_is_never_ejected(serve):
    router, (bad,) = await serve(fail, faults=FaultSettings(consecutive_failures=2))

    statuses = [(await ask(router))[0] for _ in range(10)]

    assert statuses == [500] * 10
    assert bad.num_calls == 10


async def test_a_slow_stream_is_also_sent_to_a_second_worker_and_the_first_to_answer_wins(serve, until):
    faults = FaultSettings(hedge_after_s=0.05, max_hedged_percent=100)
    router, (slow, _) = await serve(hang, answer, faults=faults)

    answers = [await asyncio.wait_for(ask(router), 60) for _ in range(6)]
    await until(lambda: slow.num_abandoned == slow.num_calls)
    await until(lambda: not any(e.num_in_flight for e in router.app._pool))

    assert answers == [(200, WHOLE)] * 6
    won = await metric(router, "quire_router_hedges_total")
    # Where the other was asked first and took its time, the one that hangs was asked second, and lost.
    assert 0 < won['won="second"'] <= slow.num_calls <= won['won="first"'] + won['won="second"']


async def test_hedges_stay_within_their_share_of_the_requests(serve):
    async def slow(request, upstream):
        await a_while()
        return await answer(request, upstream)

    faults = FaultSettings(hedge_after_s=0.001, max_hedged_percent=10)
    router, workers = await serve(slow, slow, faults=faults)

    for _ in range(30):
        await ask(router)

    assert 0 < sum(worker.num_calls for worker in workers) - 30 <= 4


async def test_a_stream_whose_two_workers_both_fail_goes_to_a_third(serve):
    async def die_slowly(request, upstream):
        await a_while()
        request.transport.abort()
        return web.Response()

    faults = FaultSettings(hedge_after_s=0.001, max_hedged_percent=100)
    router, _ = await serve(die_slowly, die_slowly, answer, faults=faults)

    answers = [await ask(router) for _ in range(5)]

    assert answers == [(200, WHOLE)] * 5


async def test_a_stream_whose_time_is_over_before_it_is_sent_keeps_no_place_though_it_might_be_hedged(serve):
    faults = FaultSettings(hedge_after_s=0.05, max_hedged_percent=100)
    router, (worker,) = await serve(answer, faults=faults)

    answers = [await ask(router, {**STREAM, "timeout_s": 1e-9}) for _ in range(3)]

    assert [status for status, _ in answers] == [504] * 3
    assert worker.num_calls == 0
    assert [endpoint.num_in_flight for endpoint in router.app._pool] == [0]


async def test_a_client_that_leaves_as_a_hedged_stream_is_won_leaves_nothing_behind(start_upstream, until):
    workers = [await start_upstream("a", hang), await start_upstream("b", answer)]
    stats = RevisionStats("boot")
    slow, quick = (Endpoint(EndpointEntry(id=w.id, url=w.url, models=["m"]), stats.of("", "")) for w in workers)
    choice = Choice(endpoint_id="a", level="hash", matched_tokens=0, num_tokens=None, reason="", explain=tuple)
    faults = FaultSettings(hedge_after_s=0.001, max_hedged_percent=100)

    class Second:
        def pick(self, *_):
            return Reservation(quick, 0, time.monotonic()), choice

    async with ClientSession(auto_decompress=False) as session:
        upstreams = Upstreams(
            client=WorkerClient(session),
            timeouts=Timeouts(first_byte=600.0, answer=600.0, idle=600.0),
            trust=None,
            faults=lambda: faults,
            on_ejection=lambda: None,
            clock=time.monotonic,
        )
        loop, left = asyncio.get_running_loop(), []

        def leave(who):
            left.append(who)
            loop.call_soon(request.cancel)

        hedger = Hedger(upstreams=upstreams, picker=Second(), faults=lambda: faults, on_hedge=leave)
        asked = request_of(call_with(fields=RoutingFields(model="m")), "m")

        async def ask():
            (await hedger.begin(asked, Reservation(slow, 0, time.monotonic()), choice, frozenset())).end()

        request = asyncio.create_task(ask())
        await asyncio.wait([request])
        await until(lambda: workers[0].num_abandoned == 1)
        await a_while()

    assert left == ["second"]
    assert [(endpoint.num_in_flight, len(endpoint.uses)) for endpoint in (slow, quick)] == [(0, 0)] * 2


async def test_calls_without_a_prompt_and_whole_answers_are_never_hedged(serve):
    async def slow(request, upstream):
        await a_while()
        return web.json_response({"from": upstream.id})

    router, workers = await serve(slow, slow, faults=FaultSettings(hedge_after_s=0.001, max_hedged_percent=100))

    await ask(router, {"model": "m", "prompt": "hello"})
    async with router.post({"model": "m", "input": "x"}, "/v1/embeddings") as answered:
        await answered.read()

    assert sum(worker.num_calls for worker in workers) == 2


def call_with(*, is_stream=True, **fields):
    values = {"request_id": "r", "model": "m", "targets": ("m",), "path": "/v1/completions", "body": b"{}"}
    return Call(
        **values,
        is_stream=is_stream,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
        headers=CIMultiDict(),
        **fields,
    )


def test_a_trusting_worker_is_told_what_is_left_of_the_time_the_priority_the_tenant_and_the_cache_salt():
    trust = Trust.generate()
    tenant = Tenant(entry=TenantEntry(id="t-1"), key_id="k")
    call = call_with(deadline_s=112.5, priority=3, tenant=tenant, cache_salt="salt")

    sent = header_rules.of_call(call, trust, 100.0)
    plain = header_rules.of_call(call, None, 100.0)

    internal = {name: value for name, value in sent.items() if name.startswith("x-quire-") and name != "x-quire-token"}
    assert internal == {
        "x-quire-replay": "1",
        "x-quire-deadline": "12.500",
        "x-quire-priority": "-3",
        "x-quire-tenant": "t-1",
        "x-quire-cache-salt": "salt",
    }
    assert not [name for name in plain if name.startswith("x-quire-")]


async def test_a_request_whose_time_is_over_is_not_sent_and_is_nobodys_fault(start_upstream):
    upstream = await start_upstream("a")
    stats = RevisionStats("boot")
    endpoint = Endpoint(EndpointEntry(id="a", url=upstream.url, models=["m"]), stats.of("", ""))
    choice = Choice(endpoint_id="a", level="hash", matched_tokens=0, num_tokens=None, reason="", explain=tuple)
    limits = Timeouts(first_byte=9.0, answer=9.0, idle=9.0)
    async with ClientSession() as session:
        upstreams = Upstreams(
            client=WorkerClient(session),
            timeouts=limits,
            trust=None,
            faults=FaultSettings,
            on_ejection=lambda: None,
            clock=lambda: 50.0,
        )

        with pytest.raises(ApiError) as refused:
            await upstreams.begin(request_of(call_with(deadline_s=49.0), "m"), Reservation(endpoint, 0, 50.0), choice)

    assert (refused.value.status, refused.value.code) == (504, "deadline_exceeded")
    assert (upstream.num_calls, endpoint.num_in_flight, endpoint.health.failures) == (0, 0, 0)


@pytest.mark.parametrize("parts", [native(), None], ids=["native", "python"])
@pytest.mark.parametrize("comes", ["nothing", "a head"])
@pytest.mark.parametrize("how", ["its time is over", "its worker is lost", "its client leaves"])
async def test_a_request_over_a_connection_that_was_used_before_ends_like_any_other(
    start_upstream, until, how, comes, parts
):
    asked, over = [], []

    async def once(request, upstream):
        asked.append(request)
        over.append(request.transport)
        if len(asked) == 1:
            return web.json_response({})
        response = web.StreamResponse()
        if comes == "a head":
            await response.prepare(request)
        await asyncio.Event().wait()
        return response

    upstream = await start_upstream("a", once)
    endpoint = Endpoint(EndpointEntry(id="a", url=upstream.url, models=["m"]), RevisionStats("boot").of("", ""))
    choice = Choice(endpoint_id="a", level="hash", matched_tokens=0, num_tokens=None, reason="", explain=tuple)
    async with ClientSession(auto_decompress=False) as session:
        upstreams = Upstreams(
            client=WorkerClient(session, parts),
            timeouts=Timeouts(first_byte=600.0, answer=600.0, idle=600.0),
            trust=None,
            faults=FaultSettings,
            on_ejection=lambda: None,
            clock=time.monotonic,
            parts=parts,
        )

        def begin():
            request = request_of(call_with(is_stream=False), "m")
            return asyncio.create_task(upstreams.begin(request, Reservation(endpoint, 0, time.monotonic()), choice))

        first = await begin()
        after_first = endpoint.num_in_flight, len(endpoint.uses)
        if how == "its time is over":
            upstreams.timeouts = msgspec.structs.replace(upstreams.timeouts, answer=0.2)
        second = begin()
        await until(lambda: len(asked) == 2)
        await a_while()
        if how == "its worker is lost":
            endpoint.lose()
        elif how == "its client leaves":
            second.cancel()
        with pytest.raises((ApiError, RetryableError, asyncio.CancelledError)) as ended:
            await second
        await until(lambda: asked[1].transport is None)

    assert (first.begun.data, first.begun.is_whole, after_first) == (b"{}", True, (0, 0))
    expected = {"its time is over": ApiError, "its worker is lost": RetryableError}
    assert type(ended.value) is expected.get(how, asyncio.CancelledError)
    assert over[0] is over[1]
    assert getattr(ended.value, "reason", "lost") == "lost"
    assert (endpoint.num_in_flight, len(endpoint.uses)) == (0, 0)
    assert endpoint.health.failures == (how != "its client leaves")


async def test_an_idle_guard_ends_only_the_wait_that_takes_too_long():
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    guard = IdleGuard(1.0, ended.set)

    started_s = loop.time()
    while loop.time() < started_s + 1.5:  # many short waits, together longer than the limit
        guard.since_s = loop.time()
        await asyncio.sleep(0)
        guard.since_s = NOT_WAITING
    ended_by_short_ones = ended.is_set()
    guard.since_s = began_s = loop.time()
    await asyncio.wait_for(ended.wait(), 60)

    assert not ended_by_short_ones
    assert loop.time() - began_s >= 1.0 - 0.002  # the clock's own step
