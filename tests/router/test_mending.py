"""Streams go on at another worker: scripted workers that speak token replay, a real router."""

import asyncio
import re

import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDict

from quire_contract.resume import ResumeEnvelope
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_contract.trust import Trust
from quire_router.call import Call, Outcome

EVENT_STREAM = {"Content-Type": "text/event-stream"}
STREAM = {"model": "m", "prompt": "hello", "stream": True}
NUM_TOKENS = 12
USAGE = b": u 7 3 %d\n"
TRUST = Trust.generate()


def token_event(number):
    """Every third token's text is held back."""
    ids = b": t 0 %d\n" % (1000 + number)
    return ids + b"\n" if number % 3 == 1 else ids + b"data: token %d\n\n" % number


WHOLE = b"".join(b"data: token %d\n\n" % n for n in range(NUM_TOKENS) if n % 3 != 1) + b"data: [DONE]\n\n"


def worker(*, until=NUM_TOKENS, then=None):
    """Sends tokens up to `until`, whether the stream is new or goes on; then ends well, or does `then`."""

    async def behave(request, upstream):
        first = 0
        if request.path == "/internal/resume":
            envelope = msgspec.json.decode(upstream.bodies[-1], type=ResumeEnvelope)
            first = len(envelope.choices[0].token_ids)
            assert envelope.state == "c3RhdGU"
            assert envelope.num_events == sum(n % 3 != 1 for n in range(first))
            assert envelope.choices[0].token_ids == list(range(1000, 1000 + first))
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        head = b": s c3RhdGU\n" + USAGE % first
        for number in range(first, max(until, first)):
            await response.write(head + token_event(number))
            head = b""
            for _ in range(20):
                await asyncio.sleep(0)
        if then is not None:
            await then(request, response)
        else:
            await response.write(USAGE % NUM_TOKENS + b"data: [DONE]\n\n")
        return response

    return behave


async def cut(request, response):
    request.transport.abort()


async def end(request, response):
    """Without [DONE]."""


async def end_within_an_event(request, response):
    await response.write(b": t 0 99\ndata: hal")


async def lose_engine(request, response):
    await response.write(b'data: {"error":{"message":"gone","code":"engine_dead"}}\n\ndata: [DONE]\n\n')


async def migrate(request, response):
    await response.write(b": migrate\n\n")


async def hang(request, response):
    await asyncio.Event().wait()


@pytest.fixture
def serve(start_upstream, start_router, make_config):
    """A router of these workers, which trust it, with these FaultSettings."""

    async def start(*behaviours, faults=None, **settings):
        upstreams = [await start_upstream(f"w{i}", behaviour) for i, behaviour in enumerate(behaviours)]
        config = make_config(*upstreams)
        if faults is not None:
            config = msgspec.structs.replace(config, settings=RouterSettingsEntry(faults=faults))
        router = await start_router(config, TRUST, **settings)
        await router.until_ready(len(upstreams))
        return router, upstreams

    return start


async def stream_from(router, worker_id, path="/v1/completions", body=STREAM):
    """A stream that begins at that worker, and its text."""
    for _ in range(100):
        async with router.post(body, path) as answer:
            text = await answer.read()
            if answer.headers["x-quire-worker"] == worker_id:
                return text
    raise AssertionError(f"{worker_id} was never chosen")


async def counts(router, name):
    """The samples of a counter that are not 0, by their labels."""
    async with router.get("/metrics") as answer:
        text = await answer.text()
    found = re.findall(rf"^{name}(?:{{(.*)}})? ([0-9.e+]+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found if float(value)}


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        (cut, "died"),
        (end, "cut"),
        (end_within_an_event, "cut"),
        (lose_engine, "died"),
        (migrate, "migrate"),
        (hang, "stalled"),
    ],
    ids=["reset", "end", "half an event", "dead engine", "migrate", "hang"],
)
@pytest.mark.parametrize("until", [1, 5])
async def test_a_stream_goes_on_at_another_worker_with_no_token_lost_or_repeated(then, reason, until, serve):
    patience = {"idle_timeout_s": 0.3} if then is hang else {}  # a moment's pause of another one's is no reason
    router, upstreams = await serve(worker(until=until, then=then), worker(), **patience)

    text = await stream_from(router, "w0")

    assert text == WHOLE
    resumes = await counts(router, "quire_router_resumes_total")
    assert set(resumes) == {f'reason="{reason}"'}
    assert {h["x-quire-replay"] for u in upstreams for h in u.headers} == {"1"}
    assert {h["x-quire-token"] for u in upstreams for h in u.headers} == {TRUST.token}


async def test_a_stream_survives_several_deaths_and_is_never_sent_to_a_worker_that_failed_it(serve):
    behaviours = [worker(until=number, then=cut) for number in (2, 4, 6)]
    router, upstreams = await serve(*behaviours, worker(), faults=FaultSettings(consecutive_failures=0))

    async def stream():
        async with router.post(STREAM) as answer:
            return await answer.read(), answer.headers["x-request-id"]

    answers = await asyncio.gather(*(stream() for _ in range(20)))

    assert [text for text, _ in answers] == [WHOLE] * 20
    for upstream in upstreams:
        asked = [headers["x-request-id"] for headers in upstream.headers]
        assert len(asked) == len(set(asked))
    assert sum(upstream.num_calls for upstream in upstreams[:3]) > 0


