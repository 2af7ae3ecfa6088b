"""The extension module reads and writes at a worker's side what aiohttp and our Python make of the same bytes, however they are cut."""

import asyncio
import itertools
import random

import pytest
from aiohttp.http_writer import _serialize_headers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy, istr

from quire_contract.router_tenants import TenantEntry
from quire_contract.trust import Trust
from quire_router import headers as header_rules
from quire_router import replay as replays
from quire_router.call import Call, Tenant, Usage
from quire_router.delivery import sink_of
from quire_router.native.library import native
from quire_router.replay import Replay
from quire_router.request_heads import RequestHeads
from quire_router.worker_connection import WorkerConnection

NUM_RANDOM = 1500
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WHOLE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-A: \t b\tc \r\nx-a: d\r\nContent-Length: 5\r\n\r\nabcde"
)
ANSWERS = {
    "whole": WHOLE,
    "no body": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nx-quire-reason: draining\r\n\r\n",
    "after a 100": b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE,
    "two": WHOLE + WHOLE,
    "one and a half": WHOLE + WHOLE[:30],
    "and an end of a line": WHOLE + b"\r\n",
    "closing": WHOLE.replace(b"X-A", b"Connection: close\r\nX-A"),
    "keeping": WHOLE.replace(b"X-A", b"Connection: keep-alive\r\nX-A"),
    "two lengths": WHOLE.replace(b"X-A", b"Content-Length: 4\r\nX-A"),
    "both": WHOLE.replace(b"X-A", b"Transfer-Encoding: chunked\r\nX-A"),
    "none": b"HTTP/1.1 200 OK\r\n\r\nall",
    "1.0": WHOLE.replace(b"1.1", b"1.0"),
    "2.0": WHOLE.replace(b"1.1", b"2.0"),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
    "folded": WHOLE.replace(b"x-a: d", b"x-a: d\r\n e"),
    "bare line ends": WHOLE.replace(b"\r\n", b"\n"),
    "space before the colon": WHOLE.replace(b"x-a:", b"x-a :"),
    "signed length": WHOLE.replace(b"Length: 5", b"Length: +5"),
    "latin": WHOLE.replace(b"b\tc", b"b\xff\xc3\xa4c"),
    "control": WHOLE.replace(b"b\tc", b"b\x01\x7fc"),
    "nul": WHOLE.replace(b"b\tc", b"b\x00c"),
    "upgrade": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nxyz",
    "events in one": WHOLE.replace(b"application/json", b"text/event-stream"),
    "no http": b"SSH-2.0-OpenSSH\r\n\r\n",
    "chunks": CHUNKED + b"9\r\ndata: a\n\n\r\n0a\r\ndata: bb\n\n\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"9\r\ndata: a\n\n\r\n0\r\nX: y\r\n\r\n",
    "extension": CHUNKED + b"9;x=y\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n0;z\r\n\r\n",
    "spaces after the size": CHUNKED + b"9 \r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n",
    "bare line ends in chunks": CHUNKED + b"9\ndata: a\n\n\r\n9\r\ndata: b\n\n\n0\r\n\r\n",
    "no size": CHUNKED + b"9\r\ndata: a\n\n\r\nxyz\r\n",
    "empty size": CHUNKED + b"9\r\ndata: a\n\n\r\n\r\n",
    "sizes beyond all measure": CHUNKED + b"1\r\na\r\nffffffffffffffffff\r\n",
    "short chunk": CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n",
    "half": CHUNKED + b"9\r\ndata: a\n\n\r\n5\r\nda",
    "more after the end": CHUNKED + b"1\r\na\r\n0\r\n\r\n0\r\n\r\n",
    "an answer after the end": CHUNKED + b"1\r\na\r\n0\r\n\r\n" + WHOLE,
    "half an answer after the end": CHUNKED + b"1\r\na\r\n0\r\n\r\nHTTP/1.1 2",
    "chunks and gzip": CHUNKED.replace(b"chunked", b"gzip, chunked") + b"1\r\na\r\n0\r\n\r\n",
    "chunked twice": CHUNKED.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"1\r\na\r\n0\r\n\r\n",
    "chunks and bare line ends": CHUNKED.replace(b"\r\n", b"\n") + b"1\r\na\r\n\r\n\r\n0\r\n\r\n",
}


class Transport(asyncio.Transport):
    """Of a connection without a network."""

    def __init__(self):
        super().__init__()
        self.is_closed, self.told = False, []

    def write(self, data):
        """Nobody reads it."""

    def is_closing(self):
        return self.is_closed

    def close(self):
        self.is_closed = True

    def pause_reading(self):
        self.told.append("pause")

    def resume_reading(self):
        self.told.append("resume")


class Owner:
    """Counts how often a connection was free again."""

    def __init__(self):
        self.num_free = 0

    def take_back(self, connection):
        self.num_free += 1


