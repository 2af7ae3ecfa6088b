"""How a worker's process is put to sleep and woken, against a real server in the place of the worker."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from quire_cli.local.rest import MAX_WAKES, Rest
from quire_contract import names

POLL_S = 0.005


class Worker:
    """Answers as it is told to, and counts."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str | None]] = []
        self.status = 200
        self.is_asleep = False
        self.sleeps = asyncio.Event()
        """Whether a sleep comes about; else it is as if the worker had not heard of it yet."""
        self.sleeps.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get(names.HEADER_TOKEN)))
        if request.path == names.PATH_SLEEP:
            await self.sleeps.wait()
        self.is_asleep = request.path == names.PATH_SLEEP
        return web.json_response({}, status=self.status)

    async def until_asked(self, number: int) -> None:
        async with asyncio.timeout(60):
            while len(self.asked) < number:  # noqa: ASYNC110 - nobody sets an event
                await asyncio.sleep(POLL_S)


@pytest.fixture
async def worker() -> Worker:
    return Worker()


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., object]]:
    """Makes a Rest for a worker that listens."""

    @asynccontextmanager
    async def run(worker: Worker) -> AsyncIterator[Rest]:
        app = web.Application()
        for path in (names.PATH_SLEEP, names.PATH_WAKE):
            app.router.add_post(path, worker.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as http:
            yield Rest(f"http://127.0.0.1:{runner.addresses[0][1]}", "token", http, again_s=POLL_S)
        await runner.cleanup()

    yield run


async def test_nobody_is_asked_before_sleep_is_wanted_and_then_with_the_token(worker, serve) -> None:
    async with serve(worker) as rest:
        asleep = asyncio.create_task(rest.until_asleep())
        await asyncio.sleep(0)
        before = list(worker.asked)
        rest.want(True)
        await asleep

    assert (before, worker.asked, rest.is_wanted) == ([], [(names.PATH_SLEEP, "token")], True)


async def test_a_busy_worker_is_asked_again_until_it_sleeps(worker, serve) -> None:
    worker.status = 409
    async with serve(worker) as rest:
        rest.want(True)
        asleep = asyncio.create_task(rest.until_asleep())
        await worker.until_asked(3)
        worker.status = 200
        await asleep

    assert {path for path, _ in worker.asked} == {names.PATH_SLEEP}


async def test_a_sleep_that_waits_is_given_up_when_the_worker_is_wanted_again(worker, serve) -> None:
    worker.sleeps.clear()
    async with serve(worker) as rest:
        rest.want(True)
        asleep = asyncio.create_task(rest.until_asleep())
        await worker.until_asked(1)
        rest.want(False)
        await asleep
        waking = asyncio.create_task(rest.wake())
        await worker.until_asked(3)
        early = waking.done()
        worker.sleeps.set()
        woken = await waking

    assert woken
    assert not early, "the worker had not heard of the sleep, so no wake was the last word"
    assert (worker.asked[0][0], worker.asked[-1][0], worker.is_asleep) == (names.PATH_SLEEP, names.PATH_WAKE, False)
    assert {path for path, _ in worker.asked[1:]} == {names.PATH_WAKE}


async def test_a_sleep_that_was_wanted_for_a_moment_only_ends_at_once(worker, serve) -> None:
    async with serve(worker) as rest:
        rest.want(True)
        rest.want(False)
        await rest.until_asleep()
        again = asyncio.create_task(rest.until_asleep())
        await asyncio.sleep(0)
        is_over = again.done()
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    assert not is_over


async def test_a_worker_that_refuses_to_wake_is_asked_so_often_and_no_more(worker, serve) -> None:
    worker.status = 503
    async with serve(worker) as rest:
        woken = await rest.wake()

    assert not woken
    assert len(worker.asked) == MAX_WAKES


async def test_a_worker_that_is_gone_does_not_wake() -> None:
    async with aiohttp.ClientSession() as http:
        assert not await Rest("http://127.0.0.1:9", "token", http, again_s=POLL_S).wake()
