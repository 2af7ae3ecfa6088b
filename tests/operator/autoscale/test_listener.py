"""Routers are asked over and over; a queue that begins is told at once, and one that is gone is known to be."""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from quire_contract import names
from quire_contract.demand_report import DemandReport, ServiceDemand, encode_demand
from quire_operator.autoscale.listener import DemandListener, RouterAddress

POLL_S = 0.01
MAX_POLLS = 6000
SERVICE = "team/demo"


class Router:
    """Speaks the demand report over real HTTP."""

    def __init__(self) -> None:
        self.held = 0
        self.boot = "b1"
        self.edge = 0
        self.status = 200
        self.answer: bytes | None = None
        self.tokens: list[str | None] = []
        self.questions: list[dict[str, str]] = []
        self._news = asyncio.Event()
        self.server = TestServer(self._app())

    def _app(self) -> web.Application:
        app = web.Application()
        app.router.add_get(names.PATH_DEMAND, self._demand)
        return app

    def hold(self, held: int) -> None:
        self.held = held
        self.edge += 1
        self._news.set()

    async def _demand(self, request: web.Request) -> web.Response:
        self.tokens.append(request.headers.get(names.HEADER_TOKEN))
        self.questions.append(dict(request.query))
        since, wait = request.query.get("since"), float(request.query.get("wait", "0"))
        self._news.clear()
        if since == str(self.edge) and wait:
            try:
                async with asyncio.timeout(wait):
                    await self._news.wait()
            except TimeoutError:
                pass
        if self.status != 200:
            return web.Response(status=self.status)
        demand = ServiceDemand(
            held=self.held,
            held_oldest_s=0.0,
            held_without_worker=self.held,
            queued=0,
            running=0,
            unreported=0,
            arrivals=self.held,
            arrivals_per_s=0.0,
            endpoints=0,
            ready_endpoints=0,
        )
        report = DemandReport(
            router="r", boot=self.boot, sequence=1, edge=self.edge, ts=0.0, services={SERVICE: demand}
        )
        return web.Response(body=encode_demand(report) if self.answer is None else self.answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"


@asynccontextmanager
async def listening(*routers: Router, wait_s: float = 0.2, clock=time.monotonic):
    edges: list[str] = []
    listener = DemandListener(
        token=lambda: "secret", on_edge=edges.append, clock=clock, rng=random.Random(1), wait_s=wait_s
    )
    for router in routers:
        await router.server.start_server()
    listener.set_routers({f"r{i}": RouterAddress(url=router.url) for i, router in enumerate(routers)})
    task = asyncio.create_task(listener.run())
    try:
        yield listener, edges
    finally:
        task.cancel()
        await asyncio.wait([task])
        for router in routers:
            await router.server.close()


async def until(check) -> None:
    for _ in range(MAX_POLLS):
        if check():
            return
        await asyncio.sleep(POLL_S)
    raise AssertionError(f"not so after {MAX_POLLS} polls")


async def test_queue_that_begins_is_told_while_the_question_waits() -> None:
    router = Router()
    async with listening(router, wait_s=30.0) as (listener, edges):
        await until(lambda: any("wait" in question for question in router.questions))

        router.hold(3)

        await until(lambda: edges == [SERVICE])
        (state,) = listener.states()
        assert state.report is not None
        assert state.report.services[SERVICE].held == 3
        assert set(router.tokens) == {"secret"}


async def test_queue_that_was_there_before_the_listener_is_an_edge_too() -> None:
    router = Router()
    router.hold(1)
    async with listening(router) as (_, edges):
        await until(lambda: edges == [SERVICE])

        assert router.questions[0] == {}


@pytest.mark.parametrize("break_", ["status", "body"])
async def test_router_that_answers_wrongly_is_named_and_asked_again(break_) -> None:
    router = Router()
    async with listening(router) as (listener, _):
        await until(lambda: listener.states()[0].is_fresh)

        if break_ == "status":
            router.status = 503
        else:
            router.answer = b"{"
        await until(lambda: listener.states()[0].trouble)
        trouble = listener.states()[0].trouble
        router.status, router.answer = 200, None
        await until(lambda: not listener.states()[0].trouble)

        assert ("status 503" if break_ == "status" else "demand report") in trouble


async def test_another_boot_begins_its_age_anew() -> None:
    router, now_s = Router(), [100.0]
    async with listening(router, wait_s=0.05, clock=lambda: now_s[0]) as (listener, _):
        await until(lambda: listener.states()[0].report is not None)
        now_s[0] += 5.0
        age_s = listener.states()[0].boot_age_s

        router.boot = "b2"
        await until(lambda: (report := listener.states()[0].report) is not None and report.boot == "b2")

        assert (age_s, listener.states()[0].boot_age_s) == (5.0, 0.0)


async def test_set_of_routers_may_change_and_an_address_that_changes_is_another_router() -> None:
    first, second = Router(), Router()
    async with listening(first, second) as (listener, _):
        await until(lambda: all(state.is_fresh for state in listener.states()))

        listener.set_routers({"r0": RouterAddress(url=second.url, is_leaving=True)})
        asked = len(first.questions)
        await until(lambda: [state.is_fresh for state in listener.states()] == [True])

        (state,) = listener.states()
        assert (state.name, state.is_leaving) == ("r0", True)
        assert len(first.questions) <= asked + 1
