"""Where a stream goes on when its worker dies and others are full: at one with room if there is one, otherwise at once all the same."""

import asyncio
import json

import pytest
from aiohttp import web

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig
from quire_contract.router_settings import AdmissionSettings, RouterSettingsEntry
from tests.router.test_mending import TRUST, WHOLE, cut, worker

IDS = ("w0", "w1", "w2")


@pytest.fixture
def serve(start_upstream, start_router):
    """Workers of "m" with room for one request each, of which the first breaks its streams; "only-w1" is served by w1 alone."""

    async def start(gate):
        async def held(request, upstream):
            if json.loads(upstream.bodies[-1]).get("model", "m") != "m":
                await gate.wait()
                return web.json_response({})
            return await (worker(until=5, then=cut) if upstream.id == "w0" else worker())(request, upstream)

        upstreams = [await start_upstream(one, held) for one in IDS]
        router = await start_router(
            RouterConfig(
                models=[ModelEntry(name=name) for name in ("m", *(f"only-{one}" for one in IDS))],
                endpoints=[EndpointEntry(id=u.id, url=u.url, models=["m", f"only-{u.id}"]) for u in upstreams],
                settings=RouterSettingsEntry(admission=AdmissionSettings(in_flight_per_worker=1)),
            ),
            TRUST,
        )
        await router.until_ready(3)
        return router, upstreams

    return start


async def ask(router, body):
    async with router.post(body) as answer:
        return answer.headers["x-quire-worker"], await answer.read()


async def fill(router, upstreams, names, until):
    before = [u.num_calls for u in upstreams]
    tasks = [asyncio.create_task(ask(router, {"model": f"only-{one}", "prompt": "x"})) for one in names]
    await until(lambda: sum(u.num_calls for u in upstreams) == sum(before) + len(names))
    return tasks


@pytest.mark.parametrize("full", [("w1",), ("w2",), ("w1", "w2")], ids=["one", "the other", "both"])
@pytest.mark.parametrize("number", range(3))
async def test_a_stream_goes_on_at_a_worker_with_room_and_waits_for_none(full, number, serve, until):
    gate = asyncio.Event()
    router, upstreams = await serve(gate)
    tasks = await fill(router, upstreams, full, until)

    found = {}
    for i in range(8):
        prompt = f"{number} {i} " * 400
        calls = [u.num_calls for u in upstreams]
        began, text = await ask(router, {"model": "m", "prompt": prompt, "stream": True})
        if began == "w0":
            found[i] = [u.id for u, before in zip(upstreams[1:], calls[1:], strict=True) if u.num_calls > before]
        assert text == WHOLE
    gate.set()
    await asyncio.gather(*tasks)

    free = [one for one in IDS[1:] if one not in full]
    assert found
    assert all(went == (free or went) and len(went) == 1 for went in found.values())
    await until(lambda: all(endpoint.num_in_flight == 0 for endpoint in router.app._pool))
