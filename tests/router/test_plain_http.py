"""What the extension reads and writes is what aiohttp and our Python would, over many requests and answers, sound, odd and hostile."""

import asyncio
import random

import pytest
from aiohttp.http_parser import HttpRequestParser
from aiohttp.streams import StreamReader
from multidict import CIMultiDict, CIMultiDictProxy, istr

from quire_router.native.library import native
from quire_router.passed_headers import PassedHeaders
from quire_router.plain_http import PlainHttp, plain_http
from quire_router.whole_response import WholeResponse
from tests.router.test_malformed_http import ANSWERED, REFUSED

PATHS = ("/v1/completions", "/v1/chat/completions")
BODY = b'{"model":"m","prompt":"sound"}'
NUM_RANDOM = 6000
NAMES = [
    b"X-A",
    b"x-request-id",
    b"Authorization",
    b"content-type",
    b"CONTENT-TYPE",
    b"User-Agent",
    b"Accept",
    b"x!#$%&'*+-.^_`|~9",
]
ODD_NAMES = [
    b"Transfer-Encoding", b"Connection", b"Upgrade", b"Expect", b"Content-Encoding", b"Trailer", b"TE", b"Host", b"Content-Length",
    b"Proxy-Connection", b"Keep-Alive", b"Sec-WebSocket-Key1", b"X A", b"", b"X-\xe4", b"ETag", b"Server", b"a" * 65, b" X", b"X\t", b"(x)",
]  # fmt: skip
VALUES = [
    b"a",
    b"application/json",
    b"Bearer sk-123",
    b"a b\tc",
    b'"q";,=:',
    b"keep-alive",
    b"Keep-Alive",
    b"7",
    b"~!@",
]
ODD_VALUES = [
    b"", b"close", b"chunked", b"100-continue", b"gzip", b"\x00", b"a\x00b", b"a\rb", b"a\nb", b"\x7f", b"\x01", b"\xff\xe4", b"a\r\n b",
    b"keep-alive, Upgrade", b"5000000000000", b"+7", b"v" * 5000, b"websocket",
]  # fmt: skip
LINES = [b"POST %b HTTP/1.1\r\n" % path.encode() for path in PATHS]
ODD_LINES = [
    b"POST /v1/completions HTTP/1.0\r\n", b"POST /v1/completions?a=b HTTP/1.1\r\n", b"POST /v1/elsewhere HTTP/1.1\r\n",
    b"GET /v1/completions HTTP/1.1\r\n", b"post /v1/completions HTTP/1.1\r\n", b"POST  /v1/completions HTTP/1.1\r\n",
    b"POST /v1/completions HTTP/1.1\n", b"POST /v1/completions HTTP/1.1 \r\n", b"POST /v1/completions HTTP/1.10\r\n",
    b"\r\nPOST /v1/completions HTTP/1.1\r\n", b"POST /v1/completions\r\n", b"POST /v1/%63ompletions HTTP/1.1\r\n", b"",
]  # fmt: skip


class Protocol:
    """As much of a connection as a parser and its bodies ask for."""

    _reading_paused = False

    def pause_reading(self):
        raise AssertionError("no body here is that long")

    def resume_reading(self, resume_parser=True):
        pass


def parser_of(loop):
    return HttpRequestParser(Protocol(), loop, 2**16, auto_decompress=False, max_line_size=8190, max_field_size=8190)


@pytest.fixture
def plain():
    found = plain_http(PATHS)
    assert found is not None
    return found


