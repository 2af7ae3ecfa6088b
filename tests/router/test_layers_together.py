"""What one layer does must reach the others: who pays when a stream is refused late, left to somebody else, or cannot be closed."""

import asyncio
import contextlib
import json

import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDict
from prometheus_client import CollectorRegistry

from quire_contract.openai.requests import RoutingFields
from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import (
    AdmissionSettings,
    FaultSettings,
    FilterEntry,
    RouterSettingsEntry,
    SavingSettings,
)
from quire_contract.router_tenants import TenantEntry, TenantLimitsEntry
from quire_contract.trust import Trust
from quire_router.answer import Answer
from quire_router.call import Call, Outcome, Usage
from quire_router.clocks import Clocks
from quire_router.endpoint_pool import EndpointPool
from quire_router.live_config import LiveConfig
from quire_router.model_versions import ModelVersions
from quire_router.revision_stats import RevisionStats
from quire_router.saving import SavingLayer
from quire_router.saving_metrics import SavingMetrics
from tests.router.tenant_help import bearer, key_entry

STREAM = {"model": "m", "prompt": "x" * 40, "max_tokens": 20, "stream": True, "temperature": 0}
"""10 tokens of prompt, as they are guessed without a tokenizer."""
LIMITS = TenantLimitsEntry(requests_per_minute=1, tokens_per_day=30, max_concurrent_requests=1)


def config_of(*upstreams, **admission):
    return RouterConfig(
        models=[ModelEntry(name="m")],
        endpoints=[EndpointEntry(id=u.id, url=u.url, models=["m"]) for u in upstreams],
        tenants=[TenantEntry(id="t", keys=[key_entry("k")], limits=LIMITS)],
        settings=RouterSettingsEntry(admission=AdmissionSettings(**{"comment_s": 0.02, **admission})),
    )


async def stream(router, then):
    """`then` is called once it waits and knows it."""
    async with router.post(STREAM, headers=bearer("k")) as answer:
        begun = await answer.content.readuntil(b"\n\n")
        then()
        return answer.status, begun, await answer.read()


async def test_a_stream_that_is_refused_after_it_began_to_wait_costs_nothing(start_router, logged, until):
    router = await start_router(config_of(no_endpoint_timeout_s=600))
    room, found = router.app._pool.on_change.__self__, []

    def hold(timeout_s):
        write_config(router.config_path, config_of(no_endpoint_timeout_s=timeout_s))

    for _ in range(3):
        hold(600)
        await until(lambda: room._rules.no_endpoint_timeout_s == 600)
        found.append(await stream(router, then=lambda: hold(0.1)))
        await until(lambda: room._rules.no_endpoint_timeout_s == 0.1)

    assert [(status, begun, b"no_endpoint" in rest) for status, begun, rest in found] == [
        (200, b": waiting\n\n", True)
    ] * 3
    assert logged().count("status=503") == 3


async def test_a_stream_whose_worker_refuses_it_after_it_waited_costs_nothing(start_upstream, start_router, until):
    async def refuse(request, upstream):
        return web.json_response({"error": {"message": "broken"}}, status=500)

    worker = await start_upstream("a", refuse)
    router = await start_router(config_of(worker, no_endpoint_timeout_s=20))
    endpoint, found = router.app._pool.get("a"), []

    def come_back():
        worker.ready_status = 200

    for number in (1, 2):
        worker.ready_status = 503
        await until(lambda: not endpoint.ready)
        found.append(await stream(router, then=come_back))
        assert worker.num_calls == number

    assert [(status, b'"broken"' in rest) for status, _, rest in found] == [(200, True)] * 2


