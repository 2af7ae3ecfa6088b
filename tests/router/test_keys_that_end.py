"""Keys and tenants that end while their requests wait or run."""

import asyncio
import json

import msgspec
import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry, SavingSettings
from quire_contract.router_tenants import PriceEntry, TenantLimitsEntry
from quire_router.call import Tenant
from quire_router.tenants import TenantBook
from tests.router.tenant_help import bearer, key_entry, tenant, until_true

TOKEN = "t" * 32
STREAM = {"model": "m", "prompt": "hello", "stream": True, "max_tokens": 50}
LIMITS = TenantLimitsEntry(tokens_per_day=1000, max_concurrent_requests=5)
OTHER = tenant("other", "other")


class Slow:
    """A worker that streams five tokens as it may, and keeps what is no stream until then."""

    def __init__(self):
        self.gate = asyncio.Event()

    async def __call__(self, request, upstream):
        if not json.loads(upstream.bodies[-1]).get("stream"):
            await self.gate.wait()
            return web.json_response({"usage": {"prompt_tokens": 1, "completion_tokens": 1}})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(5):
            await response.write(b'data: {"choices": [{"text": "w%d"}]}\n\n' % number)
            await self.gate.wait()
        said = b'data: {"choices": [],"usage":{"prompt_tokens":7,"completion_tokens":5}}\n\ndata: [DONE]\n\n'
        await response.write(said)
        return response


@pytest.fixture
def serve(start_upstream, start_router):
    async def start(slow, **admission):
        worker = await start_upstream("a", slow)
        config = RouterConfig(
            models=[ModelEntry(name="m", price=PriceEntry(input="1000", output="1000"))],
            endpoints=[EndpointEntry(id="a", url=worker.url, models=["m"])],
            tenants=[tenant("t", "k", limits=LIMITS), OTHER],
            settings=RouterSettingsEntry(admission=AdmissionSettings(**admission)),
        )
        router = await start_router(config, admin_port=0, admin_token=TOKEN)
        await router.until_ready(1)
        return router, worker, config

    return start


ENDS = [
    ([tenant("t", key_entry("newer", "k0"), limits=LIMITS), OTHER], 401),
    ([tenant("t", "k", limits=LIMITS, suspended=True), OTHER], 403),
    ([tenant("t", key_entry("k", "k0", 1.0), limits=LIMITS), OTHER], 401),
    ([OTHER], 401),
]
WAYS = pytest.mark.parametrize(("tenants", "status"), ENDS, ids=["revoked", "suspended", "expired", "tenant gone"])


async def refused(router, status, key="k"):
    """Wait until the router knows: a new request gets that status."""

    async def is_told():
        async with router.get("/v1/models", headers=bearer(key)) as answer:
            return answer.status == status

    await until_true(is_told)


async def records(router):
    async with router.session.get(router.app.admin_url + "/admin/usage", headers=bearer(TOKEN)) as answer:
        return [record for record in (await answer.json())["data"] if record["tenant"] == "t"]


@WAYS
async def test_a_stream_that_runs_goes_on_to_its_end_and_is_billed_once(tenants, status, serve, until):
    slow = Slow()
    router, worker, config = await serve(slow)

    async with router.post(STREAM, headers=bearer("k")) as answer:
        text = await answer.content.readuntil(b"\n\n")
        write_config(router.config_path, msgspec.structs.replace(config, tenants=tenants))
        await refused(router, status)
        slow.gate.set()
        text += await answer.read()
    await until(lambda: all(endpoint.num_in_flight == 0 for endpoint in router.app._pool))
    found = await records(router)

    assert (answer.status, text.count(b'"text"'), text.endswith(b"[DONE]\n\n")) == (200, 5, True)
    assert [(r["status"], r["prompt_tokens"], r["output_tokens"], r["cost"]) for r in found] == [(200, 7, 5, "0.012")]
    assert worker.num_calls == 1


@WAYS
async def test_a_request_that_waits_is_refused_when_its_turn_comes(tenants, status, serve, until):
    slow = Slow()
    router, worker, config = await serve(slow, in_flight_per_worker=1)
    other = asyncio.create_task(told(router, {"model": "m", "prompt": "x"}, "other"))
    await until(lambda: worker.num_calls == 1)
    whole = asyncio.create_task(told(router, {"model": "m", "prompt": "x"}))
    stream = asyncio.create_task(told(router, STREAM))
    await until(lambda: num_waiting(router) == 2)

    write_config(router.config_path, msgspec.structs.replace(config, tenants=tenants))
    await refused(router, status)
    slow.gate.set()
    found = [(await task)[0] for task in (other, whole, stream)]

    assert found == [200, status, status]
    assert worker.num_calls == 1
    assert {(r["status"], r["cost"]) for r in await records(router)} == {(status, "0")}


async def test_who_shares_a_request_with_a_key_that_was_revoked_gets_an_answer_of_its_own(serve, until):
    slow = Slow()
    router, worker, config = await serve(slow, in_flight_per_worker=1)
    both = tenant("t", "k", "k2", limits=LIMITS)
    shares = msgspec.structs.replace(config.settings, saving=SavingSettings(coalesce=True))
    config = msgspec.structs.replace(config, tenants=[both, OTHER], settings=shares)
    write_config(router.config_path, config)
    await refused(router, 200, "k2")
    other = asyncio.create_task(told(router, {"model": "m", "prompt": "x"}, "other"))
    await until(lambda: worker.num_calls == 1)
    same = {"model": "m", "prompt": "y", "temperature": 0}
    first = asyncio.create_task(told(router, same))
    await until(lambda: num_waiting(router) == 1)
    second = asyncio.create_task(told(router, same, "k2"))

    write_config(
        router.config_path,
        msgspec.structs.replace(config, tenants=[tenant("t", key_entry("k2", "k1"), limits=LIMITS), OTHER]),
    )
    await refused(router, 401)
    slow.gate.set()
    found = [(await task)[0] for task in (other, first, second)]

    assert found == [200, 401, 200]
    assert worker.num_calls == 2


async def test_a_stream_that_waited_hears_of_it_as_an_event(serve, until):
    slow = Slow()
    router, worker, config = await serve(slow, in_flight_per_worker=1, comment_s=0.02)
    other = asyncio.create_task(told(router, {"model": "m", "prompt": "x"}, "other"))
    await until(lambda: worker.num_calls == 1)

    async with router.post(STREAM, headers=bearer("k")) as answer:
        await answer.content.readuntil(b"\n\n")
        write_config(router.config_path, msgspec.structs.replace(config, tenants=ENDS[1][0]))
        await refused(router, 403)
        slow.gate.set()
        text = await answer.read()
    await other

    assert b'"code":"tenant_suspended"' in text
    assert [(r["status"], r["cost"]) for r in await records(router)] == [(403, "0")]


async def told(router, body, key="k"):
    async with router.post(body, headers=bearer(key)) as answer:
        return answer.status, await answer.read()


def num_waiting(router):
    return len(router.app._pool.on_change.__self__.waiters())


def test_a_key_is_known_as_it_stands_now_and_not_by_its_id_alone():
    book, before = TenantBook(None), tenant("t", key_entry("k", "k0"))
    presented = Tenant(entry=before, key_id="k0")

    found = []
    for entry in (before, tenant("t", key_entry("k", "k0"), suspended=True), tenant("t", key_entry("k2", "k0"))):
        book.swap(RouterConfig(models=[], endpoints=[], tenants=[entry]))
        known = book.key(presented)
        found.append(None if known is None else known.tenant.entry.suspended)

    assert found == [False, True, None]