async def test_a_resumed_stream_tries_the_next_worker_when_one_refuses(serve):
    async def refuse(request, upstream):
        if request.path == "/internal/resume":
            return web.json_response({"error": {"message": "cannot"}}, status=400)
        return await worker(until=3, then=cut)(request, upstream)

    router, _ = await serve(refuse, refuse, worker())

    text = await stream_from(router, "w0")

    assert text == WHOLE


async def test_a_full_worker_is_asked_again_until_it_takes_the_stream(serve):
    refusals = iter(range(2))

    async def full_at_first(request, upstream):
        if request.path == "/internal/resume" and next(refusals, None) is not None:
            return web.json_response({}, status=503, headers={"x-quire-reason": "queue_full"})
        return await worker()(request, upstream)

    router, _ = await serve(worker(until=3, then=cut), full_at_first, faults=FaultSettings(max_resumes=1))

    text = await stream_from(router, "w0")

    assert text == WHOLE


async def test_a_stream_without_another_worker_waits_for_one_that_comes(serve):
    router, (_, late) = await serve(worker(until=3, then=cut), worker())
    late.ready_status = 503
    await router.until_ready(1)

    async with router.post(STREAM) as answer:
        first = await answer.content.readany()
        late.ready_status = 200
        rest = await answer.read()

    assert first + rest == WHOLE


@pytest.mark.parametrize(
    ("faults", "problem"),
    [
        (FaultSettings(resume_wait_s=0.1), b"no other worker could go on"),
        (FaultSettings(resume_streams=False), b"w0 died"),
        (FaultSettings(max_resumes=0), b"may not go on elsewhere again"),
    ],
    ids=["nobody", "off", "limit"],
)
async def test_a_stream_that_nobody_goes_on_with_ends_with_an_error_event(faults, problem, serve):
    behaviours = [worker(until=3, then=cut)] * (2 if "again" in problem.decode() else 1)
    router, _ = await serve(*behaviours, faults=faults)

    text = await stream_from(router, "w0")

    assert text.startswith(b"data: token 0\n\ndata: token 2\n\n" + b'data: {"error"')
    assert problem in text
    assert text.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_leaves_while_its_stream_waits_leaves_nothing_behind(serve, until):
    router, _ = await serve(worker(until=3, then=cut))

    answer = await router.post(STREAM)
    await answer.content.readany()
    await until(lambda: not any(e.num_in_flight for e in router.app._pool))
    answer.close()
    await until(lambda: not any("_go_on" in repr(task) for task in asyncio.all_tasks()))

    assert [len(endpoint.uses) for endpoint in router.app._pool] == [0]


async def test_usage_is_right_also_of_a_stream_that_moved_and_whose_client_leaves_midway(serve):
    router, _ = await serve(worker(until=4, then=cut), worker(until=8, then=hang))
    source = router.app._routes["/v1/completions"][1].__self__._source
    body = msgspec.json.encode(STREAM)
    outcome = Outcome()
    call = Call(
        request_id="r",
        model="m",
        targets=("m",),
        path="/v1/completions",
        body=body,
        is_stream=True,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
        headers=CIMultiDict(),
    )

    answer = await source(call, outcome)
    got = b""
    while b"token 6" not in got:
        got += await anext(answer.parts)
    await answer.close()

    assert outcome.usage.prompt == 7
    assert outcome.usage.cached == 3
    assert outcome.usage.output in (7, 8)  # the next token's text is held back


async def test_usage_of_a_whole_answer_comes_from_its_header_which_no_client_sees(serve):
    async def whole(request, upstream):
        return web.json_response({}, headers={"x-quire-usage": "12,8,5"})

    router, _ = await serve(whole)
    seen = []
    handler = router.app._routes["/v1/completions"][1].__self__
    source = handler._source

    def noting(call, outcome):
        seen.append(outcome)
        return source(call, outcome)

    handler._source = noting
    async with router.post({"model": "m", "prompt": "hello"}) as answer:
        passed = answer.headers

    assert [msgspec.structs.astuple(outcome.usage) for outcome in seen] == [(12, 8, 5)]
    assert "x-quire-usage" not in passed


async def test_a_broken_stream_of_a_plain_worker_is_not_resumed(start_upstream, start_router, make_config):
    dying, other = (
        await start_upstream("w0", worker(until=3, then=cut)),
        await start_upstream("w1", worker(until=3, then=cut)),
    )
    router = await start_router(make_config(dying, other))
    await router.until_ready(2)

    async with router.post(STREAM) as answer:
        text = await answer.read()

    assert b"stream_broken" in text
    assert "x-quire-replay" not in (dying.headers + other.headers)[0]
    assert dying.num_calls + other.num_calls == 1
