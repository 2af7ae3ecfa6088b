"""Bodies in chunks of a few bytes: recognised before they are parsed, and nothing else is."""

import gzip
import json
import random

import pytest

from quire_router.tiny_chunks import has_tiny_chunks
from tests.router.test_malformed_http import CHUNKED, CLOSE, GOOD, STATUS, post, talk

HEAD = post(CHUNKED, body=b"")
IDS = list(range(5000))


def chunked(body, size, extension=b""):
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 8, 16])
@pytest.mark.parametrize("extension", [b"", b";a"])
def test_tiny_chunks_are_recognised_with_and_without_a_head_before_them(size, extension):
    body = chunked(b"a b " * 5000, size, extension)

    assert has_tiny_chunks(body[100:])
    assert has_tiny_chunks(HEAD + body)


@pytest.mark.parametrize(
    "data",
    [
        chunked(b"a b " * 5000, 64),
        chunked(b"a" * 100_000, 4096),
        json.dumps({"prompt": IDS}, indent=1).replace("\n", "\r\n").encode(),
        json.dumps({"prompt": [[1]] * 5000}, indent=4).replace("\n", "\r\n").encode(),
        json.dumps({"prompt": "1\r\n" * 5000}).encode(),
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" * 1000,
        gzip.compress(random.Random(1).randbytes(100_000)),
        chunked(b"abc", 1),
        b"\r\n" * 10_000,
    ],
    ids=[
        "64",
        "4096",
        "pretty ids",
        "pretty lists",
        "line ends in a text",
        "many requests",
        "gzip",
        "few",
        "empty lines",
    ],
)
def test_nothing_else_is(data):
    assert not has_tiny_chunks(data)


async def test_a_client_that_sends_them_is_cut_off_and_others_are_served(
    start_upstream, start_router, make_config, logged
):
    worker = await start_upstream("a")
    router = await start_router(make_config(worker))
    await router.until_ready(1)
    padded = GOOD[:-1] + b" " * 200_000 + b"}"

    told = await talk(router.url, HEAD + chunked(padded, 1))
    good = await talk(router.url, post(CHUNKED, CLOSE, body=chunked(padded, 100)))

    assert b" 200 " not in told
    assert STATUS.findall(good) == [b"200"]
    assert worker.bodies == [padded]
    assert "error=tiny_chunks" in logged()
