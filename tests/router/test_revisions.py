"""Requests are split between the revisions of a service, and every revision's answers are counted."""

import asyncio
from collections import Counter

import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry, write_config
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from quire_contract.trust import Trust

BODY = {"model": "m", "prompt": "hello"}
STREAM = {**BODY, "stream": True}
REFUSE_AT_ONCE = RouterSettingsEntry(admission=AdmissionSettings(no_endpoint_timeout_s=0))
"""Nobody waits for a first worker."""


def split_config(weights, sticky="none", **upstreams):
    """`upstreams`: revision -> its workers."""
    return RouterConfig(
        models=[ModelEntry(name="m", service="ns/svc")],
        endpoints=[
            EndpointEntry(id=u.id, url=u.url, models=["m"], service="ns/svc", revision=revision)
            for revision, workers in upstreams.items()
            for u in workers
        ],
        services=[ServiceEntry(id="ns/svc", weights=weights, sticky=sticky)],
        settings=REFUSE_AT_ONCE,
    )


async def ask(router, number, body=BODY):
    """How many answers each worker gave; None counts refusals."""
    counts = Counter()
    for _ in range(number):
        async with router.post(body) as answer:
            await answer.read()
            counts[answer.headers.get("x-quire-worker")] += 1
    return counts


async def draining(request, upstream):
    return web.json_response({}, status=503, headers={"x-quire-reason": "draining"})


async def reset(request, upstream):
    request.transport.abort()
    return web.Response()


def status_of(status):
    async def behave(request, upstream):
        return web.json_response({"error": {"message": "no"}}, status=status)

    return behave


