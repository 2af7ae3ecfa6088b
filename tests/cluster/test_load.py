"""The load that end-to-end tests send sees what a strict client would."""

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cluster.load import Load, Outcome

Answer = Callable[[web.Request, bool], Awaitable[web.StreamResponse]]


async def outcome_of(answer: Answer) -> Outcome:
    """The outcome of two clients that go on until the server has had six requests."""
    seen = 0

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal seen
        seen += 1
        if seen >= 6:
            load._stopping.set()
        return await answer(request, (await request.json())["stream"])

    application = web.Application()
    application.router.add_post("/v1/chat/completions", handle)
    async with TestServer(application) as server:
        load = Load(str(server.make_url("")).rstrip("/"), "demo", num_clients=2, max_tokens=3)
        await load._run()
    return load.outcome


async def send(request: web.Request, *lines: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"x-quire-worker": "pod-1"})
    await response.prepare(request)
    for line in lines:
        await response.write(f"data: {line}\n\n".encode())
    return response


async def whole(request: web.Request, stream: bool) -> web.StreamResponse:
    if stream:
        return await send(request, '{"choices": []}', '{"usage": {"completion_tokens": 3}}', "[DONE]")
    return web.json_response({"usage": {"completion_tokens": 3}})


async def test_whole_answers_are_good() -> None:
    outcome = await outcome_of(whole)

    outcome.check(min_good=6)
    assert outcome.num_answered >= 2
    assert outcome.num_streamed >= 2
    assert "pod-1" in outcome.workers
    assert outcome.streaming["pod-1"] == 0


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        (('{"usage": {"completion_tokens": 3}}',), "without"),
        (('{"error": {"message": "gone"}}', "[DONE]"), "an error event"),
        (('{"usage": {"completion_tokens": 2}}', "[DONE]"), "2 tokens, not 3"),
    ],
)
async def test_a_stream_that_does_not_end_as_it_should_is_broken(lines: tuple[str, ...], told: str) -> None:
    async def answer(request: web.Request, stream: bool) -> web.StreamResponse:
        return await send(request, *lines) if stream else await whole(request, stream)

    outcome = await outcome_of(answer)

    assert outcome.broken and not outcome.failures
    assert all(told in text for text in outcome.broken)
    with pytest.raises(AssertionError, match="broken"):
        outcome.check(min_good=0)


async def test_a_refused_request_is_a_failure() -> None:
    async def answer(request: web.Request, stream: bool) -> web.StreamResponse:
        return (
            web.json_response({"error": {"message": "full"}}, status=503)
            if not stream
            else await whole(request, stream)
        )

    outcome = await outcome_of(answer)

    assert outcome.failures and not outcome.broken
    assert "status 503" in outcome.failures[0]