def said(error):
    return None if error is None else type(error)


class Asked:
    """One request over a connection of its own, and what came of it."""

    def __init__(self, parts, taker=None):
        self.connection, self.owner, self.transport = WorkerConnection(asyncio.get_running_loop()), Owner(), Transport()
        self.connection.connection_made(self.transport)
        self.connection.belong(self.owner, None, parts)
        self.head = self.connection.ask(b"")
        self.body, self.is_taking = [], taker is not None

    def take(self, part):
        self.body.append(part)
        return True

    def feed(self, data):
        if self.transport.is_closed:
            return
        self.connection.data_received(data)
        if self.head.done() and self.head.exception() is None and self.is_taking:
            self.head.result().on_arrival(self.read, self.take)
            self.read()

    def read(self):
        content = self.head.result().content
        while content.exception() is None and (part := content.read_nowait()):
            self.body.append(part)

    def outcome(self, *, is_lost):
        """All that its user can tell: answer, body, what is wrong, whether it is free, closed or reading."""
        if is_lost:
            self.connection.connection_lost(None)
        found = [self.owner.num_free, self.transport.is_closed, self.connection._should_close, self.transport.told]
        if not self.head.done():
            return [*found, "waits"]
        if self.head.exception() is not None:
            return [*found, said(self.head.exception())]
        response = self.head.result()
        content = response.content
        problem = content.exception()
        content._exception = None
        self.read()
        headers = sorted(response.headers.items())
        return [*found, response.status, headers, b"".join(self.body), said(problem), content.is_eof()]


def both(pieces, *, is_lost=False, taker=None):
    """The outcome with the extension module, and without."""
    outcomes = []
    for parts in (native(), None):
        asked = Asked(parts, taker)
        for piece in pieces:
            asked.feed(piece)
        outcomes.append(asked.outcome(is_lost=is_lost))
    return outcomes


def is_cut_off(data):
    """Whether something has begun after the answer's end, which is known to be nobody's a little earlier with the extension module."""
    return data.endswith((b"HTTP/1.1 2", WHOLE[:30])) or data.count(b"HTTP/") > 1


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("taker", [None, "takes"])
async def test_an_answer_means_the_same_wherever_it_is_cut(name, taker):
    data = ANSWERS[name]
    for i, j in itertools.combinations_with_replacement(range(len(data) + 1), 2):
        if j - i in (0, 1, 9):
            pieces = [piece for piece in (data[:i], data[i:j], data[j:]) if piece]
            for is_lost in (False, True):
                ours, theirs = both(pieces, is_lost=is_lost, taker=taker)
                if ours != theirs and is_cut_off(data):
                    ours, theirs = ours[4:], theirs[4:]
                assert ours == theirs, pieces


def mutated(rng, data):
    """A few bytes changed, left out or added."""
    for _ in range(rng.randrange(3)):
        at = rng.randrange(len(data))
        more = rng.choice([b"", b"\r", b"\n", b"\r\n", b" ", b"0", b"a", b"\x00", b":", rng.randbytes(1)])
        data = data[:at] + more + data[at + rng.randrange(2) :]
    return data


async def test_answers_with_mistakes_in_any_place_mean_the_same():
    rng = random.Random(3)
    for _ in range(NUM_RANDOM):
        data = mutated(rng, rng.choice(list(ANSWERS.values())))
        cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
        pieces = [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)]) if b > a]

        ours, theirs = both(pieces, is_lost=rng.random() < 0.5, taker=rng.choice([None, "takes"]))

        if ours != theirs and is_cut_off(data):
            ours, theirs = ours[4:], theirs[4:]
        assert ours == theirs, pieces


@pytest.mark.parametrize("rest", [b"HTTP/1.1 2", b"H"])
async def test_what_begins_after_an_answers_end_ends_its_connection(rest):
    asked = Asked(native())

    asked.feed(WHOLE[:40])
    asked.feed(WHOLE[40:] + rest)

    assert (asked.head.result().status, asked.owner.num_free) == (200, 0)
    assert asked.connection._should_close


async def test_a_reader_that_lags_stops_the_connection_and_gets_all_in_order():
    rng = random.Random(5)
    events = [b"data: %d %b\n\n" % (number, b"x" * rng.randrange(3000)) for number in range(400)]
    asked = Asked(native())
    asked.feed(CHUNKED)
    content = asked.head.result().content
    got, waiting = [], list(events)

    while waiting or not content.at_eof():
        while waiting and not asked.connection._reading_paused:
            number = rng.randrange(1, 40)
            data = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in waiting[:number])
            del waiting[:number]
            cut = rng.choice([0, len(data), rng.randrange(len(data))])
            asked.feed(data[:cut])
            asked.feed(data[cut:] if waiting else data[cut:] + b"0\r\n\r\n")
        got.append(content.read_nowait())

    assert b"".join(got) == b"".join(events)
    assert asked.transport.told[:2] == ["pause", "resume"]
    assert asked.owner.num_free == 1


