"""Routes with real workers: fallbacks after errors, shadow traffic, and what a client is told."""

import asyncio
import json

import pytest
from aiohttp import web

from quire_contract.router_config import (
    ComplexityStep,
    EndpointEntry,
    ModelEntry,
    RouteEntry,
    RouterConfig,
    RouteTargetEntry,
    ShadowEntry,
)
from quire_contract.router_settings import RouterSettingsEntry, SavingSettings

BODY = {"model": "chat", "prompt": "hello"}
EVENT_STREAM = {"Content-Type": "text/event-stream"}


async def tell_model(request, upstream):
    return web.json_response({"model": json.loads(upstream.bodies[-1])["model"]})


def failing(status, **headers):
    async def behave(request, upstream):
        return web.json_response({"error": {"message": "no"}}, status=status, headers=headers)

    return behave


async def reset(request, upstream):
    request.transport.abort()
    return web.Response()


def config_of(*upstreams, saving=None, **route):
    """The worker "a" serves "model-a", and so on; the route "chat" over them."""
    targets = [] if "complexity" in route else [RouteTargetEntry(model="model-a")]
    return RouterConfig(
        models=[ModelEntry(name=f"model-{u.id}") for u in upstreams],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=[f"model-{u.id}"]) for u in upstreams],
        routes=[RouteEntry(model="chat", targets=targets, **route)],
        settings=None if saving is None else RouterSettingsEntry(saving=saving),
    )


@pytest.fixture
def serve(start_upstream, start_router):
    async def start(*behaviours, saving=None, **route):
        upstreams = [await start_upstream(name, b) for name, b in zip("abc", behaviours, strict=False)]
        router = await start_router(config_of(*upstreams, saving=saving, **route))
        await router.until_ready(len(upstreams))
        return router, upstreams

    return start


async def ask(router, body=BODY, **headers):
    async with router.post(body, headers={name.replace("_", "-"): value for name, value in headers.items()}) as answer:
        return answer.status, answer.headers, await answer.read()


async def metrics_of(router):
    async with router.get("/metrics") as answer:
        return await answer.text()


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(failing(500), "error"), (failing(429), "no_room"), (failing(503), "no_room"), (reset, "no_room")],
    ids=["500", "429", "503", "reset"],
)
async def test_a_model_that_fails_is_followed_by_the_next_one(serve, failure, reason):
    router, (a, b, c) = await serve(
        failure, failing(502), tell_model, fallbacks=["model-b", "model-c"], fallback_on_error=True
    )

    status, _, body = await ask(router)

    assert (status, json.loads(body)) == (200, {"model": "model-c"})
    assert min(a.num_calls, b.num_calls, c.num_calls) >= 1
    assert f'quire_router_fallbacks_total{{reason="{reason}"}}' in await metrics_of(router)
    assert all(endpoint.num_in_flight == 0 for endpoint in router.app._pool)


async def test_the_last_failure_is_the_answer(serve):
    router, _ = await serve(failing(500), failing(502), fallbacks=["model-b"], fallback_on_error=True)

    status, headers, _ = await ask(router)

    assert (status, headers["x-quire-worker"]) == (502, "b")


async def test_a_fault_of_the_request_is_not_given_to_anybody_else(serve):
    router, (_, b) = await serve(failing(400), tell_model, fallbacks=["model-b"], fallback_on_error=True)

    assert ((await ask(router))[0], b.num_calls) == (400, 0)


async def test_without_the_setting_an_error_is_the_answer(serve):
    router, (_, b) = await serve(failing(500), tell_model, fallbacks=["model-b"])

    assert ((await ask(router))[0], b.num_calls) == (500, 0)


async def test_a_failure_is_the_answer_while_the_next_model_has_no_ready_worker(serve, until):
    router, (_, b) = await serve(failing(500), tell_model, fallbacks=["model-b"], fallback_on_error=True)
    b.ready_status = 503
    await until(lambda: not router.app._pool.get("b").ready)

    assert (await ask(router))[0] == 500


# Shadow traffic


async def test_a_copy_goes_to_the_shadow_and_nobody_hears_of_it(serve, until, logged):
    router, (a, b) = await serve(tell_model, tell_model, shadow=ShadowEntry(model="model-b"))

    status, _, body = await ask(router, x_request_id="mine")
    await until(lambda: "request_id=mine-shadow" in logged())

    assert (status, json.loads(body)) == (200, {"model": "model-a"})
    assert json.loads(b.bodies[0]) == {"model": "model-b", "prompt": "hello"}
    assert b.headers[0]["x-request-id"] == "mine-shadow"
    assert a.num_calls == b.num_calls == 1
    assert "request_id=mine-shadow model=chat target=model-b status=200" in logged()
    assert 'quire_router_shadow_requests_total{result="ok"} 1.0' in await metrics_of(router)
    assert 'quire_router_requests_total{code="200",model="chat"} 1.0' in await metrics_of(router)


@pytest.mark.parametrize("shadow", [reset, failing(500)], ids=["reset", "500"])
async def test_a_shadow_that_fails_costs_the_call_nothing(serve, until, shadow):
    router, (_, b) = await serve(tell_model, shadow, shadow=ShadowEntry(model="model-b"))

    status, headers, _ = await ask(router)
    await until(lambda: b.num_calls > 0 and router.app._pool.get("b").num_in_flight == 0)

    assert (status, headers["x-quire-worker"]) == (200, "a")


