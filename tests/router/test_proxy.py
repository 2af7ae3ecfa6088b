"""The proxy against small real upstreams that are slow, die, drain, split events anywhere."""

import asyncio
import itertools
import json

import pytest
from aiohttp import ClientPayloadError, web

BODY = {"model": "m", "prompt": "hello"}
STREAM = {**BODY, "stream": True}
EVENT_STREAM = {"Content-Type": "text/event-stream"}


def cut_connection(request):
    request.transport.abort()


async def reset(request, upstream):
    """Die before the first byte."""
    cut_connection(request)
    return web.Response()


async def draining(request, upstream):
    return web.json_response({}, status=503, headers={"x-quire-reason": "draining"})


async def hang(request, upstream):
    await asyncio.Event().wait()
    return web.Response()


def streaming(*parts, then=None):
    """Sends the parts one by one, each in a packet of its own; then ends well, or does `then`."""

    async def behave(request, upstream):
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        for part in parts:
            await response.write(part)
            for _ in range(20):  # lets each part travel alone: router and worker share this loop
                await asyncio.sleep(0)
        if then is not None:
            await then(request, upstream)
        return response

    return behave


async def connect(url, body):
    """Send a request by hand; the reader stands at the answer's first line."""
    host, port = url.removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
    return reader, writer


async def raw_chunks(url, body):
    """The chunks of a chunked answer, as the router wrote them."""
    reader, writer = await connect(url, body)
    while (await reader.readline()).strip():
        pass
    chunks = []
    while size := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(size))
        await reader.readline()
    writer.close()
    return chunks


