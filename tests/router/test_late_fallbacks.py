"""A route's stream that had to begin while it waited, and whose model then fails it, goes to the next model as any other call does."""

import asyncio
import json

import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.router_tenants import TenantLimitsEntry
from tests.router.tenant_help import bearer, tenant

BODY = {"model": "chat", "prompt": "hello", "stream": True, "max_tokens": 4}
EVENTS = b'data: {"choices": [{"text": "from b"}]}\n\ndata: [DONE]\n\n'
TOKEN = "t" * 32
WAITING = b": waiting\n\n"


class Turns:
    """A worker that keeps its first request until it may go, and does something else with further ones."""

    def __init__(self, then):
        self.gate = asyncio.Event()
        self.then = then
        self.is_busy = False

    async def __call__(self, request, upstream):
        if self.is_busy:
            return await self.then(request, upstream)
        self.is_busy = True
        await self.gate.wait()
        return web.json_response({"choices": []})


def failing(status):
    async def behave(request, upstream):
        return web.json_response({"error": {"message": f"no: {status}"}}, status=status)

    return behave


async def reset(request, upstream):
    request.transport.abort()
    return web.Response()


async def stream(request, upstream):
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(EVENTS)
    return response


def route_of(*upstreams, **admission):
    admission = {"in_flight_per_worker": 1, "comment_s": 0.02, **admission}
    return RouterConfig(
        models=[ModelEntry(name=f"model-{u.id}") for u in upstreams],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[f"model-{u.id}"]) for u in upstreams],
        routes=[
            RouteEntry(
                model="chat",
                targets=[RouteTargetEntry(model="model-a")],
                fallbacks=[f"model-{u.id}" for u in upstreams[1:]],
                fallback_on_error=True,
            )
        ],
        tenants=[tenant("t", "k", limits=TenantLimitsEntry(tokens_per_day=1000))],
        settings=RouterSettingsEntry(admission=AdmissionSettings(**admission)),
    )


@pytest.fixture
def serve(start_upstream, start_router, until):
    """A router whose "model-a" is full, and a stream by the route's name that waits for it."""

    async def start(turns, *others, **admission):
        upstreams = [await start_upstream(name, b) for name, b in zip("abc", (turns, *others), strict=False)]
        router = await start_router(route_of(*upstreams, **admission), admin_port=0, admin_token=TOKEN)
        await router.until_ready(len(upstreams))
        first = asyncio.create_task(ask(router, {"model": "model-a", "prompt": "x"}))
        await until(lambda: turns.is_busy)
        return router, upstreams, first

    return start


async def ask(router, body=BODY, then=None):
    """The whole answer; `then` is called when its first byte is there."""
    async with router.post(body, headers=bearer("k")) as answer:
        begun = await answer.content.readuntil(b"\n\n") if then is not None else b""
        if then is not None:
            then()
        return answer.status, begun + await answer.read()


async def records(router):
    async with router.session.get(router.app.admin_url + "/admin/usage", headers=bearer(TOKEN)) as answer:
        return (await answer.json())["data"]


@pytest.mark.parametrize("then", [failing(500), failing(503), failing(429), reset], ids=["500", "503", "429", "reset"])
async def test_a_stream_that_had_to_wait_falls_back_as_well(then, serve):
    turns = Turns(then)
    router, (a, b), first = await serve(turns, stream)

    status, text = await ask(router, then=turns.gate.set)
    await first
    (record,) = [r for r in await records(router) if r["model"] == "chat"]

    assert (status, text.startswith(WAITING), text.replace(WAITING, b"")) == (200, True, EVENTS)
    assert (a.num_calls, b.num_calls) == (2, 1)
    assert json.loads(b.bodies[0])["model"] == "model-b"
    assert (record["status"], record["served_model"]) == (200, "model-b")


async def test_a_stream_that_waited_in_vain_falls_back_as_well(serve):
    turns = Turns(stream)
    router, (_, b), first = await serve(turns, stream, queue_timeout_s=0.3)

    status, text = await ask(router)
    turns.gate.set()
    await first

    assert (status, text.replace(WAITING, b"")) == (200, EVENTS)
    assert b.num_calls == 1


async def test_the_last_models_failure_is_told_in_the_stream_and_costs_nothing(serve):
    turns = Turns(failing(500))
    router, (a, b, c), first = await serve(turns, reset, failing(502))

    status, text = await ask(router, then=turns.gate.set)
    await first
    (record,) = [r for r in await records(router) if r["model"] == "chat"]

    error = json.loads(text.replace(WAITING, b"").split(b"\n")[0].removeprefix(b"data: "))["error"]
    assert (status, error["message"]) == (200, "no: 502")
    assert text.endswith(b"data: [DONE]\n\n")
    assert (a.num_calls, b.num_calls, c.num_calls) == (2, 1, 1)
    assert (record["status"], record["prompt_tokens"], record["output_tokens"]) == (502, 0, 0)


async def test_a_fault_of_the_request_is_told_and_tried_nowhere_else(serve):
    turns = Turns(failing(400))
    router, (_, b), first = await serve(turns, stream)

    _, text = await ask(router, then=turns.gate.set)
    await first

    assert b'"message":"no: 400"' in text
    assert b.num_calls == 0


async def test_the_next_model_may_have_to_be_waited_for_too(serve, until):
    turns, others = Turns(failing(500)), Turns(stream)
    router, (_, b), first = await serve(turns, others)
    second = asyncio.create_task(ask(router, {"model": "model-b", "prompt": "x"}))
    await until(lambda: others.is_busy)

    async with router.post(BODY, headers=bearer("k")) as answer:
        await answer.content.readuntil(b"\n\n")
        turns.gate.set()
        await first
        comments = [await answer.content.readuntil(b"\n\n") for _ in range(3)]
        others.gate.set()
        rest = await answer.read()
    await second

    assert comments == [WAITING] * 3
    assert rest.replace(WAITING, b"") == EVENTS
    assert b.num_calls == 2


async def test_a_client_that_leaves_after_a_fallback_leaves_nothing_behind(serve, until):
    async def endless(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"choices": [{"text": "w"}]}\n\n')
        await asyncio.Event().wait()

    turns = Turns(failing(500))
    router, (_, b), first = await serve(turns, endless)

    async with router.post(BODY, headers=bearer("k")) as answer:
        await answer.content.readuntil(b"\n\n")
        turns.gate.set()
        await answer.content.readuntil(b'"w"}]}\n\n')
        answer.close()
    await first
    await asyncio.wait_for(b.abandoned.wait(), 30)

    await until(lambda: all(endpoint.num_in_flight == 0 for endpoint in router.app._pool))
    assert b.num_abandoned == 1
