"""What is no sound HTTP is refused over raw sockets, and no worker hears of it: nothing is smuggled past the router."""

import asyncio
import contextlib
import re

GOOD = b'{"model":"m","prompt":"sound"}'
HOST = b"Host: r\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(GOOD)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = b'POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 33\r\n\r\n{"model":"m","prompt":"smuggled"}'
CLOSE = b"Connection: close\r\n"
ANSWER_S = 120.0
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
OF = {"HTTP/0.9": b"505", "HTTP/2.0": b"505"}
"""Refusals other than 400."""


def post(*headers, body=GOOD, line=b"POST /v1/completions HTTP/1.1\r\n"):
    return line + HOST + b"".join(headers) + b"\r\n" + body


def chunks(text, *headers):
    return post(CHUNKED, *headers, body=text)


REFUSED = {
    "length and chunks": post(b"Content-Length: 5\r\n", CHUNKED, body=b"0\r\n\r\n" + SMUGGLED),
    "chunks and length": post(CHUNKED, b"Content-Length: 5\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks and length 0": post(CHUNKED, b"Content-Length: 0\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "two lengths": post(LENGTH, b"Content-Length: 0\r\n", body=GOOD + SMUGGLED),
    "two equal lengths": post(LENGTH, LENGTH),
    "a list of lengths": post(b"Content-Length: 30, 30\r\n"),
    "a signed length": post(b"Content-Length: +30\r\n"),
    "a negative length": post(b"Content-Length: -1\r\n"),
    "a hexadecimal length": post(b"Content-Length: 0x1e\r\n"),
    "an empty length": post(b"Content-Length: \r\n"),
    "a length beyond 64 bits": post(b"Content-Length: 99999999999999999999999\r\n"),
    "a length with a tab within": post(b"Content-Length: 3\t0\r\n"),
    "an unknown coding": post(b"Transfer-Encoding: xchunked\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked, then another": post(b"Transfer-Encoding: chunked, identity\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": post(b"Transfer-Encoding: chunked, chunked\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "chunked in two headers": post(CHUNKED, b"Transfer-Encoding: identity\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "a coding with a space before the colon": post(b"Transfer-Encoding : chunked\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "a coding behind a vertical tab": post(b"Transfer-Encoding: \x0bchunked\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "chunks of HTTP/1.0": post(CHUNKED, line=b"POST /v1/completions HTTP/1.0\r\n", body=b"0\r\n\r\n" + SMUGGLED),
    "a negative chunk": chunks(b"-1\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a signed chunk": chunks(b"+1e\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk of 0x": chunks(b"0x1e\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk beyond 64 bits": chunks(b"1000000000000000000001e\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk of no size": chunks(b"\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a chunk longer than it says": chunks(b"1\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "chunks with bare line feeds": chunks(b"1e\n" + GOOD + b"\n0\n\n" + SMUGGLED),
    "an extension with a line feed": chunks(b"1e;\nxx\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a size with a space before it": chunks(b" 1e\r\n" + GOOD + b"\r\n0\r\n\r\n"),
    "a folded header": post(b"X-A: b\r\n c\r\n", LENGTH),
    "a folded coding": post(b"X-A: b\r\n Transfer-Encoding: chunked\r\n", LENGTH),
    "a folded first header": b"POST /v1/completions HTTP/1.1\r\n Host: r\r\n" + LENGTH + b"\r\n" + GOOD,
    "two hosts": post(b"Host: elsewhere\r\n", LENGTH),
    "NUL in a value": post(b"X-A: b\0c\r\n", LENGTH),
    "NUL in a name": post(b"X\0A: b\r\n", LENGTH),
    "NUL in the path": post(LENGTH, line=b"POST /v1/comp\0letions HTTP/1.1\r\n"),
    "a bare CR in a value": post(b"X-A: b\rX-B: c\r\n", LENGTH),
    "a header without colon": post(b"X-A\r\n", LENGTH),
    "a header without name": post(b": b\r\n", LENGTH),
    "a name with a space": post(b"X A: b\r\n", LENGTH),
    "bare line feeds": post(LENGTH).replace(b"\r\n", b"\n"),
    "a huge value": post(b"X-A: " + b"a" * 100_000 + b"\r\n", LENGTH),
    "a huge name": post(b"X" * 100_000 + b": b\r\n", LENGTH),
    "a huge path": post(LENGTH, line=b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\n"),
    "a header that never ends": b"POST /v1/completions HTTP/1.1\r\nX-A: " + b"a" * 1_000_000,
    "a path that never ends": b"POST /" + b"a" * 1_000_000,
    "very many headers": post(*(b"X-%d: b\r\n" % i for i in range(50_000)), LENGTH),
    "a lower-case method": post(LENGTH, line=b"post /v1/completions HTTP/1.1\r\n"),
    "an unknown method": post(LENGTH, line=b"SMUGGLE /v1/completions HTTP/1.1\r\n"),
    "a space in the path": post(LENGTH, line=b"POST /v1/completions x HTTP/1.1\r\n"),
    "a path without a slash": post(LENGTH, line=b"POST v1/completions HTTP/1.1\r\n"),
    "HTTP/0.9": b"GET /v1/models\r\n\r\n",
    "HTTP/1.10": post(LENGTH, line=b"POST /v1/completions HTTP/1.10\r\n"),
    "HTTP/2.0": post(LENGTH, line=b"POST /v1/completions HTTP/2.0\r\n"),
    "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "another protocol": b"ICY /v1/completions ICE/1.0\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "nonsense": bytes(range(256)) * 40,
    "a reply": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


ANSWERED = {
    "an absolute URI": post(LENGTH, CLOSE, line=b"POST http://elsewhere:1/v1/completions HTTP/1.1\r\n"),
    "two spaces before the path": post(LENGTH, CLOSE, line=b"POST  /v1/completions HTTP/1.1\r\n"),
    "an empty line first": b"\r\n" + post(LENGTH, CLOSE),
    "HTTP/1.0": post(LENGTH, line=b"POST /v1/completions HTTP/1.0\r\n"),
    "chunks with extensions and a trailer": chunks(
        b"0a;a=b\r\n" + GOOD[:10] + b"\r\n014\r\n" + GOOD[10:] + b"\r\n0\r\nX-Trailer: t\r\n\r\n", CLOSE
    ),
    "an upgrade": post(
        b"Upgrade: h2c, websocket\r\nHTTP2-Settings: AAMA\r\nConnection: Upgrade, HTTP2-Settings, close\r\n", LENGTH
    ),
    "a value of bytes that are no text": post(b"X-A: \xff\xfe\xe4\r\n", LENGTH, CLOSE),
    "an encoded path": post(LENGTH, CLOSE, line=b"POST /v1/%63ompletions HTTP/1.1\r\n"),
    "a query": post(LENGTH, CLOSE, line=b"POST /v1/completions?a=%0d%0aX-B:%20c HTTP/1.1\r\n"),
}
"""Odd, but sound: what a worker gets of it is the router's own request."""

ELSEWHERE = [
    b"/internal/resume",
    b"/internal/drain",
    b"/v1/../internal/resume",
    b"/v1/completions/../../internal/resume",
    b"/v1/completions/",
    b"//v1/completions",
    b"/%2e%2e/internal/resume",
    b"/v1/completions%0d%0aX-B:%20c",
    b"/v1/completions%00",
    b"/v1/completions%20HTTP/1.1%0d%0aX-B:%20c",
    b"*",
]


async def talk(url, data):
    """All that the router says to `data`, to the connection's end."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    told = b""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(ANSWER_S):
            writer.write(data)
            while part := await reader.read(65536):
                told += part
    writer.close()
    return told


async def talks(router, requests):
    """name -> (the statuses that came, the whole text), a connection each, until the router closes it."""
    told = await asyncio.gather(*(talk(router.url, data) for data in requests.values()))
    return {name: (STATUS.findall(text), text) for name, text in zip(requests, told, strict=True)}


async def test_what_is_no_sound_http_gets_one_refusal_and_no_worker_hears_of_it(
    start_upstream, start_router, make_config, logged
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    told = await talks(router, REFUSED)
    async with router.post(GOOD) as answer:
        status_after = answer.status

    wrong = {name: text[:200] for name, (found, text) in told.items() if found != [OF.get(name, b"400")]}
    assert wrong == {}
    assert all(b'"code":"invalid_http"' in text for _, text in told.values())
    assert (status_after, worker.bodies) == (200, [GOOD])
    assert "smuggled" not in logged()
    assert "Traceback" not in logged()


async def test_what_is_odd_but_sound_reaches_the_worker_as_the_routers_own_request(
    start_upstream, start_router, make_config
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)

    told = await talks(router, ANSWERED)

    assert {name: found for name, (found, _) in told.items() if found != [b"200"]} == {}
    assert worker.bodies == [GOOD] * len(ANSWERED)
    for headers in worker.headers:
        assert (headers.getall("Host"), headers.getall("Content-Length")) == ([worker.url[7:]], [str(len(GOOD))])
        assert not {"Transfer-Encoding", "X-Trailer", "Upgrade", "HTTP2-Settings", "X-B"} & set(headers)


async def test_no_spelling_of_a_path_leads_to_a_workers_internal_ones(start_upstream, start_router, make_config):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    line = b"POST %s HTTP/1.1\r\n"

    told = await talks(router, {path: post(LENGTH, CLOSE, line=line % path) for path in ELSEWHERE})

    assert {path: found for path, (found, _) in told.items() if found not in ([b"404"], [b"400"])} == {}
    assert worker.bodies == []


async def test_requests_in_one_write_are_answered_in_their_order_each_to_its_own_length(
    start_upstream, start_router, make_config
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    unknown = b'{"model":"x","prompt":"no"}'

    sound = post(LENGTH) + post(b"Content-Length: %d\r\n" % len(unknown), body=unknown)

    told = await talks(router, {"all": sound + chunks(b"1e\r\n" + GOOD + b"\r\n0\r\n\r\n", CLOSE)})

    assert told["all"][0] == [b"200", b"404", b"200"]
    assert worker.bodies == [GOOD, GOOD]
