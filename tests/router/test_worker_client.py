"""The client for workers against a real server that answers in all the ways HTTP has."""

import asyncio

import aiohttp
import pytest
from multidict import CIMultiDict
from yarl import URL

from quire_router.worker_client import MAX_SENT_AT_ONCE_BYTES, WorkerClient

LARGE = MAX_SENT_AT_ONCE_BYTES + 1
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """Answers each request with the next of `answers`; None: it closes without a word. Keeps what it read."""

    def __init__(self, answers):
        self.answers, self.requests, self.num_connections = list(answers), [], 0
        self.gone = asyncio.Event()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return URL(f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/v1/chat/completions")

    async def serve(self, reader, writer):
        self.num_connections += 1
        try:
            while self.answers:
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


@pytest.fixture
async def serve():
    servers = []
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def start(*answers):
            server = Server(answers)
            servers.append(server)
            return server, WorkerClient(session), await server.start()

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
