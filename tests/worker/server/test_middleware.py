"""What clients get when a handler itself is broken."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quire_worker.server.access import Access
from quire_worker.server.lifecycle import Lifecycle
from quire_worker.server.metrics import Metrics
from quire_worker.server.middleware import Edge


async def broken(request: web.Request) -> web.StreamResponse:
    raise RuntimeError("secret insides")


async def broken_later(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: {}\n\n")
    raise RuntimeError("secret insides")


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    app = web.Application()
    Edge(Access((), None), Metrics("tiny", "0"), Lifecycle()).install(app)
    app.add_routes([web.get("/broken", broken), web.get("/later", broken_later)])
    async with TestServer(app) as server:
        yield str(server.make_url(""))


async def test_a_broken_handler_is_a_nested_500_that_tells_no_insides(http: aiohttp.ClientSession) -> None:
    async with served() as base:
        response = await http.get(base + "/broken")
        text = await response.text()

    assert response.status == 500
    assert "internal_error" in text
    assert "secret insides" not in text


async def test_a_handler_that_breaks_inside_an_answer_cuts_the_connection(http: aiohttp.ClientSession) -> None:
    async with served() as base:
        response = await http.get(base + "/later")
        first = await response.content.readline()

        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()

    assert first == b"data: {}\n"
