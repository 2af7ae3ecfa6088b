"""A usual read of a stream goes its way in one step of C++ as it does in Python: written, noted and left the same, whatever comes."""

import asyncio
import itertools
import random

import pytest

from quire_contract.resume import MIGRATE_EVENT
from quire_router import relay as relays
from quire_router.call import Usage
from quire_router.delivery import sink_of
from quire_router.idle_guard import IdleGuard
from quire_router.latency import BOUNDS_S, LEAST_S, StreamLatency
from quire_router.native.library import native
from quire_router.relay import CLASSES, Relay
from quire_router.replay import Replay
from quire_router.sse import EventCutter
from quire_router.worker_connection import WorkerConnection
from tests.router.test_native_worker import CHUNKED, Client, Owner, Transport, state_of

pytestmark = pytest.mark.skipif(native() is None, reason="needs the extension module")

NUM_RANDOM = 400
END = b"0\r\n\r\n"


def chunk(data, size=b"%x"):
    return size % len(data) + b"\r\n%b\r\n" % data


class Side:
    """A stream that has begun, on its way to a client; in C++ or in Python."""

    def __init__(self, *, is_quick, has_replay, sink=None):
        self.now_s, parts = 100.0, native()
        self.connection, self.owner = WorkerConnection(asyncio.get_running_loop()), Owner()
        self.transport, self.client, self.latency = Transport(), Client(), StreamLatency()
        self.connection.connection_made(self.transport)
        self.connection.belong(self.owner, None, parts)
        head = self.connection.ask(b"")
        self.connection.data_received(CHUNKED)
        self.response, self.guard = head.result(), IdleGuard(3600.0, lambda: None)
        self.replay = Replay(Usage(), parts.take_events) if has_replay else None
        self.cutter, self.is_quick = EventCutter(), is_quick
        self.sink = sink_of(self.client, is_chunked=True, parts=parts) if sink is None else sink
        self.relay = Relay(self.response, self.cutter, self.replay, self.guard, self.sink, self.latency)
        self.relay._now = lambda: self.now_s
        self.num_quick = 0

    async def start(self):
        self.task = asyncio.create_task(self.relay.run())
        await asyncio.sleep(0)
        quick = self.connection.on_read
        assert quick is not None

        def counted(*args):
            done = quick(*args)
            self.num_quick += done
            return done

        self.connection.on_read = counted if self.is_quick else None
        return self

    def feed(self, data, waited_s=0.05):
        self.now_s += waited_s
        if not self.transport.is_closed:
            self.connection.data_received(data)

    async def stop(self):
        self.guard.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def state(self):
        content, histogram = self.response.content, self.latency.inter_token
        return [
            self.client.transport and self.client.transport.data, getattr(self.sink, "num_events", None), self.guard.since_s,
            self.relay.is_full, self.relay._turn.done(), self.relay._is_taking, bytes(self.cutter.held), content.total_bytes,
            content._cursor, list(content._buffer), content._size, content.is_eof(), type(content.exception()), histogram._counts,
            histogram._ends_s, self.owner.num_free, self.transport.told, self.transport.is_closed, self.connection._reading_paused,
            self.replay and state_of(self.replay),
        ]  # fmt: skip


async def both(**settings):
    return [await Side(is_quick=is_quick, **settings).start() for is_quick in (True, False)]


def random_part(rng):
    events = [
        b"data: x\n\n", b": t 0 1\ndata: y\n\n", b": t 1 2,3\n\n", b": s state\ndata: a\n\n", b": keep-alive\n\n", b"data: z\r\n\r\n",
        b": t 0 4\n: t 1 5\ndata: %b\n\n" % (b"w" * rng.randrange(400)), b"data: half", b"\n\n", b"\n\n\n",
        b'data: {"error":{"code":"engine_dead"}}\n\n', b": f 0\ndata: [DONE]\n\n", MIGRATE_EVENT,
    ]  # fmt: skip
    usual = events[:3]
    return b"".join(rng.choice(usual if rng.random() < 0.9 else events) for _ in range(rng.choice([1, 1, 1, 2, 5])))


def random_read(rng):
    pieces = [
        chunk(random_part(rng), rng.choice([b"%x", b"%x", b"%X", b"00%x"])) for _ in range(rng.choice([1, 1, 1, 3]))
    ]
    if rng.random() < 0.03:
        pieces.append(rng.choice([END, b"5;a=b\r\nabcde\r\n", b"x\r\n", b"0\r\n", b"\r\n", b"3\r\nabcd\r\n"]))
    return b"".join(pieces)


