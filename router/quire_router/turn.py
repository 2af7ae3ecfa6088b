"""What a task waits at that something may come for at any time: whoever has it wakes the task at once, within the same call.

A future would have the event loop wake it in its next round, together with all others that are due. Knows no connections.
"""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any


class Turn:
    """One wait of one task at a time. It is as much of a future as a task needs to wait for it, to be cancelled, and to be woken later."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_is_cancelled", "_is_done", "_loop", "_wake")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._is_done = self._is_cancelled = False
        self._wake: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def begin_anew(self) -> None:
        """Wait once more, after the last wait is over."""
        self._is_done = self._is_cancelled = False

    def __await__(self) -> Generator["Turn", None, None]:
        if not self._is_done:
            self._asyncio_future_blocking = True  # how a task knows what it may wait for
            yield self
        self.result()

    def wake(self) -> None:
        """Let the task run now, up to where it waits next; where some task runs already, soon. Only for one that waits."""
        wake = self._wake
        if wake is None or self._context is None or asyncio.current_task(self._loop) is not None:
            self.set_result(None)
            return
        self._is_done, self._wake = True, None
        self._context.run(wake, self)

    # What a future has

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """Its task's."""
        return self._loop

    def add_done_callback(self, wake: Callable[[Any], object], *, context: Context | None = None) -> None:
        """Called by the task that waits."""
        self._wake, self._context = wake, context
        if self._is_done:
            self._wake_soon()

    def done(self) -> bool:
        """Whether its task was woken."""
        return self._is_done

    def result(self) -> None:
        """CancelledError if that is why it was woken."""
        if self._is_cancelled:
            raise asyncio.CancelledError

    def set_result(self, result: None) -> None:
        """Wake the task soon."""
        self._is_done = True
        self._wake_soon()

    def cancel(self, msg: object = None) -> bool:
        """Wake the task soon, to its end. False: it was woken before."""
        if self._is_done:
            return False
        self._is_done = self._is_cancelled = True
        self._wake_soon()
        return True

    def _wake_soon(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            self._loop.call_soon(wake, self, context=self._context)