def events(*parts, then_cut=False):
    async def behave(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        if then_cut:
            for _ in range(20):  # what was written must leave before the connection does
                await asyncio.sleep(0)
            request.transport.abort()
        return response

    return behave


async def test_requests_are_split_by_weight_whatever_the_number_of_workers(start_upstream, start_router):
    stable, canary = await start_upstream("s"), [await start_upstream(f"c{i}") for i in range(3)]
    router = await start_router(split_config({"stable": 80, "canary": 20}, stable=[stable], canary=canary))
    await router.until_ready(4)

    counts = await ask(router, 300)

    assert 205 <= counts["s"] <= 272  # 240 expected, standard deviation 7
    assert counts.total() == 300


async def test_a_canary_that_was_rolled_back_gets_nothing_even_when_the_rest_is_down(
    start_upstream, start_router, until
):
    stable, canary = await start_upstream("s"), await start_upstream("c")
    config = split_config({"stable": 100, "canary": 0}, stable=[stable], canary=[canary])
    router = await start_router(config)
    await router.until_ready(2)

    with_both = await ask(router, 20)
    stable.ready_status = 503
    await until(lambda: not router.app._pool.get("s").ready)
    async with router.post(BODY) as answer:
        error = (await answer.json())["error"]
    async with router.get("/debug/route?explain=1&limit=1") as shown:
        (decision,) = (await shown.json())["decisions"]

    assert with_both == {"s": 20}
    assert (answer.status, error["code"]) == (503, "not_ready")
    assert "no revision with a weight is ready" in error["message"]
    assert decision["split"] == {
        "revision": None,
        "weights": {"stable": 100, "canary": 0},
        "chosen_by": "weight",
    }
    assert canary.num_calls == 0


async def test_a_revision_that_is_not_ready_leaves_its_part_to_the_others(start_upstream, start_router):
    stable, canary = await start_upstream("s"), await start_upstream("c")
    canary.ready_status = 503
    router = await start_router(split_config({"stable": 10, "canary": 90}, stable=[stable], canary=[canary]))
    await router.until_ready(1)

    assert await ask(router, 20) == {"s": 20}


async def test_a_retry_goes_to_any_revision_with_a_weight_and_to_no_other(start_upstream, start_router):
    bad = await start_upstream("bad", reset)
    good, off = await start_upstream("good"), await start_upstream("off")
    config = split_config({"canary": 99, "stable": 1, "old": 0}, canary=[bad], stable=[good], old=[off])
    router = await start_router(config)
    await router.until_ready(3)

    counts = await ask(router, 20)

    assert counts == {"good": 20}
    assert bad.num_calls > 0
    assert off.num_calls == 0


async def test_new_weights_hold_from_the_next_request_on_and_workers_keep_their_state(
    start_upstream, start_router, until
):
    stable, canary = await start_upstream("s"), await start_upstream("c")
    router = await start_router(split_config({"stable": 100}, stable=[stable], canary=[canary]))
    await router.until_ready(2)
    endpoints = list(router.app._pool)

    before = await ask(router, 10)
    write_config(router.config_path, split_config({"canary": 100}, stable=[stable], canary=[canary]))
    await until(lambda: router.app._pool.weights("m") == {"canary": 100})
    after = await ask(router, 10)

    assert (before, after) == ({"s": 10}, {"c": 10})
    assert list(router.app._pool) == endpoints


async def test_without_weights_all_revisions_are_one_pool(start_upstream, start_router):
    workers = {"r1": [await start_upstream("a")], "r2": [await start_upstream("b")]}
    router = await start_router(split_config({}, **workers))
    await router.until_ready(2)
    async with router.post(BODY), router.get("/debug/route?explain=1&limit=1") as answer:
        (decision,) = (await answer.json())["decisions"]

    assert "split" not in decision
    assert {candidate["endpoint"] for candidate in decision["candidates"]} == {"a", "b"}


async def test_an_explained_choice_names_the_revision_and_only_its_workers(start_upstream, start_router):
    stable, canary = await start_upstream("s"), await start_upstream("c")
    router = await start_router(split_config({"stable": 0, "canary": 1}, stable=[stable], canary=[canary]))
    await router.until_ready(2)
    async with router.post(BODY), router.get("/debug/route?explain=1&limit=1") as answer:
        shown = await answer.json()

    (decision,) = shown["decisions"]
    assert decision["split"] == {
        "revision": "canary",
        "weights": {"stable": 0, "canary": 1},
        "chosen_by": "weight",
    }
    assert [candidate["endpoint"] for candidate in decision["candidates"]] == ["c"]
    assert {e["id"]: (e["service"], e["revision"]) for e in shown["endpoints"]} == {
        "s": ("ns/svc", "stable"),
        "c": ("ns/svc", "canary"),
    }


async def stats_of(router, trust):
    async with router.get("/internal/revision-stats", headers=trust.headers()) as answer:
        assert answer.status == 200
        return await answer.json()


@pytest.mark.parametrize(
    ("behaviour", "body", "requests", "errors", "streams"),
    [
        (status_of(200), BODY, 4, 0, 0),
        (events(b"data: 1\n\n", b"data: [DONE]\n\n"), STREAM, 4, 0, 4),
        (status_of(400), BODY, 4, 0, 0),
        (status_of(429), BODY, 4, 0, 0),
        (status_of(500), BODY, 4, 4, 0),
        (status_of(503), BODY, 4, 4, 0),
        (reset, BODY, 4, 4, 0),
        (events(b"data: 1", then_cut=True), STREAM, 4, 4, 0),
        (events(b"data: 1\n\n", b"data: 2", then_cut=True), STREAM, 4, 4, 4),
        (draining, BODY, 0, 0, 0),
    ],
    ids=["good", "stream", "400", "429", "500", "503", "reset", "no first event", "broken stream", "draining"],
)
async def test_answers_are_counted_by_revision_and_only_a_workers_fault_is_an_error(
    behaviour, body, requests, errors, streams, start_upstream, start_router
):
    trust = Trust.generate()
    worker = await start_upstream("c", behaviour)
    router = await start_router(split_config({"canary": 1}, canary=[worker]), trust)

    for _ in range(4):  # each time ready again: some behaviours take the worker out of the pool
        await router.until_ready(1)
        await ask(router, 1, body)
    stats = await stats_of(router, trust)

    shown = stats["services"]["ns/svc"]["canary"]
    assert (shown["requests"], shown["errors"], shown["ttft"]["counts"][-1]) == (requests, errors, streams)
    assert len(shown["ttft"]["counts"]) == len(shown["ttft"]["bounds_s"]) + 1
    assert shown["ttft"]["counts"] == sorted(shown["ttft"]["counts"])


async def test_a_client_that_leaves_is_no_error_of_the_worker(start_upstream, start_router, until):
    async def hang(request, upstream):
        await asyncio.Event().wait()
        return web.Response()

    trust = Trust.generate()
    worker = await start_upstream("c", hang)
    router = await start_router(split_config({"canary": 1}, canary=[worker]), trust)
    await router.until_ready(1)

    asking = asyncio.create_task(router.session.post(router.url + "/v1/completions", json=BODY))
    await until(lambda: worker.num_calls == 1)
    asking.cancel()
    await until(lambda: router.app._pool.get("c").num_in_flight == 0)
    stats = await stats_of(router, trust)

    assert stats["services"]["ns/svc"]["canary"]["errors"] == 0


async def test_the_counters_are_shown_only_to_holders_of_the_releases_token(start_upstream, start_router):
    trust = Trust.generate()
    worker = await start_upstream("c")
    router = await start_router(split_config({"canary": 1}, canary=[worker]), trust, api_keys=("tenant",))

    async with (
        router.get("/internal/revision-stats", headers={"Authorization": "Bearer tenant"}) as tenant,
        router.get("/internal/revision-stats") as nobody,
        router.get("/internal/revision-stats", headers=trust.headers()) as operator,
    ):
        statuses = tenant.status, nobody.status, operator.status
        boot = (await operator.json())["boot"]

    assert statuses == (401, 401, 200)
    assert len(boot) == 16
    assert trust.token not in boot


async def test_without_a_trust_folder_nobody_is_shown_the_counters(start_upstream, start_router):
    router = await start_router(split_config({}, r=[await start_upstream("c")]))

    async with router.get("/internal/revision-stats") as answer:
        assert answer.status == 401


async def revisions_of(router, users, key=None):
    """User -> the workers that answered two requests of it."""
    found = {}
    for user in users:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        async with (
            router.post({**BODY, "user": user}, headers=headers) as first,
            router.post({**BODY, "user": user}, headers=headers) as second,
        ):
            found[user] = {answer.headers["x-quire-worker"] for answer in (first, second)}
    return found


async def test_a_sticky_canary_keeps_each_user_at_one_revision_and_grows_without_moving_others(
    start_upstream, start_router, until
):
    workers = {name: [await start_upstream(name)] for name in ("stable", "canary")}
    router = await start_router(split_config({"stable": 80, "canary": 20}, "user", **workers))
    await router.until_ready(2)
    users = [f"user-{number}" for number in range(150)]

    small = await revisions_of(router, users)
    write_config(router.config_path, split_config({"stable": 50, "canary": 50}, "user", **workers))
    await until(lambda: router.app._pool.weights("m") == {"stable": 50, "canary": 50})
    large = await revisions_of(router, users)
    async with router.get("/debug/route", params={"explain": "1", "limit": "1"}) as answer:
        decision = (await answer.json())["decisions"][0]

    early, later = ({user for user in users if found[user] == {"canary"}} for found in (small, large))
    assert all(len(found[user]) == 1 for found in (small, large) for user in users)
    assert 15 <= len(early) <= 45
    assert 55 <= len(later) <= 95
    assert early < later
    assert decision["split"]["chosen_by"] == "sticky"


async def test_a_sticky_tenant_without_its_revision_goes_to_another_and_a_rolled_back_canary_gets_nobody(
    start_upstream, start_router, until
):
    workers = {name: [await start_upstream(name)] for name in ("stable", "canary")}
    router = await start_router(split_config({"stable": 1, "canary": 10_000}, "tenant", **workers))
    await router.until_ready(2)

    canary = await revisions_of(router, ["a"], key="k")
    workers["canary"][0].ready_status = 503
    await router.until_ready(1)
    without = await revisions_of(router, ["a"], key="k")
    workers["canary"][0].ready_status = 200
    await router.until_ready(2)
    write_config(router.config_path, split_config({"stable": 1, "canary": 0}, "tenant", **workers))
    await until(lambda: router.app._pool.weights("m") == {"stable": 1, "canary": 0})
    back = await revisions_of(router, ["a"], key="k")

    assert [found["a"] for found in (canary, without, back)] == [{"canary"}, {"stable"}, {"stable"}]