async def test_shadows_that_hang_are_bounded_and_end_with_the_router(serve, until):
    async def hang(request, upstream):
        await asyncio.Event().wait()
        return web.Response()

    router, (a, b) = await serve(tell_model, hang, shadow=ShadowEntry(model="model-b"))

    statuses = [(await ask(router))[0] for _ in range(40)]
    await until(lambda: b.num_calls == 32)

    assert statuses == [200] * 40
    assert a.num_calls == 40
    assert 'quire_router_shadow_requests_total{result="dropped"} 8.0' in await metrics_of(router)


async def test_a_shadow_without_a_ready_worker_is_dropped(serve, until):
    router, (_, b) = await serve(tell_model, tell_model, shadow=ShadowEntry(model="model-b"))
    b.ready_status = 503
    await until(lambda: not router.app._pool.get("b").ready)

    status, _, _ = await ask(router)

    assert (status, b.num_calls) == (200, 0)
    assert 'quire_router_shadow_requests_total{result="dropped"} 1.0' in await metrics_of(router)


async def test_a_part_of_the_calls_is_copied(serve, until):
    router, (_, b) = await serve(tell_model, tell_model, shadow=ShadowEntry(model="model-b", percent=25))

    for _ in range(100):
        await ask(router)
    await until(lambda: router.app._pool.get("b").num_in_flight == 0)

    assert 8 <= b.num_calls <= 45


# Complexity

STEPS = [ComplexityStep(model="model-a", below=10.0), ComplexityStep(model="model-b")]


async def test_a_request_is_answered_by_the_model_of_its_complexity_and_told_so(serve):
    router, _ = await serve(tell_model, tell_model, complexity=STEPS)
    hard = {**BODY, "prompt": "Prove it step by step, compare and evaluate in detail."}

    answers = [await ask(router), await ask(router, hard, x_request_id="hard")]
    async with router.get("/debug/route?explain=1&request_id=hard") as answer:
        shown = (await answer.json())["decisions"][0]["route"]

    assert [json.loads(body)["model"] for _, _, body in answers] == ["model-a", "model-b"]
    assert [headers["x-quire-complexity"] for _, headers, _ in answers] == ["0", "15; reasoning=15"]
    assert (shown["chosen_by"], shown["targets"]) == ("complexity", ["model-b"])
    assert shown["complexity"]["points"] == {"reasoning": 15.0}
    text = await metrics_of(router)
    assert 'quire_router_complexity_choices_total{model="model-b",route="chat"} 1.0' in text
    assert "quire_router_complexity_score_count 2.0" in text


async def test_a_header_chooses_the_model_and_a_wrong_one_is_refused(serve):
    router, _ = await serve(tell_model, tell_model, complexity=STEPS)

    chosen = await ask(router, x_quire_model="model-b")
    wrong = await ask(router, x_quire_model="gpt")

    assert (chosen[0], json.loads(chosen[2])["model"]) == (200, "model-b")
    assert "x-quire-complexity" not in chosen[1]
    assert (wrong[0], json.loads(wrong[2])["error"]["param"]) == (400, "x-quire-model")


async def test_a_route_by_complexity_is_listed_with_its_models_workers(serve):
    router, _ = await serve(tell_model, tell_model, complexity=STEPS)

    assert 'quire_router_model_ready_endpoints{model="chat"} 2.0' in await metrics_of(router)


async def test_a_kept_answer_tells_the_score_of_its_own_request_and_is_not_copied(serve, until):
    async def finished(request, upstream):
        return web.json_response({"choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]})

    router, (a, b) = await serve(
        finished,
        tell_model,
        complexity=[ComplexityStep(model="model-a")],
        shadow=ShadowEntry(model="model-b"),
        saving=SavingSettings(response_cache=True),
    )
    greedy = {**BODY, "temperature": 0}

    first, second = await ask(router, greedy), await ask(router, greedy)
    await until(lambda: b.num_calls == 1 and router.app._pool.get("b").num_in_flight == 0)

    assert [headers["x-quire-cache"] for _, headers, _ in (first, second)] == ["miss", "hit"]
    assert first[1]["x-quire-complexity"] == second[1]["x-quire-complexity"]
    assert (a.num_calls, b.num_calls) == (1, 1)


async def test_a_fallbacks_answer_is_not_kept_as_the_targets(serve, until):
    async def finished(request, upstream):
        return web.json_response({"choices": [{"index": 0, "text": upstream.id, "finish_reason": "stop"}]})

    router, (a, _) = await serve(
        failing(500),
        finished,
        fallbacks=["model-b"],
        fallback_on_error=True,
        saving=SavingSettings(response_cache=True),
    )
    greedy = {**BODY, "temperature": 0}

    first = await ask(router, greedy)
    a.behaviour = finished
    second = await ask(router, greedy)

    assert [headers["x-quire-cache"] for _, headers, _ in (first, second)] == ["miss", "miss"]
    assert [json.loads(body)["choices"][0]["text"] for _, _, body in (first, second)] == ["b", "a"]
