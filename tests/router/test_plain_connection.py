"""Requests that the extension reads, over real sockets: a client and a handler see no difference to those that aiohttp's parser reads."""

import asyncio
import contextlib
import json
import random
import weakref

import pytest
from aiohttp import web

from quire_router.head_watch import HeadWatch
from quire_router.plain_http import plain_http
from quire_router.plain_request import PlainRequest
from quire_router.server import RouterServer
from quire_router.whole_response import WholeResponse
from tests.router.tenant_help import until_true
from tests.router.test_malformed_http import ANSWERED, REFUSED
from tests.router.test_plain_http import drawn

PATHS = ("/v1/completions", "/v1/chat/completions", "/waits", "/fails", "/last", "/late", "/long", "/refused")
BODY = b'{"model":"m","prompt":"sound"}'
POLL_S = 0.005
LIMIT_S, HASTE_S = 60.0, 1.0
"""For a head. With the longer nothing here is cut off, however slow the machine."""
PAUSE_S = 0.3
"""For an answer to what may be no whole request."""


class Server:
    """Answers with what it saw of a request."""

    def __init__(self, plain, limit_s):
        self.plain, self.limit_s = plain, limit_s
        self.begun, self.go_on, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.num_plain = 0
        self.tasks = []

    async def start(self):
        server = RouterServer(self.handle, max_body_bytes=10_000, plain=self.plain, heads=HeadWatch(self.limit_s))
        self.runner = web.ServerRunner(server, shutdown_timeout=60.0)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0).start()
        self.address = self.runner.addresses[0][:2]

    async def handle(self, request):
        self.num_plain += type(request) is PlainRequest
        self.tasks.append(asyncio.current_task())
        if request.path == "/refused":
            return WholeResponse(status=401, headers={}, body=b"{}")
        if request.path == "/fails":
            raise KeyError("a secret")
        if request.path == "/waits":
            self.begun.set()
            try:
                await self.go_on.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.path == "/late":
            await asyncio.sleep(0)
        seen = await what_is_seen(request)
        response = WholeResponse(headers={"Content-Type": "application/json"}, body=json.dumps(seen).encode())
        self.answered = weakref.ref(response)
        if request.path == "/last":
            response.force_close()
        return response


async def what_is_seen(request):
    async with asyncio.timeout(30):  # needs a task of its own
        body = await request.read()
    return {
        "method": request.method,
        "path": request.path,
        "raw_path": request.raw_path,
        "url": str(request.rel_url),
        "query": request.query_string,
        "version": tuple(request.version),
        "headers": [(name, value.encode("utf-8", "surrogateescape").hex()) for name, value in request.headers.items()],
        "length": request.content_length,
        "keep_alive": request.keep_alive,
        "body": body.hex(),
        "again": (await request.read()).hex(),
        "ends": (await request.content.read()).hex(),
        "is_eof": request.content.at_eof(),
        "remote": request.remote,
        "host": request.host,
        "has_transport": request.transport is not None,
    }


@pytest.fixture
async def start():
    async with contextlib.AsyncExitStack() as stack:

        async def started(plain, limit_s=LIMIT_S):
            server = Server(plain, limit_s)
            await server.start()
            stack.push_async_callback(server.runner.cleanup)
            return server

        yield started


@pytest.fixture
async def server(start):
    return await start(plain_http(PATHS))


@pytest.fixture
async def connect(server):
    async with contextlib.AsyncExitStack() as stack:

        async def opened():
            reader, writer = await asyncio.open_connection(*server.address)
            stack.callback(writer.close)
            return reader, writer

        yield opened


def post(path="/v1/completions", *headers, body=BODY):
    lines = b"".join((b"Host: x\r\n", *headers, b"Content-Length: %d\r\n" % len(body)))
    return b"POST %b HTTP/1.1\r\n" % path.encode() + lines + b"\r\n" + body


async def answer(reader):
    """Status and body of the next answer."""
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split()[1]), json.loads(await reader.readexactly(size) or b"null")


async def told(server, data):
    """All that a server says to `data`, and to a last request, but for when it said it."""
    reader, writer = await asyncio.open_connection(*server.address)
    found = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            writer.write(data)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAUSE_S):
                    found += await reader.read(65536)
            writer.write(post("/last"))
            while part := await reader.read(65536):
                found += part
    writer.close()
    return [line for line in found.split(b"\r\n") if not line.lower().startswith((b"date:", b"x-request-id:"))]


def without_ids(lines):
    """Errors of HTTP itself have an id in their bodies too."""
    return [b"error" if line.startswith(b'{"error"') else line for line in lines]


