"""An answer in one piece says the same to its client as aiohttp's own would."""

import asyncio

import pytest
from aiohttp import web

from quire_router.server import RouterServer
from quire_router.whole_response import WholeResponse

LATER = {"date"}
"""Headers whose value is the time."""


@pytest.fixture
async def ask():
    """Sends requests over one connection to a server that answers as `kind` says; the answers, up to where the connection ends."""
    runners = []

    async def start(kind, requests, **answer):
        async def handle(request):
            response = kind(headers={"Content-Type": "text/plain", "X-A": "b"}, **answer)
            if request.path == "/last":
                response.force_close()
            return response

        runner = web.ServerRunner(RouterServer(handle, max_body_bytes=1000))
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(requests)
        async with asyncio.timeout(60):
            found = await reader.read()
        writer.close()
        return found

    yield start
    for runner in runners:
        await runner.cleanup()


def parsed(answers):
    """Each line of a head, in lower case and in order, and what is no head."""
    lines = answers.split(b"\r\n")
    return sorted(line.lower() for line in lines if line.partition(b":")[0].lower().decode() not in LATER)


@pytest.mark.parametrize(
    ("requests", "answer"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /last HTTP/1.1\r\nHost: x\r\n\r\n", {"body": b"hello"}),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {"body": b"hello", "status": 503}),
        (b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET /a HTTP/1.0\r\n\r\n", {"body": b"hello"}),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {"body": b"hello"}),
        (b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n", {"body": b"", "status": 204}),
        (b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n", {"body": b""}),
    ],
    ids=["keep-alive, then the last", "closed by the client", "1.0", "head", "no content", "empty"],
)
async def test_every_answer_reads_as_aiohttps_own(ask, requests, answer):
    expected = await ask(web.Response, requests, **answer)

    found = await ask(WholeResponse, requests, **answer)

    assert parsed(found) == parsed(expected)
    assert found.startswith(b"HTTP/1.")