@pytest.mark.parametrize("has_replay", [False, True])
async def test_whatever_comes_is_written_noted_and_left_the_same(has_replay):
    rng, num_quick = random.Random(14), 0
    for _ in range(NUM_RANDOM):
        sides = await both(has_replay=has_replay)
        for _ in range(rng.randrange(1, 15)):
            data = random_read(rng)
            cut = rng.randrange(len(data)) if rng.random() < 0.1 else 0
            waited_s = rng.choice([0.0, LEAST_S, LEAST_S * 1.01, 0.05, rng.choice(BOUNDS_S), 11.0, 70.0, 2000.0])
            is_paused = rng.random() < 0.02
            for side in sides:
                side.client.writing_paused = is_paused
                for piece in (data[:cut], data[cut:]):
                    side.feed(piece, waited_s)
            ours, theirs = (side.state() for side in sides)
            assert ours == theirs, data
            if rng.random() < 0.1:  # the generator has its turn, and the connection is nobody's
                await asyncio.sleep(0)
        num_quick += sides[0].num_quick
        for side in sides:
            await side.stop()

    assert num_quick > NUM_RANDOM


async def test_a_usual_read_takes_one_step_and_an_unusual_one_none_of_it():
    side, _ = await both(has_replay=False)
    usual = chunk(b"data: a\n\n") + chunk(b"data: b\n\n")

    side.feed(usual)
    side.feed(chunk(b"data: half"))
    side.feed(chunk(b" of it\n\n"))
    side.feed(usual)

    assert side.num_quick == 2
    assert b"".join(side.client.transport.data).count(b"data: ") == 5
    assert side.latency.inter_token._counts[-1] == 0
    assert sum(side.latency.inter_token._counts) == 4
    await side.stop()


async def test_a_client_that_is_gone_or_full_ends_it_the_same():
    for change in ("gone", "closing", "full"):
        sides = await both(has_replay=False)
        for side in sides:
            if change == "gone":
                side.client.transport = None
            side.client.writing_paused = change == "full"
            if change == "closing":
                side.client.transport.is_closed = True
            side.feed(chunk(b"data: a\n\n"))
            side.feed(chunk(b"data: b\n\n"))  # before the generator had its turn: it must read that
        ours, theirs = (side.state() for side in sides)

        assert ours == theirs
        assert sides[0].num_quick == 1
        assert sides[0].relay.is_full
        assert list(sides[0].response.content._buffer) == [b"data: b\n\n"]
        for side in sides:
            await side.stop()


async def test_what_comes_while_reading_is_paused_is_the_readers():
    sides = await both(has_replay=False)
    for side in sides:
        side.connection._reading_paused = True
        side.feed(chunk(b"data: a\n\n"))
    ours, theirs = (side.state() for side in sides)

    assert ours == theirs
    assert sides[0].num_quick == 0
    for side in sides:
        await side.stop()


class Closing:
    """A sink that lets go of the stream within its call."""

    def __init__(self):
        self.side, self.parts = None, []

    def __call__(self, part):
        self.parts.append(part)
        self.side.response.close()
        return True


class Raising:
    """A sink that is none."""

    def __call__(self, part):
        raise ValueError("odd")


async def test_a_sink_that_closes_the_stream_leaves_it_the_same():
    states = []
    for is_quick in (True, False):
        sink = Closing()
        side = sink.side = await Side(is_quick=is_quick, has_replay=True, sink=sink).start()
        side.connection._lease = None
        side.feed(chunk(b": t 0 1\ndata: a\n\n"))
        states.append([*side.state(), sink.parts])
        await side.stop()

    assert states[0] == states[1]
    assert states[0][-1] == [b"data: a\n\n"]


async def test_a_sink_that_raises_is_heard_of_the_same():
    states = []
    for is_quick in (True, False):
        side = await Side(is_quick=is_quick, has_replay=False, sink=Raising()).start()
        with pytest.raises(ValueError, match="odd"):
            side.feed(chunk(b"data: a\n\n"))
        states.append(side.state())
        await side.stop()

    assert states[0] == states[1]


async def test_other_objects_are_refused_or_left_alone():
    take, chunks = relays._relaying().take, native().Chunks()
    read = chunk(b"data: a\n\n")

    assert take(None, None, chunks, read) is False
    assert chunks.num_bytes == 0
    assert take(None, None, None, read) is False
    for args in ((), (None, None, b"", read), (None, None, chunks, bytearray(read)), (None, None, chunks, read, 1)):
        with pytest.raises(TypeError):
            take(*args)


def test_classes_whose_fields_lie_elsewhere_are_refused():
    bounds = tuple(BOUNDS_S)
    for number in range(len(CLASSES)):
        others = [*CLASSES[:number], type("Other", (), {}), *CLASSES[number + 1 :]]
        with pytest.raises((TypeError, AttributeError)):
            native().Relaying(tuple(others), bounds, LEAST_S, 1, 1, b"x")
    for args in itertools.product([(), CLASSES], [(), (None,)], [None]):
        with pytest.raises(TypeError):
            native().Relaying(*args, 1, 1, b"x")
