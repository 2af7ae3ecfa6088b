"""Public names over served models: shares, fallbacks, and a body that names the model which is asked."""

import asyncio
import json

import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouteEntry, RouterConfig, RouteTargetEntry
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry

BODY = {"model": "chat", "prompt": "hello"}
REFUSE_AT_ONCE = RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=0))
"""Nobody waits for a first worker."""


async def echo_model(request, upstream):
    """As a worker does: it answers to its own names only, and tells its own."""
    model = json.loads(upstream.bodies[-1]).get("model")
    if model != f"model-{upstream.id}":
        return web.json_response({"error": {"message": "no such model"}}, status=404)
    return web.json_response({"model": model})


async def reset(request, upstream):
    request.transport.abort()
    return web.Response()


def route_config(*upstreams, weights, fallbacks=(), timeout_s=None):
    """A model for each worker; the route "chat" over them. `weights`: worker -> weight."""
    targets = [RouteTargetEntry(model=f"model-{u}", weight=weight) for u, weight in weights.items()]
    route = RouteEntry(model="chat", targets=targets, fallbacks=[f"model-{u}" for u in fallbacks], timeout_s=timeout_s)
    return RouterConfig(
        models=[ModelEntry(name=f"model-{u.id}") for u in upstreams],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[f"model-{u.id}"]) for u in upstreams],
        routes=[route],
        settings=REFUSE_AT_ONCE,
    )


async def models_answering(router, number, path="/v1/completions"):
    found = []
    for _ in range(number):
        async with router.post(BODY, path) as answer:
            assert answer.status == 200, await answer.text()
            found.append((await answer.json())["model"])
    return found


async def test_a_route_shares_its_requests_and_each_worker_is_asked_by_its_own_name(start_upstream, start_router):
    a, b = await start_upstream("a", echo_model), await start_upstream("b", echo_model)
    router = await start_router(route_config(a, b, weights={"a": 3, "b": 1}))
    await router.until_ready(2)

    found = await models_answering(router, 200)
    by_itself = await router.post({**BODY, "model": "model-b"})

    assert 120 <= found.count("model-a") <= 180
    assert found.count("model-b") == 200 - found.count("model-a")
    assert by_itself.status == 200


async def test_a_call_without_a_prompt_is_routed_too(start_upstream, start_router):
    a = await start_upstream("a", echo_model)
    router = await start_router(route_config(a, weights={"a": 1}))
    await router.until_ready(1)

    assert await models_answering(router, 1, "/tokenize") == ["model-a"]


async def test_every_other_byte_of_a_values_text_reaches_the_worker(start_upstream, start_router):
    a = await start_upstream("a")
    router = await start_router(route_config(a, weights={"a": 1}))
    await router.until_ready(1)

    async with router.post(b'{"model": "chat", "prompt": "\\u00e9\xc3\xa9", "seed": 1e3, "x": [1,  2]}'):
        pass

    assert a.bodies == [b'{"model":"model-a","prompt":"\\u00e9\xc3\xa9","seed":1e3,"x":[1,  2]}']


async def test_fallbacks_answer_in_their_order_while_no_target_is_ready(start_upstream, start_router, until):
    a, y, z = [await start_upstream(name, echo_model) for name in "ayz"]
    router = await start_router(route_config(a, y, z, weights={"a": 1}, fallbacks=["z", "y"]))
    await router.until_ready(3)
    pool = router.app._pool

    first = await models_answering(router, 3)
    a.ready_status = 503
    await until(lambda: not pool.get("a").ready)
    second = await models_answering(router, 3)
    z.ready_status = 503
    await until(lambda: not pool.get("z").ready)
    third = await models_answering(router, 3)
    y.ready_status = 503
    await until(lambda: not pool.get("y").ready)
    async with router.post(BODY) as answer:
        error = (await answer.json())["error"]

    assert (first, second, third) == (["model-a"] * 3, ["model-z"] * 3, ["model-y"] * 3)
    assert (answer.status, answer.headers["Retry-After"], error["code"]) == (503, "1", "not_ready")
    assert "`chat`" in error["message"]


async def test_a_request_that_fails_at_its_target_is_answered_by_the_fallback(start_upstream, start_router, logged):
    a, b = await start_upstream("a", reset), await start_upstream("b", echo_model)
    router = await start_router(route_config(a, b, weights={"a": 1}, fallbacks=["b"]))
    await router.until_ready(2)

    found = await models_answering(router, 2)

    assert found == ["model-b"] * 2
    assert a.num_calls > 0
    assert "model=chat target=model-b status=200" in logged()


async def test_a_route_is_listed_and_known_by_name(start_upstream, start_router):
    a = await start_upstream("a")
    router = await start_router(route_config(a, weights={"a": 1}))
    await router.until_ready(1)

    async with router.get("/v1/models") as answer:
        listed = [card["id"] for card in (await answer.json())["data"]]
    async with router.get("/v1/models/chat") as answer:
        one = await answer.json()
    async with router.get("/metrics") as answer:
        text = await answer.text()

    assert listed == ["model-a", "chat"]
    assert (one["id"], one["object"]) == ("chat", "model")
    assert 'quire_router_model_ready_endpoints{model="chat"} 1.0' in text


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "plain"])
async def test_a_routes_limit_holds_for_the_first_token_of_a_stream(stream, start_upstream, start_router, until):
    async def hang(request, upstream):
        await asyncio.Event().wait()
        return web.Response()

    a = await start_upstream("a", hang)
    router = await start_router(route_config(a, weights={"a": 1}, timeout_s=0.1), answer_timeout_s=0.3)
    await router.until_ready(1)

    async with router.post({**BODY, "stream": stream}) as answer:
        error = (await answer.json())["error"]

    assert (answer.status, error["code"]) == (504, "worker_timeout")
    assert f"within {0.1 if stream else 0.3:g} s" in error["message"]


async def test_a_route_to_a_model_that_nobody_declared_is_not_ready(start_upstream, start_router):
    a = await start_upstream("a")
    router = await start_router(route_config(a, weights={"elsewhere": 1}))
    await router.until_ready(1)

    async with router.post(BODY) as answer:
        assert answer.status == 503