class Kept:
    """A saving layer that shares generations, before a source that tells what it used."""

    def __init__(self):
        live = LiveConfig()
        settings = RouterSettingsEntry(saving=SavingSettings(coalesce=True))
        live.swap(RouterConfig(models=[], endpoints=[], settings=settings))
        self.layer = SavingLayer(
            live=live,
            versions=ModelVersions(EndpointPool(RevisionStats(boot="b"))),
            redis=None,
            metrics=SavingMetrics(CollectorRegistry()),
            clocks=Clocks(),
        )
        self.go_on = asyncio.Event()

    async def source(self, call, outcome):
        async def parts():
            yield b": waiting\n\n"
            await self.go_on.wait()
            outcome.target, outcome.usage = "m", Usage(prompt=7)
            for _ in range(3):
                outcome.usage.output += 1
                yield b"data: {}\n\n"

        return Answer(status=200, headers=CIMultiDict(), parts=parts(), is_events=True)

    async def ask(self):
        outcome = Outcome()
        return outcome, await self.layer.answer(call(), outcome, self.source)


def call():
    return Call(
        request_id="r",
        model="m",
        targets=("m",),
        path="/v1/completions",
        body=json.dumps(STREAM).encode(),
        is_stream=True,
        first_byte_timeout_s=None,
        prompt=None,
        keep_key=False,
        headers=CIMultiDict(),
    )


async def test_who_pays_for_an_answer_that_was_left_to_it_pays_what_its_worker_says():
    kept = Kept()
    (_, first), (outcome, second) = await kept.ask(), await kept.ask()

    await anext(second.parts)
    await first.close()
    kept.go_on.set()
    rest = [part async for part in second.parts]
    await second.close()

    assert b"".join(rest) == b"data: {}\n\n" * 3
    assert (outcome.cached_answer, outcome.target, outcome.usage) == ("", "m", Usage(prompt=7, output=3))


async def test_a_call_with_a_time_of_its_own_does_not_end_with_anothers(start_upstream, start_router, until):
    go_on = asyncio.Event()

    async def wait(request, upstream):
        await go_on.wait()
        return web.json_response({})

    worker = await start_upstream("a", wait)
    config = RouterConfig(
        models=[ModelEntry(name="m")],
        endpoints=[EndpointEntry(id="a", url=worker.url, models=["m"])],
        settings=RouterSettingsEntry(saving=SavingSettings(coalesce=True)),
    )
    router = await start_router(config)
    await router.until_ready(1)

    async def ask():
        async with router.post({"model": "m", "prompt": "x", "temperature": 0, "timeout_s": 60}) as answer:
            return answer.headers["x-quire-cache"]

    asking = [asyncio.create_task(ask()) for _ in range(2)]
    await until(lambda: worker.num_calls == 2)
    go_on.set()

    assert await asyncio.gather(*asking) == ["miss", "miss"]


async def test_an_answer_that_cannot_be_closed_still_gives_back_what_was_held_for_it():
    released = []

    async def parts():
        try:
            yield b"a"
        finally:
            raise OSError("a connection that could not be closed")

    async def release():
        released.append("place")

    inner = Answer(status=200, headers=CIMultiDict(), parts=parts(), release=release)
    await anext(inner.parts)

    with pytest.raises(OSError, match="could not be closed"):
        await inner.close()

    assert released == ["place"]


def event(**choice):
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


ALL = [event(text="a"), event(text="b", finish_reason="stop"), b"data: [DONE]\n\n"]


def sending(parts, then=None):
    async def behave(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": s c3RhdGU\n: u 7 3 0\n: t 0 1\n" + b"".join(parts))
        if then is not None:
            await then.wait()
            request.transport.abort()
        return response

    return behave


@pytest.mark.parametrize(("revision", "mark"), [("r1", "hit"), ("r2", "miss")], ids=["same", "another"])
async def test_a_stream_that_another_revision_ended_is_not_kept(revision, mark, start_upstream, start_router, until):
    dies = asyncio.Event()
    first = await start_upstream("a", sending(ALL[:1], dies))
    second = await start_upstream("b", sending(ALL[1:]))
    second.ready_status = 503
    revisions = {"a": "r1", "b": revision}
    endpoints = [
        EndpointEntry(id=u.id, url=u.url, models=["m"], service="ns/m", revision=revisions[u.id])
        for u in (first, second)
    ]
    saving = RouterSettingsEntry(saving=SavingSettings(response_cache=True))
    models = [ModelEntry(name="m", service="ns/m")]
    router = await start_router(RouterConfig(models=models, endpoints=endpoints, settings=saving), Trust.generate())
    await router.until_ready(1)

    async with router.post(STREAM) as answer:
        got = await answer.content.readany()
        second.ready_status = 200
        await router.until_ready(2)
        dies.set()
        got += await answer.content.read()
    async with router.post(STREAM) as answer:
        again = answer.headers["x-quire-cache"]

    assert (got, again) == (b"".join(ALL), mark)


