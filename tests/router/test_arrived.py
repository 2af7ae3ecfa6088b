"""What has come of a body is the same in one step as in aiohttp's."""

import asyncio

import aiohttp
import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from quire_router.arrived import take_arrived

PARTS = {"nothing": [], "one": [b"abc"], "several": [b"a", b"bc", b"d"]}


class Connection(BaseProtocol):
    """Notes when reading is stopped and goes on."""

    def __init__(self, loop):
        super().__init__(loop)
        self.told = []

    def pause_reading(self):
        self._reading_paused = True
        self.told.append("pause")

    def resume_reading(self, *args, **kw):
        if self._reading_paused:
            self._reading_paused = False
            self.told.append("resume")


async def fed(parts, *, is_chunked, limit=2**16):
    content = StreamReader(Connection(asyncio.get_running_loop()), limit, loop=asyncio.get_running_loop())
    feed(content, parts, is_chunked=is_chunked)
    return content


def feed(content, parts, *, is_chunked):
    for part in parts:
        if is_chunked:
            content.begin_http_chunk_receiving()
        content.feed_data(part)
        if is_chunked:
            content.end_http_chunk_receiving()


@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("limit", [1, 2**16])
async def test_it_gives_what_aiohttp_gives_again_and_again(parts, is_chunked, limit):
    ours = await fed(parts, is_chunked=is_chunked, limit=limit)
    theirs = await fed(parts, is_chunked=is_chunked, limit=limit)

    for more in ([], [b"e"], [b"f", b"g"], [b"h" * 100]):
        assert take_arrived(ours) == theirs.read_nowait()
        feed(ours, more, is_chunked=is_chunked)
        feed(theirs, more, is_chunked=is_chunked)
    ours.feed_eof()
    theirs.feed_eof()

    assert take_arrived(ours) == theirs.read_nowait() == b"h" * 100
    assert ours.at_eof()
    assert theirs.at_eof()
    assert ours._protocol.told == theirs._protocol.told


async def test_a_part_that_was_begun_is_given_to_its_end():
    content = await fed([b"abcd"], is_chunked=False)

    first = content.read_nowait(1)

    assert (first, take_arrived(content), take_arrived(content)) == (b"a", b"bcd", b"")


async def test_what_is_wrong_with_a_body_is_raised_and_no_body_is_empty():
    content = await fed([b"abcd"], is_chunked=False)
    content.set_exception(aiohttp.ClientPayloadError("cut"))

    assert take_arrived(EMPTY_PAYLOAD) == b""
    with pytest.raises(aiohttp.ClientPayloadError, match="cut"):
        take_arrived(content)