@pytest.mark.parametrize("kind", ["odd and refused", "drawn"])
async def test_the_same_bytes_get_the_same_answers_with_and_without_the_extension(start, kind):
    rng = random.Random(3)
    known = {**ANSWERED, **{name: data for name, data in REFUSED.items() if len(data) < 200_000}}
    requests = list(known.values()) if kind != "drawn" else [drawn(rng) for _ in range(200)]
    with_it, without = await start(plain_http(PATHS)), await start(None)

    found, expected = [await asyncio.gather(*(told(one, data) for data in requests)) for one in (with_it, without)]

    assert [*map(without_ids, found)] == [*map(without_ids, expected)]
    assert with_it.num_plain >= (60 if kind == "drawn" else 0)
    assert without.num_plain == 0


async def test_requests_of_one_connection_are_answered_one_after_another_by_one_task(server, connect):
    reader, writer = await connect()

    answers = []
    for path in ("/v1/completions", "/late", "/v1/chat/completions"):
        writer.write(post(path))
        answers.append(await answer(reader))

    assert [(status, seen["path"], seen["remote"], seen["body"]) for status, seen in answers] == [
        (200, path, "127.0.0.1", BODY.hex()) for path in ("/v1/completions", "/late", "/v1/chat/completions")
    ]
    assert (server.num_plain, len(set(server.tasks))) == (3, 1)


async def test_what_comes_behind_a_plain_request_waits_for_its_turn(server, connect):
    reader, writer = await connect()
    writer.write(post("/waits"))
    await server.begun.wait()

    writer.write(post("/late") + post(body=b"x"))
    await asyncio.sleep(POLL_S)
    before = len(server.tasks)
    server.go_on.set()
    answers = [await answer(reader) for _ in range(3)]

    assert before == 1
    assert [seen["path"] for _, seen in answers] == ["/waits", "/late", "/v1/completions"]
    assert server.num_plain == 1


async def test_a_body_that_comes_soon_after_its_head_makes_it_a_plain_request(start):
    server = await start(plain_http(PATHS, hold_s=60))
    reader, writer = await asyncio.open_connection(*server.address)
    data = post("/last", body=b"y" * 9000)

    for part in (data[:-9000], data[-9000:-5000], data[-5000:]):
        writer.write(part)
        for _ in range(3):
            await asyncio.sleep(POLL_S)
    status, seen = await answer(reader)
    writer.close()

    assert (status, len(seen["body"]), server.num_plain) == (200, 18000, 1)


async def test_a_body_that_comes_late_is_the_parsers_and_what_follows_it_is_plain_again(start):
    server = await start(plain_http(PATHS, hold_s=0))
    reader, writer = await asyncio.open_connection(*server.address)
    data = post(body=b"y" * 9000)

    for part in (data[:-9000], data[-9000:-5000], data[-5000:]):
        writer.write(part)
        for _ in range(3):
            await asyncio.sleep(POLL_S)
    answers = [await answer(reader)]
    before = server.num_plain
    writer.write(post("/late"))
    answers.append(await answer(reader))
    writer.close()

    assert [(seen["path"], len(seen["body"])) for _, seen in answers] == [("/v1/completions", 18000), ("/late", 60)]
    assert (before, server.num_plain) == (0, 1)


@pytest.mark.parametrize("missing", [5, 70_000])
async def test_what_is_held_goes_to_the_parser_once_it_turns_out_to_be_more_than_one_request(start, missing):
    server = await start(plain_http(PATHS, hold_s=60))
    reader, writer = await asyncio.open_connection(*server.address)
    data = post("/v1/completions", body=b"y" * (missing + 5))

    for part in (data[:-missing], data[-missing:] + post("/last")):
        writer.write(part)
        for _ in range(3):
            await asyncio.sleep(POLL_S)
    told = await asyncio.wait_for(reader.read(), 60)
    writer.close()

    assert (told.count(b"HTTP/1.1 "), told.count(b"HTTP/1.1 200"), server.num_plain) == (
        2,
        2 if missing < 10_000 else 1,
        0,
    )


async def test_who_shuts_down_does_not_wait_for_the_rest_of_what_is_held(start):
    server = await start(plain_http(PATHS, hold_s=60))
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(post()[:-5])
    for _ in range(3):
        await asyncio.sleep(POLL_S)

    await asyncio.wait_for(server.runner.cleanup(), 30)
    told = await asyncio.wait_for(reader.read(), 60)
    writer.close()

    assert (told, server.tasks) == (b"", [])


