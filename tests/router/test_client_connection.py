"""A client's connection over real sockets: what aiohttp's server does for its requests, ours does as well."""

import asyncio
import contextlib
import json

import pytest
from aiohttp import web

from quire_router.server import MAX_PATHS, RouterServer

POLL_S = 0.005


class Server:
    """Answers with what it saw of a request; some paths wait, fail, or answer too early."""

    def __init__(self):
        self.begun, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.paths = []

    async def start(self):
        self.runner = web.ServerRunner(RouterServer(self.handle, max_body_bytes=10**6), shutdown_timeout=60.0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.address = self.runner.addresses[0][:2]

    async def handle(self, request):
        self.paths.append(request.path)
        if request.path == "/fails":
            raise KeyError("a secret")
        if request.path == "/turn":
            asyncio.get_running_loop().call_soon(self.paths.append, "somebody else")
        if request.path == "/early":
            return web.Response(text="no")
        if request.path == "/waits":
            self.begun.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        body = await request.read()
        seen = {"path": request.path, "remote": request.remote, "size": len(body), "query": request.query_string}
        return web.json_response(seen)


@pytest.fixture
async def server():
    made = Server()
    await made.start()
    yield made
    await made.runner.cleanup()


@pytest.fixture
async def connect(server):
    async with contextlib.AsyncExitStack() as stack:

        async def opened():
            reader, writer = await asyncio.open_connection(*server.address)
            stack.callback(writer.close)
            return reader, writer

        yield opened


def get(path, *headers):
    return b"GET %b HTTP/1.1\r\nHost: x\r\n%b\r\n" % (path.encode(), b"".join(headers))


async def answer(reader):
    """Status and body of the next answer."""
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split()[1]), json.loads(await reader.readexactly(size) or b"null")


async def test_requests_of_one_connection_are_answered_one_after_another(server, connect):
    reader, writer = await connect()

    writer.write(get("/waits") + get("/b"))
    await server.begun.wait()
    before = list(server.paths)
    server.go_on.set()
    answers = [await answer(reader) for _ in range(2)]

    assert before == ["/waits"]
    assert [(status, seen["path"], seen["remote"]) for status, seen in answers] == [
        (200, "/waits", "127.0.0.1"),
        (200, "/b", "127.0.0.1"),
    ]


async def test_many_requests_in_one_write_are_all_answered_in_their_order(connect):
    reader, writer = await connect()
    paths = [f"/{number}" for number in range(200)]

    writer.write(b"".join(map(get, paths)))
    answers = [await answer(reader) for _ in paths]

    assert [seen["path"] for _, seen in answers] == paths


async def test_a_body_that_comes_in_pieces_and_chunks_is_one(connect):
    reader, writer = await connect()

    writer.write(b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    await writer.drain()
    writer.write(
        b"2\r\nde\r\n0\r\n\r\n" + b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000
    )
    answers = [await answer(reader) for _ in range(2)]

    assert [seen["size"] for _, seen in answers] == [5, 300_000]


async def test_who_sends_many_requests_at_once_waits_for_the_turn_of_others_between_them(server, connect):
    reader, writer = await connect()

    writer.write(get("/turn") + 3 * get("/a"))
    answers = [await answer(reader) for _ in range(4)]

    assert [status for status, _ in answers] == [200] * 4
    assert server.paths == ["/turn", "somebody else", "/a", "/a", "/a"]


async def test_a_client_that_waits_to_be_asked_for_its_body_is_asked_once_and_only_if_the_body_is_wanted(connect):
    reader, writer = await connect()
    head = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"

    writer.write(head % b"a")
    asked = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    writer.write(b"abc" + head % b"b" + b"def")
    answers = [await answer(reader) for _ in range(2)]
    writer.write(head % b"early")
    unwanted = await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)

    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert [(status, seen["size"]) for status, seen in answers] == [(200, 3), (200, 3)]
    assert unwanted == b"HTTP/1.1 200 OK\r\n"


async def test_a_handler_is_cancelled_when_its_client_leaves(server, connect):
    _, writer = await connect()
    writer.write(get("/waits"))
    await server.begun.wait()

    writer.transport.abort()

    await asyncio.wait_for(server.cancelled.wait(), 60)


async def test_what_a_handler_fails_with_stays_in_the_log_and_the_connection_ends(server, connect, logged):
    reader, writer = await connect()

    writer.write(get("/fails") + get("/b"))
    told = await asyncio.wait_for(reader.read(), 60)

    head, _, body = told.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert json.loads(body)["error"]["type"] == "server_error"
    assert b"a secret" not in told
    assert "a secret" in logged()
    assert server.paths == ["/fails"]


async def test_the_rest_of_a_body_that_nobody_wanted_is_no_part_of_the_next_request(server, connect):
    reader, writer = await connect()

    writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\n\r\nabc")
    first = (await asyncio.wait_for(reader.readuntil(b"no"), 60))[:13]
    writer.write(b"x" * 199_997 + get("/b"))
    second = await answer(reader)

    assert first == b"HTTP/1.1 200 "
    assert (second[0], second[1]["path"]) == (200, "/b")


async def test_a_path_means_the_same_however_often_and_among_however_many_it_is_asked_for(server, connect):
    reader, writer = await connect()
    spelled = ["/a%62?q=1", "/a%62?q=1", "/ab", *(f"/{number}" for number in range(MAX_PATHS)), "/a%62?q=1", "/%"]

    seen = []
    for path in spelled:
        writer.write(get(path))
        seen.append((await answer(reader))[1])

    assert [one["path"] for one in seen] == [
        "/ab",
        "/ab",
        "/ab",
        *(f"/{number}" for number in range(MAX_PATHS)),
        "/ab",
        "/%",
    ]
    assert (seen[0]["query"], seen[2]["query"]) == ("q=1", "")


async def test_an_absolute_address_is_asked_for_by_its_path(connect):
    reader, writer = await connect()

    writer.write(get("http://elsewhere:1/a?b=c"))
    status, seen = await answer(reader)

    assert (status, seen["path"], seen["query"]) == (200, "/a", "b=c")


async def test_an_upgrade_that_nobody_wants_is_a_request_like_others(connect):
    reader, writer = await connect()

    writer.write(get("/a", b"Connection: Upgrade\r\n", b"Upgrade: websocket\r\n") + get("/b"))
    answers = [await answer(reader) for _ in range(2)]

    assert [seen["path"] for _, seen in answers] == ["/a", "/b"]


async def test_who_shuts_down_waits_for_what_runs_and_for_nobody_else(server, connect):
    busy, writer = await connect()
    idle, _ = await connect()
    writer.write(get("/waits"))
    await server.begun.wait()

    ending = asyncio.create_task(server.runner.cleanup())
    left = await asyncio.wait_for(idle.read(), 60)
    was_ending = not ending.done()
    server.go_on.set()
    status, _ = await answer(busy)
    await asyncio.wait_for(ending, 60)

    assert (left, was_ending, status) == (b"", True, 200)
    assert await busy.read() == b""
