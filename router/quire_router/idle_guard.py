"""Limits how long one wait of many may last, without a timer for each: a stream waits thousands of times and hardly ever too long.

A wait costs two assignments to `since_s`. The timer looks when the limit could have passed at the earliest, and again.
"""

import asyncio
import math
from collections.abc import Callable

NOT_WAITING = math.inf


class IdleGuard:
    """For one stream, in one direction. `since_s = loop.time()` begins a wait, `since_s = NOT_WAITING` ends it."""

    __slots__ = ("_expire", "_handle", "_limit_s", "_loop", "since_s")

    def __init__(self, limit_s: float, expire: Callable[[], None]) -> None:
        """`expire` ends a wait that took too long."""
        self._loop = asyncio.get_running_loop()
        self._limit_s = limit_s
        self._expire = expire
        self.since_s = NOT_WAITING
        self._handle = self._loop.call_later(limit_s, self._look)

    def close(self) -> None:
        """No more waits."""
        self._handle.cancel()

    def _look(self) -> None:
        left_s = min(self._limit_s, self.since_s + self._limit_s - self._loop.time())
        if left_s <= 0:
            self.since_s, left_s = NOT_WAITING, self._limit_s
            self._expire()
        self._handle = self._loop.call_later(left_s, self._look)
