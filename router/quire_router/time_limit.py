"""A limit on what a task does in a block, as `asyncio.timeout` sets one, at a fraction of its cost: nothing is awaited to begin and to end
it, and limits of the same length share a timer, since hardly any of them is ever reached.
"""

import asyncio
from types import TracebackType
from typing import Any, Protocol

MAX_QUEUES = 64
"""Lengths that have a timer in common. Any other limit has one of its own."""


class Limited(Protocol):
    """What has its time."""

    def expire(self) -> None:
        """It is over."""


class TimeLimit:
    """`with` it, in a task: TimeoutError instead of what the block would raise as it is cancelled."""

    __slots__ = ("_ending", "_is_over", "_limit_s", "_limits", "_num_cancelling", "_task", "_waiting")

    def __init__(
        self, limit_s: float, task: asyncio.Task[Any] | None = None, limits: "TimeLimits | None" = None
    ) -> None:
        """`task`: the current one, for who knows it."""
        task = task or asyncio.current_task()
        assert task is not None, "only a task can be ended"
        self._task = task
        self._limit_s = limit_s
        self._limits = limits
        self._waiting: dict[Limited, float] | None = None
        self._ending: asyncio.Handle | None = None
        self._is_over = False

    def __enter__(self) -> "TimeLimit":
        self._num_cancelling = self._task.cancelling()
        if self._limits is not None:
            self._waiting = self._limits.join(self, self._limit_s)
        if self._waiting is None:
            self._ending = self._task.get_loop().call_later(self._limit_s, self.expire)
        return self

    def end_now(self) -> None:
        """The limit is over, as soon as the event loop goes on."""
        if not self._is_over:
            self._leave()
            self._ending = self._task.get_loop().call_soon(self.expire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()
        if self._is_over and self._task.uncancel() <= self._num_cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """As a Limited."""
        self._is_over = True
        self._task.cancel()

    def _leave(self) -> None:
        if self._waiting is not None:
            self._waiting.pop(self, None)
        if self._ending is not None:
            self._ending.cancel()


class TimeLimits:
    """Makes limits, most of them of the same few lengths. One for an event loop."""

    __slots__ = ("_loop", "_now", "_queues")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = self._loop.time
        self._queues: dict[float, _Queue] = {}

    def of(self, limit_s: float) -> TimeLimit:
        """A limit of a length that others have as well."""
        return TimeLimit(limit_s, asyncio.current_task(self._loop), self)

    def join(self, limit: Limited, limit_s: float) -> dict[Limited, float] | None:
        """The time of `limit` begins now. What it is in, with when it is over, until then or until it is taken from there. None:
        there are too many lengths, and nothing has begun."""
        queue = self._queues.get(limit_s) or self._new_queue(limit_s)
        if queue is None:
            return None
        over_s = queue.waiting[limit] = self._now() + limit_s
        if queue.handle is None:
            queue.start(over_s)
        return queue.waiting

    def _new_queue(self, limit_s: float) -> "_Queue | None":
        if len(self._queues) >= MAX_QUEUES:
            return None
        queue = self._queues[limit_s] = _Queue(self._loop)
        return queue


class _Queue:
    """Limits of one length: whichever began first is over first, so one timer does for all."""

    __slots__ = ("_loop", "handle", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting: dict[Limited, float] = {}
        """In the order in which they are over -> when that is. Who is done leaves."""
        self.handle: asyncio.TimerHandle | None = None
        """Its timer's, if that runs."""

    def start(self, over_s: float) -> None:
        """Its timer, for the first that is over."""
        self.handle = self._loop.call_at(over_s, self._look)

    def _look(self) -> None:
        now_s, over = self._loop.time(), []
        self.handle = None
        for limit, over_s in self.waiting.items():
            if over_s > now_s:
                self.start(over_s)
                break
            over.append(limit)
        for limit in over:
            del self.waiting[limit]
            limit.expire()
