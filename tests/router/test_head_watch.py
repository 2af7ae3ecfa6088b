"""Connections that send no whole head: closed in time, while those that do are served."""

import asyncio
import contextlib
import sys

import aiohttp
import pytest
from aiohttp import web
from cluster.processes import free_ports

from quire_contract.router_config import write_config
from quire_router.head_watch import HeadWatch
from quire_router.server import RouterServer
from tests.router.processes import OwnProcess
from tests.router.tenant_help import until_true

HEAD = b"GET / HTTP/1.1\r\nHost: r\r\n"
POLL_S = 0.02
NUM_CONNECTIONS = 60
LIMIT_S = 1.0


@contextlib.asynccontextmanager
async def serving(heads):
    """The port of a server that answers."""

    async def answer(request):
        return web.Response(text="ok")

    runner = web.ServerRunner(RouterServer(answer, max_body_bytes=100, heads=heads), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
async def port():
    async with serving(HeadWatch(LIMIT_S)) as number:
        yield number


@pytest.fixture
async def crowded_port():
    """For so few connections, and heads with all the time that they need."""
    async with serving(HeadWatch(max_connections=NUM_CONNECTIONS)) as number:
        yield number


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
        return await asyncio.wait_for(told, 60)
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


async def test_a_later_head_has_no_more_time_than_the_first(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"\r\n")
    await asyncio.wait_for(reader.readuntil(b"ok"), 60)

    writer.write(HEAD)
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 60) == b""

    writer.close()


async def test_a_connection_whose_head_came_in_time_is_kept(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    for _ in range(3):
        writer.write(HEAD + b"\r\n")
        told = await asyncio.wait_for(reader.readuntil(b"ok"), 60)
        for _ in range(round(1.3 * LIMIT_S / POLL_S)):
            await asyncio.sleep(POLL_S)
        assert told.startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()


async def test_more_connections_than_the_bound_are_refused_and_their_places_come_back(crowded_port, logged):
    port = crowded_port
    kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(NUM_CONNECTIONS)]
    for _, writer in kept:
        writer.write(HEAD + b"\r\n")
    told = [await asyncio.wait_for(reader.readuntil(b"ok"), 60) for reader, _ in kept]

    beyond = await asyncio.gather(*(drip(port, [HEAD + b"\r\n"]) for _ in range(20)))
    for _, writer in kept:
        writer.write(HEAD + b"Connection: close\r\n\r\n")
    again = [await asyncio.wait_for(reader.read(), 60) for reader, _ in kept]
    for _, writer in kept:
        writer.close()
    after = await drip(port, [HEAD + b"Connection: close\r\n\r\n"])

    assert [b" 200 " in text for text in (*told, *again)] == [True] * 2 * NUM_CONNECTIONS
    assert beyond == [b""] * 20
    assert b" 200 " in after
    assert logged().count("too_many_connections") == 1


async def test_clients_that_take_all_files_do_not_keep_a_router_from_its_workers(start_upstream, make_config, tmp_path):
    worker = await start_upstream("a")
    write_config(tmp_path / "router.json", make_config(worker))
    (number,) = free_ports(1)
    few = ["sh", "-c", 'ulimit -n 128 && exec "$0" "$@"', sys.executable, "-m", "quire_router"]
    router = OwnProcess(
        [*few, "--config", str(tmp_path / "router.json"), "--port", str(number)], tmp_path / "router.log"
    )
    router.start()
    idle = []
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{number}") as session:

            async def is_ready():
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get("/ready") as reply:
                        return (await reply.json()).get("ready_endpoints") == 1

            await until_true(is_ready)
            idle = [await asyncio.open_connection("127.0.0.1", number) for _ in range(200)]
            statuses = []
            for _ in range(3):
                async with session.post("/v1/completions", json={"model": "m", "prompt": "x"}) as reply:
                    statuses.append(reply.status)
    finally:
        for _, writer in idle:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in idle), return_exceptions=True)
        router.kill()

    assert statuses == [200] * 3
    assert worker.num_calls == 3
    assert "too_many_connections" in (tmp_path / "router.log").read_text()