def drawn(rng):
    """A request that may have something odd about it."""

    def pick(usual, odd, share=0.04):
        return rng.choice(odd if rng.random() < share else usual)

    def ows():
        return rng.choice([b" "] * 8 + [b"", b"\t", b"  \t"])

    body = rng.choice([BODY, b"x", rng.randbytes(rng.randrange(1, 300)), b"\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"])
    length = b"%d" % (len(body) if rng.random() < 0.95 else rng.choice([0, 1, len(body) + 5, len(body) - 1]))
    headers = [(b"Host", b"r"), (rng.choice([b"Content-Length", b"content-length"]), length)]
    headers = [header for header in headers if rng.random() < 0.97]
    headers += [
        (pick(NAMES, ODD_NAMES), pick(VALUES, ODD_VALUES))
        for _ in range(rng.choice([0, 1, 2, 4, 8, 80]) if rng.random() < 0.6 else 1)
    ]
    rng.shuffle(headers)
    end = rng.choice([b"\r\n"] * 30 + [b"\n", b"\r"])
    head = b"".join(
        name + b":" + ows() + value + rng.choice([b"", b"", b"", b" ", b"\t"]) + end for name, value in headers
    )
    data = (
        pick(LINES, ODD_LINES)
        + head
        + b"\r\n"
        + body
        + (rng.choice([b"x", b"\r\n", b"POST "]) if rng.random() < 0.03 else b"")
    )
    if rng.random() < 0.08:
        data = data[: rng.randrange(len(data))]
    if rng.random() < 0.1:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randrange(2) :]
    return data


async def test_what_is_read_is_what_the_parser_reads_of_the_same_bytes(plain):
    rng = random.Random(11)
    numbers = {"whole": 0, "missing": 0, "odd": 0}

    for _ in range(NUM_RANDOM):
        data = drawn(rng)
        found = plain.read(data)
        numbers[kind_of(found)] += 1
        if found is not None:
            assert_parser_agrees(found, data, asyncio.get_running_loop())

    assert min(numbers.values()) > NUM_RANDOM // 100, numbers


def kind_of(found):
    return "odd" if found is None else "missing" if type(found) is int else "whole"


def assert_parser_agrees(found, data, loop):
    parser = parser_of(loop)
    messages, upgraded, tail = parser.feed_data(data)
    ((message, payload),) = messages
    assert (upgraded, tail, message.should_close, message.upgrade, message.chunked) == (False, b"", False, False, False)
    assert (message.method, tuple(message.version), message.compression) == ("POST", (1, 1), None)
    assert type(payload) is StreamReader
    if type(found) is int:
        missing = found
        assert missing > 0
        parser.feed_data(b"x" * (missing - 1))
        assert not payload.is_eof()
        assert parser.feed_data(b"x") == ((), False, b"")
        assert payload.is_eof()
        return
    path, headers, body = found
    assert (path, message.path) == (message.url.path, path)
    assert payload.is_eof()
    assert payload.read_nowait() == body
    theirs = list(message.headers.items())
    assert headers.items() == theirs
    assert [type(name) for name in headers] == [type(name) for name, _ in theirs]
    assert_alike(headers, message.headers)
    ((again, rest),) = parser.feed_data(data)[0]  # it was between two requests
    assert (again.path, rest.read_nowait()) == (path, body)


def assert_alike(ours, theirs):
    """What is asked of one is answered by the other alike."""
    assert (len(ours), ours.items(), ours.values()) == (len(theirs), list(theirs.items()), list(theirs.values()))
    assert list(ours) == ours.keys() == [name for name, _ in theirs.items()]
    for name in [*theirs, "X-none", "content-type", "", "ä"]:
        for asked in (name, name.lower(), name.upper(), istr(name)):
            assert (asked in ours) == (asked in theirs)
            assert ours.get(asked) == theirs.get(asked)
            assert ours.getall(asked, None) == theirs.getall(asked, None)
            if asked in theirs:
                assert (ours[asked], ours.getone(asked)) == (theirs[asked], theirs.getone(asked))
    assert 5 not in ours
    for ask in (ours.__getitem__, ours.getone, ours.getall):
        with pytest.raises(KeyError):
            ask("X-none")
    assert CIMultiDict(ours.items()) == theirs


def test_nothing_that_is_refused_or_odd_is_read(plain):
    found = {name: plain.read(data) for name, data in {**REFUSED, **ANSWERED}.items()}

    assert {name for name, read in found.items() if read is not None} == set()


