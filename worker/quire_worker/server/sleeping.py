"""The worker's sleep: no request is taken, no request is inside, and only then the engine gives its memory back.

    awake ── sleep ──> falling_asleep: new requests get 503, running ones end ──> engine sleeps ──> asleep ── wake ──> waking ──> awake

One change at a time. A wake ends a wait for running requests at once; what asks for the state that is there already changes nothing. A
change that the engine was told of comes to its end, whether or not somebody waits for it. Must not know HTTP.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from quire_contract.openai.errors import TYPE_INVALID, ApiError
from quire_contract.startup_report import SleepAnswer, SleepState
from quire_contract.telemetry import log_event
from quire_worker.engine.messages import SleepChanged
from quire_worker.server import errors
from quire_worker.server.serving import Serving
from quire_worker.server.startup import Startup
from quire_worker.server.waiting import first

_log = logging.getLogger(__name__)
CODE_BUSY = "busy"
"""Requests are still running."""


class Sleeping:
    """Puts one worker to sleep and wakes it."""

    def __init__(self, serving: Serving, startup: Startup, on_change: Callable[[SleepState], None]) -> None:
        self._serving = serving
        self._startup = startup
        self._on_change = on_change
        self._changing = asyncio.Lock()
        self._wanted_awake = asyncio.Event()

    @property
    def state(self) -> SleepState:
        return self._startup.sleep

    async def sleep(self, wait_s: float) -> SleepAnswer:
        """Sleep once no request is inside. ApiError 409 if some still are after `wait_s`, or if the worker cannot sleep now; it is
        awake then."""
        async with self._changing:
            self._wanted_awake.clear()
            if self.state == "asleep":
                return self._answer(changed=False)
            lifecycle = self._serving.lifecycle
            if lifecycle.phase != "ready":
                message = f"A worker that is {lifecycle.phase} cannot be put to sleep."
                raise ApiError(409, message, type=TYPE_INVALID, code=lifecycle.phase)
            return await self._fall_asleep(wait_s)

    async def start_asleep(self) -> None:
        """Before the first request is taken. The engine is ready."""
        async with self._changing:
            await self._fall_asleep(0)

    async def wake(self) -> SleepAnswer:
        """Take requests again. ApiError 503 if the device has no room; it sleeps on then."""
        self._wanted_awake.set()
        async with self._changing:
            if self.state == "awake":
                return self._answer(changed=False)
            self._set("waking")
            return await _to_its_end(self._wake_engine())

    async def _wake_engine(self) -> SleepAnswer:
        try:
            told = await self._serving.engine.change_sleep(asleep=False)
        except BaseException:
            self._set("asleep")
            raise
        if told.asleep:
            self._set("asleep")
            self._log("cannot wake", told)
            raise errors.cannot_wake(told.problem)
        self._startup.num_wakes += 1
        self._startup.last_wake_s = told.time_s
        self._set("awake")
        self._log("awake", told)
        return self._answer(told)

    async def _fall_asleep(self, wait_s: float) -> SleepAnswer:
        self._set("falling_asleep")
        try:
            await self._until_empty(wait_s)
        except BaseException:
            self._set("awake")
            raise
        return await _to_its_end(self._put_engine_to_sleep())

    async def _put_engine_to_sleep(self) -> SleepAnswer:
        try:
            told = await self._serving.engine.change_sleep(asleep=True)
        except BaseException:
            self._set("awake")
            raise
        self._startup.last_sleep_s = told.time_s
        self._set("asleep")
        self._log("asleep", told)
        return self._answer(told)

    async def _until_empty(self, wait_s: float) -> None:
        serving = self._serving
        if serving.num_inside and wait_s > 0:
            await first(serving.wait_empty(), self._wanted_awake.wait(), timeout_s=wait_s)
        if serving.num_inside:
            message = f"{serving.num_inside} requests are running; wait for them (?wait=SECONDS), or drain first."
            raise ApiError(409, message, type=TYPE_INVALID, code=CODE_BUSY)

    def _set(self, state: SleepState) -> None:
        self._startup.sleep = state
        self._serving.lifecycle.set_asleep(state != "awake")
        self._on_change(state)

    def _answer(self, told: SleepChanged | None = None, *, changed: bool = True) -> SleepAnswer:
        return SleepAnswer(
            state=self.state,
            changed=changed,
            time_s=0.0 if told is None else round(told.time_s, 4),
            size_bytes=0 if told is None else told.size_bytes,
            num_requests=self._serving.num_inside,
        )

    def _log(self, event: str, told: SleepChanged) -> None:
        level = logging.ERROR if told.problem else logging.INFO
        time_s = round(told.time_s, 3)
        log_event(_log, level, event, time_s=time_s, size_bytes=told.size_bytes, problem=told.problem)


async def _to_its_end(change: Coroutine[Any, Any, SleepAnswer]) -> SleepAnswer:
    """What comes of it. Who leaves meanwhile leaves once it has come about: the engine does not take back what it was told."""
    task = asyncio.ensure_future(change)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
