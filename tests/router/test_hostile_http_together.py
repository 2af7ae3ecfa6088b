"""A whole router between clients that break off anywhere and a worker that writes what it likes: nobody gets what is another's, and nothing
stays counted. And the very next request over a connection obeys a configuration that changed."""

import asyncio
import contextlib
import json
import random
import re

import msgspec
import pytest

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, write_config
from quire_contract.router_settings import FilterEntry, RouterSettingsEntry
from tests.router.tenant_help import tenant

POLL_S = 0.005
NUM_CALLS, NUM_CLIENTS = 150, 6
EVIL = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\nEVIL"


def request_of(number, *, is_stream):
    body = json.dumps({"model": "m", "prompt": f"id-{number:05}", "stream": is_stream}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def whole(mark, *headers):
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (head, len(mark), mark)


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def stream(mark):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    events = [b"data: %b %d\n\n" % (mark, number) for number in range(6)]
    return [head, *map(chunk, events), chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]


async def pause(rng):
    """So that what was written goes alone, or may."""
    if rng.random() < 0.5:
        await asyncio.sleep(POLL_S)
    await asyncio.sleep(0)


class RawWorker:
    """Answers with the mark of the request, in any way that HTTP or malice allows."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.tasks = set()

    async def start(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def stop(self):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"(?i)content-length: (\d+)", head)
                body = await reader.readexactly(int(size[1])) if size else b""
                if head.startswith(b"GET"):
                    writer.write(whole(b"{}"))
                    continue
                if not await self.answer(writer, re.search(rb"id-\d+", body)[0], b"true" in body):
                    break
        writer.close()

    async def answer(self, writer, mark, is_stream):
        """Whether the connection goes on."""
        rng = self.rng
        parts = stream(mark) if is_stream else [whole(mark, b"Content-Type: application/json")]
        if not is_stream and rng.random() < 0.5:
            at = rng.randrange(1, len(parts[0]))
            parts = [parts[0][:at], parts[0][at:]]
        surplus = rng.choice([b"", b"", b"", EVIL, EVIL[:20], b"\r\n", b"0\r\n\r\n", b"x"])
        parts[-1] += surplus
        is_cut = rng.random() < 0.1
        for part in parts[: rng.randrange(len(parts)) if is_cut else None]:
            writer.write(part)
            if rng.random() < 0.6:
                await pause(rng)
        return not is_cut


async def told(url, rng, numbers):
    """What one client is told: number of a call, and the bytes of its answer, as far as it stayed."""
    host, port = url.removeprefix("http://").split(":")
    found, connection = [], None
    for number in numbers:
        reader, writer = connection or await asyncio.open_connection(host, int(port))
        connection = None
        is_stream = rng.random() < 0.5
        data = request_of(number, is_stream=is_stream)
        at = rng.choice([0, 0, data.find(b"\r\n\r\n") + 4, len(data) - 1])
        writer.write(data[:at])
        await pause(rng)
        writer.write(data[at:])
        if rng.random() < 0.25:
            for _ in range(rng.randrange(4)):
                await pause(rng)
            writer.transport.abort()
            continue
        answer = b""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async with asyncio.timeout(60):
                head = await reader.readuntil(b"\r\n\r\n")
                size = re.search(rb"(?i)content-length: (\d+)", head)
                rest = reader.readexactly(int(size[1])) if size else reader.readuntil(b"0\r\n\r\n")
                answer = head + await rest
                connection = reader, writer
        found.append((number, is_stream, answer))
        if connection is None:
            writer.close()
    if connection is not None:
        connection[1].close()
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_nobody_gets_anothers_answer_whatever_workers_add_and_clients_break_off(start_router, until, seed):
    worker, rng = RawWorker(seed), random.Random(seed)
    config = RouterConfig(
        models=[ModelEntry(name="m")], endpoints=[EndpointEntry(id="e", url=await worker.start(), models=["m"])]
    )
    router = await start_router(config, shutdown_timeout_s=5.0)
    await router.until_ready(1)

    numbers = [range(first, NUM_CALLS, NUM_CLIENTS) for first in range(NUM_CLIENTS)]
    found = await asyncio.gather(*(told(router.url, random.Random(rng.random()), each) for each in numbers))
    answers = [answer for each in found for answer in each]
    (endpoint,) = router.app._pool
    await until(lambda: (endpoint.num_in_flight, endpoint.num_unanswered) == (0, 0))
    await worker.stop()

    good = [(number, is_stream, answer) for number, is_stream, answer in answers if b" 200 OK" in answer[:20]]
    assert len(good) > len(answers) // 3
    for number, is_stream, answer in good:
        assert set(re.findall(rb"id-\d+", answer)) == {b"id-%05d" % number}
        assert b"EVIL" not in answer
        assert not is_stream or answer.count(b"data: id-") == 6 or b"error" in answer


async def ask(connection, *headers):
    """One plain request over the connection: status and body of its answer."""
    reader, writer = connection
    body = b'{"model":"m","prompt":"a forbidden fruit"}'
    lines = b"".join((b"Host: r\r\n", *headers, b"Content-Length: %d\r\n" % len(body)))
    writer.write(b"POST /v1/completions HTTP/1.1\r\n%b\r\n%b" % (lines, body))
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
        size = re.search(rb"(?i)content-length: (\d+)", head)
        return int(head.split()[1]), await reader.readexactly(int(size[1]))


async def test_the_next_request_of_a_connection_obeys_a_configuration_that_changed(
    start_upstream, start_router, make_config
):
    upstream = await start_upstream("u")
    open_to_all = make_config(upstream)
    router = await start_router(open_to_all)
    await router.until_ready(1)
    connection = await asyncio.open_connection(*router.url.removeprefix("http://").split(":"))
    with_tenants = msgspec.structs.replace(open_to_all, tenants=[tenant("ns/t", "qk-one")])
    filters = [FilterEntry(name="f", stage="prompt", words=["forbidden"])]
    with_filters = msgspec.structs.replace(with_tenants, settings=RouterSettingsEntry(filters=filters))
    key = b"Authorization: Bearer qk-one\r\n"

    async def told_after(config, *headers, status):
        """The first answer that differs from those before the change; the configuration comes in its own time."""
        write_config(router.config_path, config)
        async with asyncio.timeout(60):
            while (found := await ask(connection, *headers))[0] != status:  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
        return found[1], upstream.num_calls

    first = await ask(connection)
    refused, _ = await told_after(with_tenants, status=401)
    known = [await ask(connection, key), await ask(connection)]
    blocked, before = await told_after(with_filters, key, status=400)
    again = [(await ask(connection, key))[0], upstream.num_calls]
    anew, _ = await told_after(open_to_all, status=200)
    connection[1].close()

    assert (first[0], [status for status, _ in known]) == (200, [200, 401])
    assert json.loads(refused)["error"]["type"] == "authentication_error"
    assert b"forbidden" not in blocked
    assert again == [400, before]
    assert json.loads(anew) == {"from": "u"}