async def test_a_stream_whose_chunks_come_whole_and_cut_in_turns_never_stops():
    asked = Asked(native(), "takes")
    asked.feed(CHUNKED)

    for _ in range(3000):
        for piece in (b"9\r\ndata: a\n\n\r\n" * 5, b"9\r\ndata:", b" b\n\n\r\n"):
            asked.feed(piece)
    asked.feed(b"0\r\n\r\n")

    assert b"".join(asked.body) == (b"data: a\n\n" * 5 + b"data: b\n\n") * 3000
    assert (asked.transport.told, asked.owner.num_free) == ([], 1)


HEADERS = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=20)
NAMES = st.sampled_from(
    ["Accept", "authorization", "X-API-KEY", "Connection", "Keep-Alive", "Host", "X-Quire-Token", "x-quire-", "x-request-id", "TE",
     "Cookie", "Content-Length", "close", "User-Agent", "x-long-" + "n" * 80, "X-QUIRE-" + "n" * 80, "traceparent"]
)  # fmt: skip
VALUES = st.sampled_from(
    ["keep-alive", "close", "Keep-Alive ", "keep-alive, x-a", "", "a b", "a\tb", "ä", "a\r\nb: c", "a\x00"]
)


def call_with(headers, **fields):
    values = {
        "request_id": "r",
        "model": "m",
        "targets": ("m",),
        "path": "/v1/completions",
        "body": b"{}",
        "is_stream": False,
    }
    return Call(**values, first_byte_timeout_s=None, prompt=None, headers=headers, **fields)


def written(heads, call, body):
    try:
        return heads.request(b"POST / HTTP/1.1\r\nHost: h\r\n", call, body, 100.0)
    except ValueError as error:
        return type(error)


@settings(max_examples=300)
@given(
    pairs=st.lists(
        st.tuples(NAMES | HEADERS.filter(lambda name: name and name.isascii() and ":" not in name), VALUES | HEADERS),
        max_size=6,
    ),
    body=st.binary(max_size=40),
    keep_key=st.booleans(),
    is_trusted=st.booleans(),
    salt=st.sampled_from([None, "salt", "s\r\nx: y"]),
)
def test_a_request_is_written_the_same(pairs, body, keep_key, is_trusted, salt):
    trust = Trust.generate() if is_trusted else None
    headers = CIMultiDictProxy(CIMultiDict([(istr(name), value) for name, value in pairs]))
    tenant = Tenant(entry=TenantEntry(id="t-1"), key_id="k")
    call = call_with(headers, keep_key=keep_key, deadline_s=112.5, priority=3, tenant=tenant, cache_salt=salt)

    ours, theirs = (written(RequestHeads(trust, parts), call, body) for parts in (native(), None))

    assert ours == theirs


@settings(max_examples=300)
@given(
    pairs=st.lists(st.tuples(NAMES, st.sampled_from(["a", "keep-alive", "b c", "x\t;y", "close"])), max_size=6),
    keep_key=st.booleans(),
)
def test_headers_that_were_read_are_written_as_a_map_of_them(pairs, keep_key):
    lines = "".join(f"{name}: {value}\r\n" for name, value in [*pairs, ("Host", "h"), ("Content-Length", "1")])
    found = (
        native().PlainReader(("/p",), lambda raw: istr(raw.decode())).read(f"POST /p HTTP/1.1\r\n{lines}\r\nx".encode())
    )
    assume(found is not None)

    rules = native().RequestHeads(header_rules.NOT_TO_WORKER, header_rules.KEYS, "x-quire-", "x-request-id")
    ours, theirs = (
        rules.write(b"L\r\n", headers, keep_key, "r", ["x-own", "1"], b"x")
        for headers in (found[1], CIMultiDictProxy(CIMultiDict(found[1].items())))
    )

    assert ours == theirs


def test_a_usual_request_is_written_in_one_step_and_none_of_its_headers_ends_it():
    headers = CIMultiDict(
        {"Host": "h", "Connection": "keep-alive", "Accept": "*/*", "Authorization": "Bearer k", "X-Quire-Tenant": "x"}
    )
    call = call_with(headers, keep_key=False)
    rules = native().RequestHeads(header_rules.NOT_TO_WORKER, header_rules.KEYS, "x-quire-", "x-request-id")

    request = rules.write(b"POST / HTTP/1.1\r\n", call.headers, False, call.request_id, [], b"{}")
    refused = rules.write(b"POST / HTTP/1.1\r\n", CIMultiDict({"A": "b\r\nc: d"}), False, "1", [], b"")

    assert request == b"POST / HTTP/1.1\r\nContent-Length: 2\r\nAccept: */*\r\nx-request-id: r\r\n\r\n{}"
    assert refused is None
    with pytest.raises(ValueError, match="control character"):
        _serialize_headers("x", CIMultiDict({"A": "b\r\nc: d"}))