async def test_a_request_is_answered_by_a_worker_with_its_original_bytes(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    body = b'{ "model":"m",  "prompt":"hello" }'

    async with router.post(body) as answer:
        got = await answer.json()

    assert (answer.status, got) == (200, {"from": "a"})
    assert worker.bodies == [body]
    assert answer.headers["x-quire-worker"] == "a"
    assert answer.headers["x-quire-route"].startswith(("approximate;", "hash;", "least_load;"))


async def test_internal_and_hop_by_hop_headers_do_not_pass_in_either_direction(
    start_upstream, start_router, make_config
):
    async def behave(request, upstream):
        return web.json_response(
            {}, headers={"x-quire-secret": "s", "Connection": "x-own", "x-own": "1", "x-other": "2"}
        )

    worker = await start_upstream("a", behave)
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    trace = {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01", "tracestate": "vendor=1"}
    sent = {
        "X-Quire-Tenant": "root",
        "x-quire-token": "guess",
        "Connection": "x-mine",
        "x-mine": "1",
        "x-kept": "2",
        **trace,
    }

    async with router.post(BODY, headers={**sent, "X-Request-Id": "req-1", "Authorization": "Bearer k"}) as answer:
        back = answer.headers

    seen = worker.headers[0]
    assert not [name for name in seen if name.lower().startswith("x-quire-")]
    assert "x-mine" not in seen
    assert (seen["x-kept"], seen["x-request-id"], seen["Authorization"]) == ("2", "req-1", "Bearer k")
    assert {name: seen[name] for name in trace} == trace, "the worker's span continues the client's trace"
    assert "x-quire-secret" not in back
    assert "x-own" not in back
    assert (back["x-other"], back["x-request-id"]) == ("2", "req-1")


async def test_every_connection_header_of_several_names_headers_that_stay_behind(
    start_upstream, start_router, make_config
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    host, port = router.url.removeprefix("http://").split(":")
    sent = b"Connection: close\r\nConnection: x-mine\r\nx-mine: 1\r\nx-kept: 2\r\nContent-Length: 29\r\n\r\n"

    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + sent + b'{"model": "m", "prompt": "x"}')
    head = await reader.readline()
    writer.close()

    assert head.split(b" ")[1] == b"200"
    assert "x-mine" not in worker.headers[0]
    assert worker.headers[0]["x-kept"] == "2"


async def test_a_key_for_the_router_does_not_reach_the_worker(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker), api_keys=("secret",))
    await router.until_ready(1)

    async with router.post(BODY) as refused:
        error = (await refused.json())["error"]
    async with router.post(BODY, headers={"Authorization": "Bearer secret"}) as answer:
        status = answer.status

    assert (refused.status, error["code"]) == (401, "invalid_api_key")
    assert status == 200
    assert "Authorization" not in worker.headers[0]


async def test_a_body_of_several_megabytes_arrives_as_it_was_sent_also_after_a_retry(
    start_upstream, start_router, make_config
):
    bad, good = await start_upstream("bad", reset), await start_upstream("good")
    router = await start_router(make_config(bad, good))
    await router.until_ready(2)
    body = json.dumps({**BODY, "prompt": "hello " * 500_000}).encode()

    statuses = []
    for _ in range(2):
        async with router.post(body) as answer:
            statuses.append(answer.status)

    assert statuses == [200, 200]
    assert good.bodies == [body, body]


async def test_an_unusable_request_id_is_replaced(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with router.post(BODY, headers={"X-Request-Id": "x" * 500}) as answer:
        request_id = answer.headers["x-request-id"]

    assert len(request_id) == 32
    assert worker.headers[0]["x-request-id"] == request_id


async def test_a_stream_is_relayed_in_whole_events_wherever_the_worker_cuts_it(
    start_upstream, start_router, make_config
):
    huge = b"data: " + b"x" * 300_000 + b"\n\n"
    text = b"data: one\n\n" + huge + b"data: two\n\n: comment\n\n" + b"data: [DONE]\n\n"
    cuts = [0, 3, 10, 11, 12, 70_000, 250_000, 300_017, 300_018, 300_020, len(text) - 1, len(text)]
    worker = await start_upstream("a", streaming(*(text[a:b] for a, b in itertools.pairwise(cuts))))
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    chunks = await raw_chunks(router.url, STREAM)

    assert b"".join(chunks) == text
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("failing", [reset, draining], ids=["reset", "draining"])
async def test_a_request_that_fails_before_its_first_byte_is_answered_by_another_worker(
    body, failing, start_upstream, start_router, make_config
):
    bad, good = await start_upstream("bad", failing), await start_upstream("good")
    router = await start_router(make_config(bad, good))
    await router.until_ready(2)

    workers = []
    for _ in range(10):
        async with router.post(body) as answer:
            assert answer.status == 200
            workers.append((await answer.json())["from"])

    assert workers == ["good"] * 10
    assert good.num_calls == 10


async def test_a_stream_that_dies_between_its_headers_and_its_first_event_is_retried(
    start_upstream, start_router, make_config
):
    bad = await start_upstream("bad", streaming(b"data: half", then=reset))
    good = await start_upstream("good", streaming(b"data: whole\n\n", b"data: [DONE]\n\n"))
    router = await start_router(make_config(bad, good))
    await router.until_ready(2)

    texts = []
    for _ in range(6):
        async with router.post(STREAM) as answer:
            texts.append(await answer.read())

    assert texts == [b"data: whole\n\ndata: [DONE]\n\n"] * 6
    assert bad.num_calls > 0


async def test_a_plain_answer_that_breaks_off_is_retried(start_upstream, start_router, make_config):
    async def half(request, upstream):
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"half":')
        cut_connection(request)
        return response

    bad, good = await start_upstream("bad", half), await start_upstream("good")
    router = await start_router(make_config(bad, good))
    await router.until_ready(2)

    froms = []
    for _ in range(6):
        async with router.post(BODY) as answer:
            froms.append((await answer.json())["from"])

    assert froms == ["good"] * 6


async def test_a_worker_that_cannot_be_connected_to_leaves_the_pool_at_once_and_returns_when_it_is_back(
    start_upstream, start_router, make_config
):
    gone, good = await start_upstream("gone"), await start_upstream("good")
    router = await start_router(make_config(gone, good))
    await router.until_ready(2)

    await gone.stop()
    statuses = []
    for _ in range(8):
        async with router.post(BODY) as answer:
            statuses.append(answer.status)
    await router.until_ready(1)
    await gone.start()
    await router.until_ready(2)

    assert statuses == [200] * 8


async def test_no_worker_is_tried_twice_and_the_error_says_what_happened(start_upstream, start_router, make_config):
    workers = [await start_upstream(name, reset) for name in ("a", "b")]
    router = await start_router(make_config(*workers))
    await router.until_ready(2)

    async with router.post(BODY) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert "tried before" in error["message"]
    assert [worker.num_calls for worker in workers] == [1, 1]


async def test_a_request_is_tried_three_times_at_most(start_upstream, start_router, make_config):
    workers = [await start_upstream(f"w{i}", reset) for i in range(5)]
    router = await start_router(make_config(*workers))
    await router.until_ready(5)

    async with router.post(BODY) as answer:
        status = answer.status

    assert status == 503
    assert sum(worker.num_calls for worker in workers) == 3


async def test_a_request_that_waited_too_long_at_one_worker_does_not_wait_at_another(
    start_upstream, start_router, make_config
):
    async def time_out(request, upstream):
        headers = {"x-quire-reason": "queue_timeout", "Retry-After": "7"}
        return web.json_response({"error": {"code": "queue_timeout"}}, status=503, headers=headers)

    workers = [await start_upstream(name, time_out) for name in ("a", "b")]
    router = await start_router(make_config(*workers))
    await router.until_ready(2)

    async with router.post(STREAM) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, answer.headers["Retry-After"], error["code"]) == (503, "7", "queue_timeout")
    assert sum(worker.num_calls for worker in workers) == 1


async def test_a_workers_own_error_is_passed_on_and_not_retried(start_upstream, start_router, make_config):
    async def refuse(request, upstream):
        return web.json_response({"error": {"message": "no", "type": "t", "param": "n", "code": None}}, status=400)

    workers = [await start_upstream(name, refuse) for name in ("a", "b")]
    router = await start_router(make_config(*workers))
    await router.until_ready(2)

    async with router.post(STREAM) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["param"]) == (400, "n")
    assert sum(worker.num_calls for worker in workers) == 1