async def test_a_kept_answer_says_nothing_of_the_limits_of_the_call_that_it_was_made_for(
    start_upstream, start_router, until
):
    worker = await start_upstream("a", sending(ALL))
    saving = RouterSettingsEntry(saving=SavingSettings(response_cache=True))
    config = config_of(worker)
    limited = RouterConfig(models=config.models, endpoints=config.endpoints, tenants=config.tenants, settings=saving)
    router = await start_router(limited)
    await router.until_ready(1)

    async with router.post(STREAM, headers=bearer("k")) as first:
        await first.read()
    free = [TenantEntry(id="t", keys=[key_entry("k")])]
    write_config(router.config_path, msgspec.structs.replace(limited, tenants=free))
    await until(lambda: router.app._access.tenants.tenants["t"].limits.requests_per_minute is None)
    async with router.post(STREAM, headers=bearer("k")) as second:
        await second.read()

    assert [a.headers["x-quire-cache"] for a in (first, second)] == ["miss", "hit"]
    assert ["x-ratelimit-limit-requests" in a.headers for a in (first, second)] == [True, False]


def test_a_part_that_cannot_follow_a_configuration_does_not_keep_the_others_from_it():
    live = LiveConfig()
    followed = []

    def fails(config):
        raise RuntimeError("cannot")

    for follower in (fails, followed.append):
        live.follow(follower)
    live.swap(RouterConfig(models=[ModelEntry(name="m")], endpoints=[]))

    assert [config.models[0].name for config in followed] == ["m"]
    assert live.digest


async def test_streams_that_may_be_hedged_take_their_places_before_others_look_for_one(
    start_upstream, start_router, until
):
    running = asyncio.Semaphore(1)
    crowded = []

    async def answer(request, upstream):
        crowded.append(running.locked())
        async with running:
            await asyncio.sleep(0)
        return web.Response(body=b"".join(ALL), headers={"Content-Type": "text/event-stream"})

    worker = await start_upstream("a", answer)
    config = config_of(worker, in_flight_per_worker=1)
    faults = msgspec.structs.replace(config.settings, faults=FaultSettings(hedge_after_s=60))
    router = await start_router(msgspec.structs.replace(config, settings=faults, tenants=[]))
    await router.until_ready(1)
    source = router.app._routes["/v1/completions"][1].__self__._source

    async def ask():
        answer = await source(msgspec.structs.replace(call(), fields=RoutingFields(model="m", prompt="x")), Outcome())
        async with contextlib.aclosing(answer.parts):
            got = [part async for part in answer.parts]
        await answer.close()
        return b"data: [DONE]" in b"".join(got)

    ends = await asyncio.gather(*(ask() for _ in range(20)))

    assert (ends, crowded) == ([True] * 20, [False] * 20)


async def test_a_stream_that_a_filter_ends_is_no_client_that_left(start_upstream, start_router):
    cut = [event(text="a secret"), event(text=" more", finish_reason="stop"), b"data: [DONE]\n\n"]
    worker = await start_upstream("a", sending(cut))
    filters = [FilterEntry(name="f", stage="output", words=["secret"])]
    config = msgspec.structs.replace(config_of(worker), settings=RouterSettingsEntry(filters=filters))
    router = await start_router(config, admin_port=0, admin_token="a token of the tests")
    await router.until_ready(1)

    async with router.post(STREAM, headers=bearer("k")) as answer:
        body = await answer.read()
    async with router.session.get(
        router.app.admin_url + "/admin/usage", headers=bearer("a token of the tests")
    ) as answer:
        records = await answer.json()

    assert (b"content_filter" in body, b"secret" in body) == (True, False)
    assert [record["status"] for record in records["data"]] == [200]
