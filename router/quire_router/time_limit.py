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

    __slots__ = ("_ending", "_is_over", "_limit_s", "_num_cancelling", "_queue", "_task")

    def __init__(
        self, limit_s: float, task: asyncio.Task[Any] | None = None, queue: "SharedLimit | None" = None
    ) -> None:
        """`task`: the current one, for who knows it."""
        task = task or asyncio.current_task()
        assert task is not None, "only a task can be ended"
        self._task = task
        self._limit_s = limit_s
        self._queue = queue
        self._ending: asyncio.Handle | None = None
        self._is_over = False

    def __enter__(self) -> "TimeLimit":
        self._num_cancelling = self._task.cancelling()
        if self._queue is None:
            self._ending = self._task.get_loop().call_later(self._limit_s, self.expire)
        else:
            self._queue.join(self)
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
        if self._queue is not None:
            self._queue.waiting.pop(self, None)
        if self._ending is not None:
            self._ending.cancel()


class TimeLimits:
    """Makes limits, most of them of the same few lengths. One for an event loop."""

    __slots__ = ("_loop", "_queues")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queues: dict[float, SharedLimit] = {}

    def of(self, limit_s: float) -> TimeLimit:
        """A limit of a length that others have as well."""
        return TimeLimit(limit_s, asyncio.current_task(self._loop), self.shared(limit_s))

    def shared(self, limit_s: float) -> "SharedLimit | None":
        """What all limits of that length have in common. None: there are too many lengths."""
        queue = self._queues.get(limit_s)
        if queue is None and len(self._queues) < MAX_QUEUES:
            queue = self._queues[limit_s] = SharedLimit(limit_s, self._loop)
        return queue


class SharedLimit:
    """Limits of one length: whichever began first is over first, so one timer does for all."""

    __slots__ = ("_handle", "_limit_s", "_loop", "_now", "waiting")

    def __init__(self, limit_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._limit_s = limit_s
        self._loop = loop
        self._now = loop.time
        self.waiting: dict[Limited, float] = {}
        """In the order in which they are over -> when that is. Who is done leaves."""
        self._handle: asyncio.TimerHandle | None = None

    def join(self, limit: Limited) -> None:
        """It begins now."""
        over_s = self.waiting[limit] = self._now() + self._limit_s
        if self._handle is None:
            self._handle = self._loop.call_at(over_s, self._look)

    def _look(self) -> None:
        now_s, over = self._now(), []
        self._handle = None
        for limit, over_s in self.waiting.items():
            if over_s > now_s:
                self._handle = self._loop.call_at(over_s, self._look)
                break
            over.append(limit)
        for limit in over:
            del self.waiting[limit]
            limit.expire()
