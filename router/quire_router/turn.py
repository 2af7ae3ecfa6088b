"""What a task waits at that something may come for at any time: whoever has it wakes the task at once, within the same call.

A future would have the event loop wake it in its next round, together with all others that are due. Knows no connections. In C++ where that
is there (`Turn` of the extension module); this is its twin.
"""

import asyncio
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Turn(Generic[T]):
    """One wait of one task at a time. It is as much of a future as a task needs to wait for it, to be cancelled, and to be woken later."""

    __slots__ = ("_asyncio_future_blocking", "_context", "_error", "_is_done", "_loop", "_value", "_wake")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._is_done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._wake: Callable[[Any], object] | None = None
        self._context: Context | None = None

    def begin_anew(self) -> None:
        """Wait once more, after the last wait is over."""
        self._is_done, self._value, self._error = False, None, None

    def __await__(self) -> Generator["Turn[T]", None, T]:
        while not self._is_done:
            self._asyncio_future_blocking = True  # how a task knows what it may wait for
            yield self
        return self.result()

    def wake(self, value: T) -> None:
        """Let the task run now with `value`, up to where it waits next; where some task runs already, soon. Only for one that waits."""
        wake = self._wake
        if wake is None or self._context is None or asyncio.current_task(self._loop) is not None:
            self.set_result(value)
            return
        self._is_done, self._value, self._wake = True, value, None
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

    def result(self) -> T:
        """What came. CancelledError, or what else was set, if that is why the task was woken."""
        if type(self._error) is asyncio.CancelledError:
            raise asyncio.CancelledError  # another one: what is raised holds the task's frames, and they hold this
        if self._error is not None:
            raise self._error
        value: Any = self._value
        return value  # type: ignore[no-any-return]  # set if there is no error

    def exception(self) -> BaseException | None:
        """Why nothing came. None: something did."""
        return self._error

    def set_result(self, value: T) -> None:
        """Wake the task soon."""
        self._is_done, self._value = True, value
        self._wake_soon()

    def set_exception(self, error: BaseException) -> None:
        """Wake the task soon: it is raised there."""
        self._is_done, self._error = True, error
        self._wake_soon()

    def cancel(self, msg: object = None) -> bool:
        """Wake the task soon, to its end. False: it was woken before."""
        if self._is_done:
            return False
        self.set_exception(asyncio.CancelledError())
        return True

    def _wake_soon(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            self._loop.call_soon(wake, self, context=self._context)
