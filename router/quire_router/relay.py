"""A stream's short way from its worker's connection to its client's: no task wakes, nothing is awaited, while both keep up.

    generator:  part -> await the client -> await the worker -> part -> ...
    relay:      the worker's bytes arrive -> whole events are cut, looked at and written, within that call

The generator of the stream's parts enters the relay instead of waiting for its worker, and goes on when that cannot: the client does not
keep up, the answer has ended or broken, or its worker has said that it is over. Nothing is lost between the two, as both take from the one
reader. Knows no clients: a sink takes parts. Knows no retries.

With the extension module a usual read takes all of this way in one step of C++ (`Relaying`). Both do the same
(tests/router/test_relaying.py).
"""

import asyncio
import functools
import logging
from collections.abc import Callable
from types import MethodType
from typing import Any

import aiohttp

from quire_contract.telemetry import log_event
from quire_router import latency as latencies
from quire_router import replay as replays
from quire_router.arrived import take_arrived
from quire_router.idle_guard import NOT_WAITING, IdleGuard
from quire_router.latency import SlidingHistogram, StreamLatency
from quire_router.native.library import native
from quire_router.replay import Replay
from quire_router.sse import EventCutter
from quire_router.worker_connection import WorkerConnection, WorkerResponse

log = logging.getLogger("quire_router.relay")

Sink = Callable[[bytes], bool]
"""Takes whole events and never raises; whether it may be given more at once."""
Attach = Callable[[Sink], None]
"""Tells a stream of the sink that its parts may go to from now on. All of its next part's predecessors must have been taken."""


class Relay:
    """One worker's part of a stream. Used once."""

    __slots__ = (
        "_content",
        "_cutter",
        "_guard",
        "_is_taking",
        "_latency",
        "_now",
        "_replay",
        "_response",
        "_sink",
        "_turn",
        "is_full",
    )

    def __init__(
        self,
        response: WorkerResponse,
        cutter: EventCutter,
        replay: Replay | None,
        guard: IdleGuard,
        sink: Sink,
        latency: StreamLatency,
    ) -> None:
        """`latency` is told when each next event was asked for, and when it came."""
        loop = asyncio.get_running_loop()
        self._response = response
        self._content = response.content
        self._cutter = cutter
        self._replay = replay
        self._guard = guard
        self._sink = sink
        self._latency = latency
        self._now = loop.time
        self._turn: asyncio.Future[None] = loop.create_future()
        self._is_taking = False
        self.is_full = False
        """It ended because the sink may be given no more now."""

    async def run(self) -> None:
        """Until it is the generator's turn: to read on, and to find out why."""
        relaying = _relaying()
        take_read = None if relaying is None else MethodType(relaying.take, self)
        self._response.on_arrival(self._take, self._take_part, take_read)
        try:
            self._take()
            await self._turn
        finally:
            self._response.on_arrival(None)
            self._guard.since_s = NOT_WAITING

    def _take(self) -> None:
        """All that has arrived."""
        if self._is_taking or self._turn.done():
            return
        guard, now_s = self._guard, self._now()
        asked_s = guard.since_s
        if asked_s != NOT_WAITING:
            self._latency.note_wait(asked_s, now_s)
        self._is_taking = True  # reading may let the connection read on, which arrives here again
        try:
            if self._is_stopped():
                self._turn.set_result(None)
            else:
                guard.since_s = now_s
        finally:
            self._is_taking = False

    def _take_part(self, part: bytes) -> bool:
        """What has arrived, while nothing else is unread. False: it must be read."""
        if self._is_taking or self._turn.done():
            return False
        guard, replay, now_s = self._guard, self._replay, self._now()
        asked_s = guard.since_s
        if asked_s != NOT_WAITING:
            self._latency.note_wait(asked_s, now_s)
        if replay is None and part[-2:] == b"\n\n" and not self._cutter.held:
            self.is_full = is_last = not self._sink(part)
        else:
            is_last = self._is_last(part)
        if is_last:
            self._turn.set_result(None)
        else:
            guard.since_s = now_s
        return True

    def _is_stopped(self) -> bool:
        """Give the sink what there is; whether the generator must go on."""
        content = self._content
        while True:
            try:
                part = take_arrived(content)
            except (aiohttp.ClientError, ConnectionError):
                return True  # it is raised again for the generator
            if not part:
                return content.is_eof()
            if self._is_last(part):
                return True

    def _is_last(self, part: bytes) -> bool:
        """Give the sink what is in `part`; whether the generator must go on."""
        cutter, replay = self._cutter, self._replay
        if cutter.held or not part.endswith(b"\n\n"):  # a worker writes whole events
            part = cutter.cut(part)
        if replay is not None and part:
            part = replay.take(part)
        if part and not self._sink(part):
            self.is_full = True
            return True
        return replay is not None and replay.is_over


CLASSES = (
    Relay,
    aiohttp.StreamReader,
    WorkerConnection,
    IdleGuard,
    EventCutter,
    Replay,
    StreamLatency,
    SlidingHistogram,
)
"""Whose fields the C++ reads and writes."""


@functools.cache
def _relaying() -> Any:
    """The C++ for all relays. None: the Python does everything."""
    parts = native()
    if parts is None:
        return None
    try:
        return parts.Relaying(
            CLASSES,
            tuple(latencies.BOUNDS_S),
            latencies.LEAST_S,
            replays.MAX_RECORD_BYTES,
            replays.MAX_CHOICES,
            replays.DIED,
        )
    except (TypeError, AttributeError) as error:  # another Python, or aiohttp, than is known: fields lie elsewhere
        log_event(log, logging.WARNING, "native_relaying", used=False, why=str(error))
        return None
