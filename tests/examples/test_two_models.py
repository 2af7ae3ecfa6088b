"""examples/two-models.yaml, as `quire up` would serve it, in front of stand-ins for its two models: who answers what, and who stands in."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web

from quire_cli.local.served import ServedFiles, served_config
from quire_cli.manifest_files import load_resources
from quire_contract.router_config import EndpointEntry, write_config
from quire_router.__main__ import running
from quire_router.config import RouterSettings

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-models.yaml"
SMALL, LARGE = "duo-small", "duo-large"
POLL_S, START_S = 0.005, 120
EASY = "Hello"
HARD = "Prove that the integral of x^2 is x^3/3 + C, step by step.\n```python\ndef f(x):\n    return x ** 2\n```\n" * 20


class Model:
    """A worker that says which model it was asked for, or fails."""

    def __init__(self, name: str) -> None:
        self.name, self.status, self.url = name, 200, ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/ready":
            return web.Response()
        if request.path.startswith("/internal"):
            return web.Response(status=404)
        return web.json_response({"model": json.loads(await request.read())["model"]}, status=self.status)


@contextlib.asynccontextmanager
async def listening(model: Model) -> AsyncIterator[None]:
    runner = web.ServerRunner(web.Server(model.answer), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        model.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield
    finally:
        await runner.cleanup()


class Served:
    """The example behind a router."""

    def __init__(self, url: str, session: aiohttp.ClientSession, models: dict[str, Model]) -> None:
        self.models = models
        self._url, self._session = url, session

    async def ask(self, text: str, **headers: str) -> str:
        """Who answered."""
        body = {"model": "duo", "messages": [{"role": "user", "content": text}], "max_tokens": 5}
        async with self._session.post(self._url + "/v1/chat/completions", json=body, headers=headers) as answer:
            return (await answer.json())["model"]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    models = {name: Model(name) for name in (SMALL, LARGE)}
    loaded = load_resources([EXAMPLE])
    files = ServedFiles(manifests=(EXAMPLE,), settings=None)
    config = served_config(loaded, [one.service for one in loaded.services], files)
    path = tmp_path / "router.json"
    async with contextlib.AsyncExitStack() as stack:
        for model in models.values():
            await stack.enter_async_context(listening(model))
        endpoints = [EndpointEntry(id=m.name, url=m.url, models=[m.name]) for m in models.values()]
        write_config(path, msgspec.structs.replace(config, endpoints=endpoints))
        settings = RouterSettings(port=0, shutdown_timeout_s=0.2, config=path)
        app, url = await stack.enter_async_context(running(settings, None))
        session = await stack.enter_async_context(aiohttp.ClientSession())
        async with asyncio.timeout(START_S):
            while sum(endpoint.ready for endpoint in app._pool) < len(models):  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(POLL_S)
        yield Served(url, session, models)


async def test_easy_requests_go_to_the_small_model_and_hard_ones_to_the_large_one(served: Served) -> None:
    answered = [await served.ask(EASY), await served.ask(HARD), await served.ask(EASY, **{"x-quire-model": LARGE})]

    assert answered == [SMALL, LARGE, LARGE]


async def test_each_stands_in_for_the_other_when_that_fails(served: Served) -> None:
    served.models[LARGE].status = 500
    instead_of_large = await served.ask(HARD)
    served.models[LARGE].status, served.models[SMALL].status = 200, 500

    instead_of_small = await served.ask(EASY)

    assert (instead_of_large, instead_of_small) == (SMALL, LARGE)
