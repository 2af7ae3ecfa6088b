"""Events go from a worker's connection straight into a sink, over real sockets, and whoever must go on otherwise gets the rest."""

import asyncio

import aiohttp
import pytest
from multidict import CIMultiDict

from quire_router.call import Usage
from quire_router.idle_guard import NOT_WAITING, IdleGuard
from quire_router.latency import StreamLatency
from quire_router.native.library import native
from quire_router.relay import Relay
from quire_router.replay import Replay
from quire_router.sse import EventCutter
from quire_router.worker_client import WorkerClient

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


class Worker:
    """Takes one request and answers with what the test sends."""

    async def start(self):
        self.writer = asyncio.get_running_loop().create_future()
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def serve(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        self.writer.set_result(writer)

    async def send(self, data):
        writer = await self.writer
        writer.write(data)
        await writer.drain()


class Sink:
    """Keeps what it is given; full from the `room`-th part on."""

    def __init__(self, room=10**9):
        self.parts, self.room, self.news = [], room, asyncio.Event()

    def __call__(self, part):
        self.parts.append(part)
        self.news.set()
        return len(self.parts) < self.room

    async def until(self, data):
        async with asyncio.timeout(60):
            while data not in b"".join(self.parts):
                self.news.clear()
                await self.news.wait()


@pytest.fixture(params=["native", "python"])
async def opened(request):
    """A worker, and its answer whose head has come."""
    parts = native() if request.param == "native" else None
    worker = Worker()
    url = await worker.start()
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        client = WorkerClient(session, parts)
        asking = asyncio.create_task(client.post(client.target(url, "/x"), b"{}", CIMultiDict()))
        await worker.send(HEAD)
        response = await asking
        yield worker, response
        response.close()
    (await worker.writer).close()
    worker.server.close()


@pytest.fixture
async def guard():
    made = IdleGuard(3600.0, lambda: None)
    yield made
    made.close()


def running(response, guard, sink, replay=None):
    return asyncio.create_task(Relay(response, EventCutter(), replay, guard, sink, StreamLatency()).run())


async def test_what_comes_is_cut_at_events_and_given_away_until_the_end(opened, guard):
    worker, response = opened
    sink = Sink()
    relay = running(response, guard, sink)

    await worker.send(chunk(b"data: a\n\nda"))
    await sink.until(b"a")
    waiting_since_s = guard.since_s
    await worker.send(chunk(b"ta: b\n\n") + chunk(b"data: c\n\n") + END)
    await asyncio.wait_for(relay, 60)

    assert sink.parts[0] == b"data: a\n\n"
    assert b"".join(sink.parts) == b"data: a\n\ndata: b\n\ndata: c\n\n"
    assert response.content.at_eof()
    assert waiting_since_s != NOT_WAITING
    assert guard.since_s == NOT_WAITING


async def test_a_sink_that_is_full_gets_no_more_and_the_reader_has_the_rest(opened, guard):
    worker, response = opened
    sink = Sink(room=1)
    relay = running(response, guard, sink)

    await worker.send(chunk(b"data: a\n\n"))
    await asyncio.wait_for(relay, 60)
    await worker.send(chunk(b"data: b\n\n") + END)
    rest = await response.content.read()

    assert sink.parts == [b"data: a\n\n"]
    assert rest == b"data: b\n\n"


async def test_what_had_come_before_is_given_away_first_and_in_order_however_much_it_is(opened, guard):
    worker, response = opened
    events = [b"data: %06d %b\n\n" % (number, b"x" * 1000) for number in range(2000)]
    sending = asyncio.create_task(worker.send(b"".join(map(chunk, events)) + END))
    first = await response.content.readany()
    while not response.content._protocol._reading_paused:  # noqa: ASYNC110 - until there is more than the reader takes unread
        await asyncio.sleep(0)
    sink = Sink()

    await asyncio.wait_for(running(response, guard, sink), 60)
    await sending

    assert first + b"".join(sink.parts) == b"".join(events)


@pytest.mark.parametrize("how", ["cut", "closed", "no http"])
async def test_an_answer_that_breaks_is_the_readers_to_find_out(opened, guard, how):
    worker, response = opened
    sink = Sink()
    relay = running(response, guard, sink)

    await worker.send(chunk(b"data: a\n\n"))
    await sink.until(b"a")
    if how == "closed":
        response.close()
    elif how == "cut":
        (await worker.writer).transport.abort()
    else:
        await worker.send(b"no length\r\n")
    await asyncio.wait_for(relay, 60)

    assert sink.parts == [b"data: a\n\n"]
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await response.content.readany()


async def test_a_worker_that_says_that_it_is_over_ends_the_relay(opened, guard):
    worker, response = opened
    sink, replay = Sink(), Replay(Usage())
    relay = running(response, guard, sink, replay)

    await worker.send(chunk(b": s state\n: t 0 7\ndata: a\n\n") + chunk(b": migrate\n\n"))
    await asyncio.wait_for(relay, 60)

    assert sink.parts == [b"data: a\n\n"]
    assert (replay.is_over, replay.migrates, replay.usage.output) == (True, True, 1)


async def test_who_is_cancelled_hears_no_more(opened, guard):
    worker, response = opened
    sink = Sink()
    relay = running(response, guard, sink)
    await worker.send(chunk(b"data: a\n\n"))
    await sink.until(b"a")

    relay.cancel()
    await asyncio.gather(relay, return_exceptions=True)
    await worker.send(chunk(b"data: b\n\n") + END)
    rest = await response.content.read()

    assert (sink.parts, rest) == ([b"data: a\n\n"], b"data: b\n\n")
