"""A request at a worker, and the beginning of its answer, once that is there. State, and what ends it."""

from collections.abc import Callable

import aiohttp
import msgspec
from multidict import CIMultiDict

from quire_router.endpoints import Reservation
from quire_router.replay import Replay
from quire_router.scoring import Choice
from quire_router.sse import EventCutter
from quire_router.time_limit import Limited
from quire_router.turn import Turn
from quire_router.worker_connection import WorkerConnection, WorkerResponse

Response = WorkerResponse | aiohttp.ClientResponse

_NONE_YET = WorkerResponse(0, CIMultiDict(), None, None)


class Begun(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The beginning of an answer, at a point where a byte may go to the client."""

    data: bytes
    is_whole: bool
    cutter: EventCutter | None
    """None: not a stream of events."""


class Attempt:
    """One. Its place at the endpoint, and its connection while more is to come over that, are held until it is closed."""

    __slots__ = (
        "_reservation", "begun", "choice", "connection", "endpoint", "head", "is_asked", "is_lost", "life", "on_lost", "replay",
        "response", "waiting",
    )  # fmt: skip

    def __init__(self, reservation: Reservation, choice: Choice, replay: Replay | None, *, is_asked: bool) -> None:
        self._reservation = reservation
        self.endpoint = endpoint = reservation.endpoint
        self.choice = choice
        self.replay = replay
        """None: the worker was not asked for token replay, or no stream has begun."""
        self.is_asked = is_asked
        """For token replay, and so for what an answer costs."""
        self.response: Response = _NONE_YET
        self.is_lost = False
        """The endpoint was found to have lost it."""
        self.on_lost: Callable[[], object] | None = None
        """Wakes whoever waits for the connection; None: that is who waits at `head`, if anybody."""
        self.head: Turn[WorkerResponse] | None = None
        """Of its answer, asked for over `connection`."""
        self.connection: WorkerConnection
        self.waiting: dict[Limited, float]
        """In which it is until then, while its time runs."""
        self.life: str | None
        self.begun: Begun
        endpoint.uses.add(self)

    @property
    def started_s(self) -> float:
        """When the worker was chosen."""
        return self._reservation.started_s

    def lose(self) -> None:
        """As a Use."""
        self.is_lost = True
        if self.on_lost is None:
            self.expire()
        else:
            self.on_lost()

    def expire(self) -> None:
        """The time until its head is over."""
        if self.head is not None and not self.head.done():
            self.head.set_exception(TimeoutError())

    def end(self) -> None:
        """Let the connection and the place go. Further calls do nothing."""
        if self.head is not None and self.response is _NONE_YET:
            self.waiting.pop(self, None)
            self.connection.abandon(self.head)
        self.response.close()  # nothing to close if all was read: its connection went back then
        self.give_back()

    def give_back(self) -> None:
        """Let the place go: nothing is in flight any more."""
        self.endpoint.uses.discard(self)
        self._reservation.give_back()

    async def close(self) -> None:
        """As `end`, where a coroutine is asked for."""
        self.end()