def test_every_beginning_of_a_plain_request_is_left_or_its_missing_bytes_are_told(plain):
    data = LINES[0] + b"Host: r\r\nContent-Length: %d\r\nX-A: b\r\n\r\n" % len(BODY) + BODY
    head = len(data) - len(BODY)

    found = [plain.read(data[:size]) for size in range(len(data) + 1)]

    assert found[:head] == [None] * head
    assert found[head:-1] == list(range(len(BODY), 0, -1))
    path, headers, body = found[-1]
    assert (path, body) == (PATHS[0], BODY)
    assert headers.items() == [("Host", "r"), ("Content-Length", str(len(BODY))), ("X-A", "b")]


def test_names_without_number_are_not_all_kept(plain):
    request = LINES[0] + b"Host: r\r\nContent-Length: 1\r\nX-%d: b\r\n\r\nx"

    found = [plain.read(request % number) for number in range(5000)]

    assert [read[1].keys()[2] for read in found] == [f"X-{number}" for number in range(5000)]


def test_a_name_that_cannot_be_spelled_is_an_error_and_not_a_request():
    def fails(raw):
        raise KeyError(raw)

    reader = native().PlainReader(PATHS, fails)

    with pytest.raises(KeyError):
        reader.read(LINES[0] + b"Host: r\r\nContent-Length: 1\r\n\r\nx")
    assert reader.read(bytearray(LINES[0])) is None
    for spelled in (b"Host", None, "Hos", "Hôst"):
        with pytest.raises(ValueError, match="spelled"):
            native().PlainReader(PATHS, lambda raw, spelled=spelled: spelled).read(
                LINES[0] + b"Host: r\r\nContent-Length: 1\r\n\r\nx"
            )


THEIRS = [
    ("Content-Type", "application/json"), ("Date", "now"), ("Server", "w"), ("content-length", "5"), ("Set-Cookie", "a=b"), ("X-A", "b"),
    ("x-quire-reason", "busy"), ("X-Quire-Usage", "1,2,3"), ("Connection", "keep-alive"), ("Keep-Alive", "timeout=5"), ("X-Tab", "a\tb"),
    ("x-request-id", "theirs"), ("Vary", ""), ("Transfer-Encoding", "chunked"),
]  # fmt: skip
ODD_THEIRS = [
    ("Connection", "X-A"), ("Connection", "close"), ("X-A", "ä"), ("X-B", "a\x00b"), ("X-B", "a\udce4"), ("X-ä", "b"), ("X-B", "\x7f"),
    ("X" * 65, "long"), ("X-B", "a\rb"), ("x.y", "dots"),
]  # fmt: skip


ADDED = [
    ("x-ratelimit-limit-requests", "5"), ("x-ratelimit-remaining-tokens", "999999999999"), ("x-ratelimit-reset-requests", "1m0s"),
    ("x-quire-max-tokens", "7"), ("X-Tab", "mine"),
]  # fmt: skip
ODD_ADDED = [
    ("x-a", "mine"), ("VARY", "*"), ("x-request-id", "mine"), ("X-Quire-Route", "mine"), ("content-type", "text/plain"), ("Date", "now"),
    ("X-\u00e4", "b"), ("X-B", "\u00e4"), ("Connection", "close"), ("Content-Length", "7"), ("server", "mine"),
]  # fmt: skip


class Asked:
    """What an answer asks of its request."""

    version = (1, 1)
    method = "POST"
    keep_alive = True