async def test_a_client_that_leaves_what_is_held_is_forgotten(start):
    server = await start(plain_http(PATHS, hold_s=60))
    _, writer = await asyncio.open_connection(*server.address)
    writer.write(post()[:-5])
    for _ in range(3):
        await asyncio.sleep(POLL_S)

    async def is_gone():
        return not server.runner.server.connections

    writer.transport.abort()
    await until_true(is_gone, 60)

    assert server.tasks == []


async def test_after_a_head_in_pieces_the_connection_stays_with_the_parser(server, connect):
    reader, writer = await connect()

    writer.write(b"POST /late HTT")
    await asyncio.sleep(POLL_S)
    writer.write(post("/late")[14:])
    first = await answer(reader)
    writer.write(post())
    second = await answer(reader)

    assert [(status, seen["path"]) for status, seen in (first, second)] == [(200, "/late"), (200, "/v1/completions")]
    assert server.num_plain == 0


async def test_what_does_not_end_after_plain_requests_is_cut_off(start):
    server = await start(plain_http(PATHS), HASTE_S)
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(post())
    status, _ = await answer(reader)

    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost:")
    left = b"?"
    with contextlib.suppress(ConnectionError):
        left = await asyncio.wait_for(reader.read(), 60)
    writer.close()

    assert (status, left) in [(200, b""), (200, b"?")]


async def test_a_connection_without_a_request_under_way_is_kept(start):
    server = await start(plain_http(PATHS), HASTE_S)
    reader, writer = await asyncio.open_connection(*server.address)

    statuses = []
    for _ in range(3):
        writer.write(post())
        statuses.append((await answer(reader))[0])
        for _ in range(round(1.2 * HASTE_S / POLL_S)):
            await asyncio.sleep(POLL_S)
    writer.close()

    assert (statuses, server.num_plain) == ([200] * 3, 3)


@pytest.mark.parametrize("path", ["/v1/completions", "/elsewhere"])
async def test_a_connection_that_waits_for_its_next_request_does_not_keep_the_last_answer(server, connect, path):
    reader, writer = await connect()

    writer.write(post(path))
    status, _ = await answer(reader)
    async with asyncio.timeout(30):
        while server.answered() is not None:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)

    assert status == 200
    assert server.num_plain == (path != "/elsewhere")


async def test_a_body_that_nobody_wanted_leaves_a_connection_that_is_kept(start):
    server = await start(plain_http(PATHS), HASTE_S)
    reader, writer = await asyncio.open_connection(*server.address)
    data = post("/refused", body=b"y" * 70_000)

    writer.write(data[:-70_000])
    answers = [await answer(reader)]
    writer.write(data[-70_000:])
    for _ in range(round(1.5 * HASTE_S / POLL_S)):
        await asyncio.sleep(POLL_S)
    writer.write(post())
    answers.append(await answer(reader))
    writer.close()

    assert [(status, seen.get("path")) for status, seen in answers] == [(401, None), (200, "/v1/completions")]


async def test_a_handler_is_cancelled_when_its_client_leaves(server, connect):
    _, writer = await connect()
    writer.write(post("/waits"))
    await server.begun.wait()

    writer.transport.abort()

    await asyncio.wait_for(server.cancelled.wait(), 60)


async def test_what_a_handler_fails_with_stays_in_the_log_and_the_connection_ends(server, connect, logged):
    reader, writer = await connect()

    writer.write(post("/fails"))
    found = await asyncio.wait_for(reader.read(), 60)

    head, _, body = found.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert json.loads(body)["error"]["type"] == "server_error"
    assert (b"a secret" in found, "a secret" in logged()) == (False, True)


async def test_a_body_beyond_the_limit_is_refused_as_ever(start):
    data = post(body=b"z" * 10_001)
    with_it, without = await start(plain_http(PATHS)), await start(None)

    found, expected = [await told(one, data) for one in (with_it, without)]

    assert found == expected
    assert found[0].startswith(b"HTTP/1.1 413 ")


async def test_who_shuts_down_waits_for_what_runs_and_for_nobody_else(server, connect):
    busy, writer = await connect()
    idle, other = await connect()
    other.write(post())
    await answer(idle)
    writer.write(post("/waits"))
    await server.begun.wait()

    ending = asyncio.create_task(server.runner.cleanup())
    left = await asyncio.wait_for(idle.read(), 60)
    was_ending = not ending.done()
    server.go_on.set()
    status, _ = await answer(busy)
    await asyncio.wait_for(ending, 60)

    assert (left, was_ending, status) == (b"", True, 200)
    assert await busy.read() == b""
