"""Clients that hardly read: their answers wait at the workers, and nobody else's do."""

import asyncio
import contextlib
import socket
from urllib.parse import urlsplit

import pytest
from aiohttp import web

BODY = b'{"model":"m","prompt":"x","stream":true}'
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
EVENT = b"data: " + b"x" * 8000 + b"\n\n"
END = b"data: [DONE]\n\n"
SMALL_BUFFER = 4096
NUM_SLOW = 200
POLL_S = 0.05
NUM_SAME = 10
"""Looks at which nothing has moved: everything is full."""
MAX_HELD_BYTES = 1_100_000
"""Of one answer, on its way from the worker to a client that takes nothing."""


class Pouring:
    """A worker's behaviour: it sends without end, and counts what left it."""

    def __init__(self):
        self.sent = 0

    async def __call__(self, request, upstream):
        own = request.transport.get_extra_info("socket")
        own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if request.headers.get("x-request-id") == "reader":
            await response.write(EVENT * 50 + END)
            return response
        while True:
            await response.write(EVENT)
            self.sent += len(EVENT)

    async def until_stuck(self):
        same, before = 0, -1
        async with asyncio.timeout(120):
            while same < NUM_SAME:
                same = same + 1 if self.sent == before else 0
                before = self.sent
                await asyncio.sleep(POLL_S)


async def until_free(router):
    async with asyncio.timeout(120):
        while router.app._pool.get("a").num_in_flight:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)


@pytest.fixture
async def open_slow():
    """Clients that have asked and read nothing yet."""
    with contextlib.ExitStack() as stack:

        async def start(router, number):
            for _ in range(number):
                own = stack.enter_context(socket.socket())
                own.setblocking(False)
                own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(own, ("127.0.0.1", urlsplit(router.url).port))
                await loop.sock_sendall(own, REQUEST)

        yield start


async def test_what_a_client_does_not_take_waits_at_its_worker_not_in_the_routers_memory(
    start_upstream, start_router, make_config, open_slow
):
    pouring = Pouring()
    router = await start_router(make_config(await start_upstream("a", pouring)))
    await router.until_ready(1)

    await open_slow(router, 1)
    await pouring.until_stuck()

    assert 0 < pouring.sent < MAX_HELD_BYTES


async def test_others_are_served_whole_while_slow_readers_are_stuck(
    start_upstream, start_router, make_config, open_slow
):
    pouring = Pouring()
    router = await start_router(make_config(await start_upstream("a", pouring)))
    await router.until_ready(1)
    await open_slow(router, NUM_SLOW)
    await pouring.until_stuck()
    sent = pouring.sent

    async def read():
        async with router.post(BODY, headers={"x-request-id": "reader"}) as answer:
            return await answer.read()

    answers = await asyncio.gather(*(read() for _ in range(8)))

    assert answers == [EVENT * 50 + END] * 8
    assert pouring.sent == sent
    assert router.app._pool.get("a").num_in_flight == NUM_SLOW


async def test_a_client_that_takes_nothing_for_too_long_is_cut_off_and_its_place_is_free_again(
    start_upstream, start_router, make_config, open_slow
):
    upstream = await start_upstream("a", Pouring())
    router = await start_router(make_config(upstream), idle_timeout_s=0.5)
    await router.until_ready(1)

    await open_slow(router, NUM_SLOW)
    async with asyncio.timeout(120):
        while upstream.num_abandoned < NUM_SLOW:  # noqa: ASYNC110 - nobody sets an event
            await asyncio.sleep(POLL_S)
    await until_free(router)

    assert router.app._pool.get("a").num_unanswered == 0


async def test_a_client_that_reads_by_fits_and_starts_gets_every_event_in_order(
    start_upstream, start_router, make_config
):
    events = [b"data: %06d %b\n\n" % (number, b"x" * 4000) for number in range(1500)]

    async def pour(request, upstream):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(event)
        await response.write(END)
        return response

    router = await start_router(make_config(await start_upstream("a", pour)))
    await router.until_ready(1)
    async with router.post(BODY) as answer:
        got = bytearray()
        while chunk := await answer.content.read(200_000):
            got += chunk
            await asyncio.sleep(0)
    await until_free(router)

    assert bytes(got) == b"".join(events) + END


@pytest.mark.parametrize("how", ["reset", "half-closed"])
async def test_clients_that_leave_while_they_are_stuck_leave_nothing_behind(
    start_upstream, start_router, make_config, open_slow, how
):
    pouring = Pouring()
    upstream = await start_upstream("a", pouring)
    router = await start_router(make_config(upstream))
    await router.until_ready(1)

    with contextlib.ExitStack() as stack:
        for _ in range(NUM_SLOW):
            own = stack.enter_context(socket.socket())
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
            await asyncio.get_running_loop().sock_connect(own, ("127.0.0.1", urlsplit(router.url).port))
            await asyncio.get_running_loop().sock_sendall(own, REQUEST)
            if how == "half-closed":
                own.shutdown(socket.SHUT_WR)
            else:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        if how == "reset":
            await pouring.until_stuck()
    await until_free(router)

    assert router.app._pool.get("a").num_unanswered == 0
