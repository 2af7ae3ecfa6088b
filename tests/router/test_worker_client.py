"""The client for workers against a real server that answers in all the ways HTTP has."""

import asyncio

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from quire_router.connections import UPSTREAM_KEEPALIVE_S
from quire_router.native.library import native
from quire_router.worker_client import MAX_SENT_AT_ONCE_BYTES, MAX_TARGETS, WorkerClient

LARGE = MAX_SENT_AT_ONCE_BYTES + 1
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of `answers`; None: it closes without a word. Keeps what it read."""

    def __init__(self, answers):
        self.answers, self.requests, self.writers = list(answers), [], []
        self.num_answers = 10**9  # that a connection carries
        self.gone = asyncio.Event()

    @property
    def num_connections(self):
        return len(self.writers)

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return URL(f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1/chat/completions")

    async def serve(self, reader, writer):
        self.writers.append(writer)
        try:
            served = 0
            while self.answers and served < self.num_answers:
                served += 1
                head = await reader.readuntil(b"\r\n\r\n")
                size = next(
                    int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
                )
                self.requests.append(head + await reader.readexactly(size))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@pytest.fixture(params=["native", "python"])
async def serve(request):
    parts = native() if request.param == "native" else None
    servers = []
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def start(*answers):
            server = Server(answers)
            servers.append(server)
            return server, WorkerClient(session, parts), await server.start()

        yield start
    for server in servers:
        server.server.close()


def ask(client, url, body=b"{}", **headers):
    return client.post(client.target(str(url.origin()), url.path), body, CIMultiDict(headers))


async def post(client, url, body=b"{}", **headers):
    response = await ask(client, url, body, **headers)
    return response, await response.content.read()


async def test_requests_go_one_after_another_over_one_connection_with_what_http_asks_for(serve):
    server, client, url = await serve(OK, OK)

    answers = [await post(client, url, b'{"a": 1}', **{"X-Request-Id": "r"}) for _ in range(2)]

    assert [(response.status, body) for response, body in answers] == [(200, b"ok")] * 2
    assert server.num_connections == 1
    head, body = server.requests[0].split(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /v1/chat/completions HTTP/1.1"
    assert sorted(lines[1:]) == [b"Content-Length: 8", f"Host: {url.host}:{url.port}".encode(), b"X-Request-Id: r"]
    assert body == b'{"a": 1}'


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, 200, b"ok"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n", 503, b"no"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
    ],
    ids=["after a 100", "chunked", "no body"],
)
async def test_every_kind_of_answer_is_read_to_its_end_and_the_connection_used_again(serve, answer, status, body):
    server, client, url = await serve(answer, OK)

    response, read = await post(client, url)
    again, _ = await post(client, url)

    assert (response.status, read, again.status) == (status, body, 200)
    assert server.num_connections == 1


async def test_an_answer_that_is_closed_before_its_end_takes_its_connection_with_it(serve):
    server, client, url = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nbeginning", OK)

    response = await ask(client, url)
    first = await response.content.readany()
    response.close()
    await server.gone.wait()
    again, _ = await post(client, url)

    assert (first, again.status) == (b"beginning", 200)
    assert server.num_connections == 2


@pytest.mark.parametrize("answer", [None, b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"])
async def test_what_is_no_answer_is_a_client_error(serve, answer):
    _, client, url = await serve(answer)

    with pytest.raises(aiohttp.ClientError):
        await post(client, url)


async def test_a_worker_that_is_not_there_is_a_connector_error(serve):
    server, client, url = await serve()
    server.server.close()
    await server.server.wait_closed()

    with pytest.raises(aiohttp.ClientConnectorError):
        await post(client, url)


async def test_an_answer_cut_within_its_body_is_an_error_not_an_end(serve):
    _, client, url = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nConnection: close\r\n\r\nbeginning")

    response = await ask(client, url)

    with pytest.raises(aiohttp.ClientPayloadError):
        await response.content.read()
    response.close()


async def test_an_answer_without_a_length_ends_with_its_connection(serve):
    server, client, url = await serve(b"HTTP/1.1 200 OK\r\n\r\nall", OK)
    server.num_answers = 1

    _, first = await post(client, url)
    _, second = await post(client, url)

    assert (first, second, server.num_connections) == (b"all", b"ok", 2)


async def test_no_header_can_begin_another_request(serve):
    server, client, url = await serve(OK)

    with pytest.raises(ValueError, match=r"(?i)newline|forbidden|header"):
        await post(client, url, b"{}", Evil="a\r\nContent-Length: 0\r\n\r\nPOST / HTTP/1.1")

    assert server.requests == []


async def test_a_large_body_goes_through_the_session(serve):
    server, client, url = await serve(OK)

    response, body = await post(client, url, b"x" * LARGE)

    assert (response.status, body) == (200, b"ok")
    assert server.requests[0].endswith(b"x" * LARGE)


async def test_who_waits_for_more_of_an_answer_hears_that_it_was_closed(serve):
    _, client, url = await serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal")
    response = await ask(client, url)
    first = await response.content.readany()

    reading = asyncio.create_task(response.content.readany())
    await asyncio.sleep(0)
    response.close()

    assert first == b"hal"
    with pytest.raises(aiohttp.ClientConnectionError):
        await asyncio.wait_for(reading, 60)


async def test_a_second_answer_to_one_request_is_nobodys(serve):
    server, client, url = await serve(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK)

    answers = [await post(client, url) for _ in range(2)]

    assert [body for _, body in answers] == [b"ok", b"ok"]
    assert server.num_connections == 2


async def test_what_comes_while_nothing_was_asked_ends_the_connection(serve):
    server, client, url = await serve(OK, OK)
    await post(client, url)
    place = client.target(str(url.origin()), url.path).place

    server.writers[0].write(b"H")
    await asyncio.wait_for(server.gone.wait(), 60)
    was_usable = place.take() is not None
    _, body = await post(client, url)

    assert (was_usable, body, server.num_connections) == (False, b"ok", 2)


async def test_a_free_connection_that_the_worker_closed_is_not_asked_again(serve):
    server, client, url = await serve(OK)
    await post(client, url)
    place = client.target(str(url.origin()), url.path).place
    while place.idle[0].is_connected():  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0)

    server.answers.append(OK)
    _, body = await post(client, url)

    assert (body, server.num_connections) == (b"ok", 2)


@pytest.mark.parametrize("how", ["found old", "swept"])
async def test_a_connection_that_was_free_for_long_ends(serve, how):
    server, client, url = await serve(OK, OK)
    await post(client, url)
    place = client.target(str(url.origin()), url.path).place

    if how == "swept":
        place.end_older(place.idle[0].free_since_s + 1.0)
    else:
        place.idle[0].free_since_s -= UPSTREAM_KEEPALIVE_S + 1.0
        await post(client, url)

    await asyncio.wait_for(server.gone.wait(), 60)
    assert server.num_connections == {"swept": 1, "found old": 2}[how]


async def test_who_stops_waiting_for_a_head_takes_the_connection_with_it(serve):
    server, client, url = await serve(b"", OK)
    waiting = asyncio.create_task(post(client, url))
    while not server.requests:  # noqa: ASYNC110 - nobody sets an event
        await asyncio.sleep(0)

    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.wait_for(server.gone.wait(), 60)
    _, body = await post(client, url)

    assert (body, server.num_connections) == (b"ok", 2)


@pytest.mark.parametrize(("answer", "num_connections"), [(OK, 1), (OK[:-1], 2)], ids=["whole", "not yet whole"])
async def test_an_answer_that_nobody_took_leaves_its_connection_only_when_it_is_whole(serve, answer, num_connections):
    server, client, url = await serve(OK, answer, OK)
    await post(client, url)
    place = client.target(str(url.origin()), url.path).place
    connection = place.take()

    head = connection.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    arrived = asyncio.Event()
    head.add_done_callback(lambda _: arrived.set())
    await arrived.wait()
    connection.abandon(head)
    _, body = await post(client, url)

    assert (body, server.num_connections) == (b"ok", num_connections)


async def test_more_addresses_than_are_remembered_leave_no_connection_open(serve):
    server, client, url = await serve(OK, OK)
    await post(client, url)

    for number in range(MAX_TARGETS):
        client.target("http://127.0.0.1:9", f"/{number}")
    await asyncio.wait_for(server.gone.wait(), 60)
    _, body = await post(client, url)

    assert (body, server.num_connections) == (b"ok", 2)