LINES = st.sampled_from(
    [b": t 0 1", b": t 1 2,3", b": t 0 4,5,6", b": t 0", b": t ", b": tx", b": s abc", b": f 0", b": u 1 2 3", b": keep-alive", b":x",
     b": migrate", b"data: a", b'data: {"error":{"code":"engine_dead"}}', b'data: "code":"engine_dead"',
     b"data: [DONE]", b"event: error", b"", b"x"]
)  # fmt: skip


def state_of(replay):
    names = [name for name in Replay.__slots__ if name != "_take_events"]
    return {name: getattr(replay, name) for name in names}


@settings(max_examples=300)
@given(
    st.lists(st.lists(st.lists(LINES, min_size=1, max_size=4), max_size=4), max_size=6),
    st.sampled_from([b"\n\n", b"\n", b""]),
)
def test_events_are_taken_and_noted_the_same(parts, end):
    ours, theirs = Replay(Usage(), native().take_events), Replay(Usage())

    for events in parts:
        part = b"".join(b"\n".join(lines) + b"\n\n" for lines in events) + end
        assert ours.take(part) == theirs.take(part)
        assert state_of(ours) == state_of(theirs)


def test_usual_events_are_taken_in_one_step_and_others_change_nothing():
    replay, fresh = Replay(Usage()), Replay(Usage())
    limits = (replays.MAX_RECORD_BYTES, replays.MAX_CHOICES, b'"code":"engine_dead"')
    take = native().take_events

    others = [
        take(replay, part, *limits) for part in (b": s x\ndata: a\n\n", b"data: a", b"\n\n\n", b": keep-alive\n\n", b"")
    ]
    untouched = state_of(replay) == state_of(fresh)
    full = take(replay, b": t 0 1\ndata: a\n\n", 1, 1, b"no")
    usual = take(replay, b": t 0 1,2\ndata: a\n\ndata: b\n\n: t 0 3\n\n", *limits)

    assert (others, untouched, full) == ([None] * 5, True, None)
    assert usual == b"data: a\n\ndata: b\n\n"
    assert (replay.usage.output, replay.num_events, replay._last, replay._ids) == (
        3,
        2,
        b"data: b\n\n",
        {b"0": b"1,2,3"},
    )


class Client:
    """What a sink sees of a client's connection."""

    def __init__(self):
        self.transport, self.writing_paused = Written(), False


class Written:
    """A transport that keeps what it is given."""

    def __init__(self):
        self.data, self.is_closed = [], False

    def write(self, data):
        self.data.append(data)

    def is_closing(self):
        return self.is_closed


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_sink_writes_counts_and_stops_the_same(is_chunked):
    rng = random.Random(11)
    ours, theirs = Client(), Client()
    written = [client.transport.data for client in (ours, theirs)]
    sinks = [
        sink_of(client, is_chunked=is_chunked, parts=parts) for client, parts in ((ours, native()), (theirs, None))
    ]
    parts = [
        rng.choice([b"data: x\n\n", b"a\n\n\n\n\nb", b"x" * rng.randrange(70_000), b"", b"\n\n"]) for _ in range(200)
    ]

    for part in parts:
        ours.writing_paused = theirs.writing_paused = rng.random() < 0.3
        told = [sink(part) for sink in sinks]
        assert told == [not ours.writing_paused] * 2
    ours.transport.is_closed = theirs.transport.is_closed = True
    told_closed = [sink(b"x\n\n") for sink in sinks]
    ours.transport = theirs.transport = None
    told_gone = [sink(b"x\n\n") for sink in sinks]

    assert (told_closed, told_gone) == ([False, False], [False, False])
    assert written[0] == written[1]
    assert sinks[0].num_events == sinks[1].num_events == sum(part.count(b"\n\n") for part in parts)


def test_headers_of_an_answer_are_asked_in_any_case():
    status, headers, body = native().read_answer(WHOLE)

    assert (status, body, len(headers)) == (200, b"abcde", 4)
    assert (headers["X-a"], headers.get(istr("X-A")), headers.getall("x-A")) == ("b\tc", "b\tc", ["b\tc", "d"])
    assert (headers.get("none"), headers.get("none", "d"), headers.getall("none", ())) == (None, "d", ())
    assert ("x-a" in headers, "none" in headers, list(headers)) == (
        True,
        False,
        ["Content-Type", "X-A", "x-a", "Content-Length"],
    )
    for ask in (headers.__getitem__, headers.getall):
        with pytest.raises(KeyError):
            ask("none")
