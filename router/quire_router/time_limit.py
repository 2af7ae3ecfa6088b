"""A limit on what a task does in a block, as `asyncio.timeout` sets one, at half its cost: nothing is awaited to begin and to end it."""

import asyncio
from types import TracebackType


class TimeLimit:
    """`with` it, in a task: TimeoutError instead of what the block would raise as it is cancelled."""

    __slots__ = ("_handle", "_is_over", "_limit_s", "_loop", "_num_cancelling", "_task")

    def __init__(self, limit_s: float) -> None:
        task = asyncio.current_task()
        assert task is not None, "only a task can be ended"
        self._task = task
        self._limit_s = limit_s
        self._is_over = False

    def __enter__(self) -> "TimeLimit":
        self._num_cancelling = self._task.cancelling()
        self._loop = self._task.get_loop()
        self._handle: asyncio.Handle = self._loop.call_later(self._limit_s, self._expire)
        return self

    def end_now(self) -> None:
        """The limit is over, as soon as the event loop goes on."""
        if not self._is_over:
            self._handle.cancel()
            self._handle = self._loop.call_soon(self._expire)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.cancel()
        if self._is_over and self._task.uncancel() <= self._num_cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _expire(self) -> None:
        self._is_over = True
        self._task.cancel()
