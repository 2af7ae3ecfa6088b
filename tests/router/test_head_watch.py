"""Connections that send no whole head: closed in time, while those that do are served."""

import asyncio

import pytest
from aiohttp import web

from quire_router.head_watch import HeadWatch
from quire_router.server import RouterServer

HEAD = b"GET / HTTP/1.1\r\nHost: r\r\n"
POLL_S = 0.02
LIMIT_S = 0.3


@pytest.fixture
async def port():
    async def answer(request):
        return web.Response(text="ok")

    runner = web.ServerRunner(
        RouterServer(answer, max_body_bytes=100, heads=HeadWatch(LIMIT_S, 60)), shutdown_timeout=0.1
    )
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


async def drip(port, parts):
    """Send these parts slowly; what came back when the connection was closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    told = asyncio.create_task(reader.read())
    try:
        for part in parts:
            if told.done() or writer.is_closing():
                break
            writer.write(part)
            await asyncio.sleep(POLL_S)
        return await asyncio.wait_for(told, 30)
    except ConnectionError:
        return b""
    finally:
        told.cancel()
        await asyncio.gather(told, return_exceptions=True)
        writer.close()


@pytest.mark.parametrize(
    "parts",
    [[], [b"\r\n"] * 500, [HEAD, *([b"X-A: b\r\n"] * 100)], [bytes([byte]) for byte in HEAD * 10]],
    ids=["nothing", "empty lines", "a header now and then", "a byte now and then"],
)
async def test_who_never_ends_a_head_is_cut_off(parts, port):
    found = await asyncio.gather(*(drip(port, parts) for _ in range(50)))

    assert [told for told in found if b" 200 " in told] == []


async def test_a_connection_whose_head_came_in_time_is_kept(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    for _ in range(3):
        writer.write(HEAD + b"\r\n")
        told = await asyncio.wait_for(reader.readuntil(b"ok"), 30)
        await asyncio.sleep(POLL_S)
        for _ in range(20):
            await asyncio.sleep(POLL_S)
        assert told.startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_more_connections_than_the_bound_are_refused_and_their_places_come_back(port, logged):
    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]
    for _, writer in kept:
        writer.write(HEAD + b"\r\n")
    told = [await asyncio.wait_for(reader.readuntil(b"ok"), 30) for reader, _ in kept]

    beyond = await asyncio.gather(*(drip(port, [HEAD + b"\r\n"]) for _ in range(20)))
    for _, writer in kept:
        writer.write(HEAD + b"Connection: close\r\n\r\n")
    again = [await asyncio.wait_for(reader.read(), 30) for reader, _ in kept]
    for _, writer in kept:
        writer.close()
    after = await drip(port, [HEAD + b"Connection: close\r\n\r\n"])

    assert [b" 200 " in text for text in (*told, *again)] == [True] * 120
    assert beyond == [b""] * 20
    assert b" 200 " in after
    assert logged().count("too_many_connections") == 1