def test_what_is_written_is_what_our_python_writes_of_the_same_answer(plain):
    rng = random.Random(5)
    num_plain = 0

    for _ in range(3000):
        names = [rng.choice(ODD_THEIRS if rng.random() < 0.03 else THEIRS) for _ in range(rng.randrange(8))]
        passed = PassedHeaders(
            CIMultiDictProxy(CIMultiDict(names)),
            rng.choice(["id-1", "a:b@c"]),
            rng.choice(["w0", "w0", "w\u00e4"]),
            "precise; cached=0/1",
        )
        for _ in range(rng.choice([0, 0, 1, 2, 6])):
            name, value = rng.choice(ODD_ADDED if rng.random() < 0.03 else ADDED)
            passed.added[name] = value
        status, body = rng.choice([200, 404, 503, 599]), rng.choice([b"", BODY, rng.randbytes(900)])
        found = WholeResponse(status=status, headers=passed, body=body).written(plain)
        expected = WholeResponse(status=status, headers=passed.made(), body=body).encoded(Asked())
        num_plain += found is not None
        assert without_date(expected if found is None else found) == without_date(expected)

    assert 1000 < num_plain < 3000


def test_headers_that_were_read_are_written_as_a_map_of_them(plain):
    rng = random.Random(6)
    num_plain = 0

    for _ in range(500):
        names = [rng.choice(ODD_THEIRS if rng.random() < 0.03 else THEIRS) for _ in range(rng.randrange(8))]
        names = [(name, value) for name, value in names if name.lower() not in ("content-length", "transfer-encoding")]
        lines = "".join(f"{name}: {value}\r\n" for name, value in [*names, ("Content-Length", "0")])
        answer = native().read_answer(b"HTTP/1.1 200 OK\r\n" + lines.encode("utf-8", "surrogateescape") + b"\r\n")
        if answer is None:
            continue
        read = answer[1]
        found, expected = (
            plain.write(200, headers, "a", "b", "c", BODY, {"x-b": "added"})
            for headers in (read, CIMultiDictProxy(CIMultiDict(read.items())))
        )
        num_plain += found is not None
        assert found == expected

    assert 300 < num_plain < 500


def without_date(data):
    return [line for line in data.split(b"\r\n") if not line.startswith(b"Date:")]


def test_an_answer_whose_headers_cannot_be_listed_is_an_error(plain):
    def writer(start=lambda status, second: b"S", own=("a", "b", "c")):
        return native().AnswerWriter(bool, start, own)

    assert (
        writer().write(200, {"x": "y"}, "1", "2", "3", b"", {"z": "4"})
        == b"SContent-Length: 0\r\nx: y\r\na: 1\r\nb: 2\r\nc: 3\r\nz: 4\r\n\r\n"
    )
    with pytest.raises(AttributeError):
        plain.write(200, None, "a", "b", "c", b"", {})
    with pytest.raises(TypeError):
        writer().write(200, {}, "1", "2", "3", "no bytes", {})
    with pytest.raises(TypeError):
        writer().write(200, {}, "1", "2", "3", b"", [("z", "4")])
    with pytest.raises(TypeError, match="begins with bytes"):
        writer(lambda status, second: "text").write(200, {}, "1", "2", "3", b"", {})
    with pytest.raises(ValueError, match="three names"):
        writer(own=("a", "b"))
    assert writer().write(200, {"a": 1}, "1", "2", "3", b"", {}) is None
    assert writer().write(200, {"a": "b"}, "1", None, "3", b"", {}) is None
    assert writer().write(200, {"x": "y"}, "1", "2", "3", b"", {"X": "z"}) is None
    assert [writer().write(200, {}, "1", "2", "3", b"", added) for added in ({"z": 1}, {1: "z"}, {"z": "a\nb"})] == [
        None
    ] * 3


def test_an_answer_that_has_no_body_or_ends_the_connection_is_not_written_here(plain):
    passed = PassedHeaders(CIMultiDictProxy(CIMultiDict(THEIRS)), "a", "b", "c")
    last, looked_at = (WholeResponse(headers=passed, body=BODY) for _ in range(2))
    last.force_close()
    looked_at.headers["X-Own"] = "1"

    found = [WholeResponse(status=status, headers=passed, body=b"").written(plain) for status in (101, 204, 304)]

    assert [*found, last.written(plain), looked_at.written(plain)] == [None] * 5
    assert b"X-Own: 1" in looked_at.encoded(Asked())


def test_without_the_extension_there_is_none():
    assert PlainHttp(native(), PATHS, 0).read(b"") is None