async def test_a_stream_that_dies_on_its_way_ends_with_an_error_event(start_upstream, start_router, make_config):
    worker = await start_upstream("a", streaming(b"data: one\n\n", b"data: tw", then=reset))
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with router.post(STREAM) as answer:
        text = await answer.read()

    events = text.split(b"\n\n")
    assert (events[0], events[2:]) == (b"data: one", [b"data: [DONE]", b""])
    error = json.loads(events[1].removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("stream_broken", "server_error")
    assert "a died" in error["message"]


async def test_a_stream_that_stalls_ends_with_an_error_event(start_upstream, start_router, make_config):
    worker = await start_upstream("a", streaming(b"data: one\n\n", then=hang))
    router = await start_router(make_config(worker), idle_timeout_s=0.5)
    await router.until_ready(1)

    async with router.post(STREAM) as answer:
        text = await answer.read()
    await asyncio.wait_for(worker.abandoned.wait(), 60)

    assert text.startswith(b"data: one\n\n")
    assert b"sent nothing for 0.5 s" in text
    assert text.endswith(b"data: [DONE]\n\n")


async def test_a_worker_that_does_not_answer_in_time_gives_504_and_is_let_go(start_upstream, start_router, make_config):
    worker = await start_upstream("a", hang)
    router = await start_router(make_config(worker), first_byte_timeout_s=0.5, answer_timeout_s=0.5)
    await router.until_ready(1)

    async with router.post(STREAM) as answer:
        error = (await answer.json())["error"]
    await asyncio.wait_for(worker.abandoned.wait(), 60)

    assert (answer.status, error["code"]) == (504, "worker_timeout")


async def test_an_answer_larger_than_what_is_held_arrives_whole(start_upstream, start_router, make_config):
    large = bytes(range(256)) * 12_000

    async def behave(request, upstream):
        return web.Response(body=large, content_type="application/json")

    worker = await start_upstream("a", behave)
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    async with router.post(BODY) as answer:
        got = await answer.read()

    assert got == large


async def test_a_large_answer_that_breaks_off_is_never_taken_for_whole(start_upstream, start_router, make_config):
    async def behave(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for _ in range(200):
            await response.write(b"x" * 10_000)
        cut_connection(request)
        return response

    worker = await start_upstream("a", behave)
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    with pytest.raises(ClientPayloadError):
        async with router.post(BODY) as answer:
            await answer.read()


@pytest.mark.parametrize("body", [BODY, STREAM], ids=["plain", "stream"])
async def test_a_client_that_leaves_while_waiting_frees_the_worker(
    body, start_upstream, start_router, make_config, until
):
    worker = await start_upstream("a", hang)
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    asking = asyncio.create_task(router.session.post(router.url + "/v1/completions", json=body))
    await until(lambda: worker.num_calls == 1)
    asking.cancel()
    await asyncio.wait_for(worker.abandoned.wait(), 60)
    await until(lambda: router.app._pool.get("a").num_in_flight == 0)

    assert worker.num_abandoned == 1


async def test_a_client_that_leaves_in_the_middle_of_a_stream_frees_the_worker(
    start_upstream, start_router, make_config, until
):
    worker = await start_upstream("a", streaming(b"data: one\n\n", then=hang))
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    answer = await router.post(STREAM)
    first = await answer.content.readany()
    answer.close()
    await asyncio.wait_for(worker.abandoned.wait(), 60)
    await until(lambda: router.app._pool.get("a").num_in_flight == 0)

    assert first == b"data: one\n\n"


async def test_a_client_that_takes_nothing_is_dropped_and_its_worker_freed(
    start_upstream, start_router, make_config, until
):
    async def endless(request, upstream):
        response = web.StreamResponse(headers=EVENT_STREAM)
        await response.prepare(request)
        while True:
            await response.write(b"data: " + b"x" * 60_000 + b"\n\n")

    worker = await start_upstream("a", endless)
    router = await start_router(make_config(worker), idle_timeout_s=0.2)
    await router.until_ready(1)

    reader, writer = await connect(router.url, STREAM)
    await reader.readline()  # and no more
    await asyncio.wait_for(worker.abandoned.wait(), 60)
    await until(lambda: router.app._pool.get("a").num_in_flight == 0)
    writer.transport.abort()

    assert worker.num_abandoned == 1


async def test_requests_in_flight_are_counted_and_forgotten_whatever_ends_them(
    start_upstream, start_router, make_config, until
):
    behaviours = [reset, draining, hang, streaming(b"data: 1\n\n", then=reset), streaming(b"data: 1\n\n")]
    workers = [await start_upstream(f"w{i}", behaviour) for i, behaviour in enumerate(behaviours)]
    router = await start_router(make_config(*workers), first_byte_timeout_s=0.1, answer_timeout_s=0.1)
    await router.until_ready(5)

    async def ask():
        async with router.post(STREAM) as answer:
            await answer.read()

    await asyncio.gather(*(ask() for _ in range(40)))
    await until(lambda: all(endpoint.num_in_flight == 0 for endpoint in router.app._pool))

    assert [endpoint.pending_tokens for endpoint in router.app._pool] == [0] * 5


async def test_large_bodies_are_parsed_in_turn_and_reach_the_worker_as_they_are(
    start_upstream, start_router, make_config
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    bodies = [json.dumps({"model": "m", "prompt": f"{number} " * 200_000}).encode() for number in range(6)]
    bodies.append(b'{"model": "m", "prompt": ["' + b"x" * 400_000)

    async def ask(body):
        async with router.post(body) as answer:
            return answer.status

    statuses = await asyncio.gather(*map(ask, bodies))

    assert statuses == [200] * 6 + [400]
    assert sorted(worker.bodies) == sorted(bodies[:6])
