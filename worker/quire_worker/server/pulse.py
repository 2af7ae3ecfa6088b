"""Shows other threads that the event loop turns.

A timer on the loop counts; whoever looks from outside sees the count stand still when something on the loop does not return.
"""

import asyncio
from collections.abc import Callable

_INTERVAL_S = 0.25


class Pulse:
    """The beat of one event loop. Read from any thread."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """Seconds by `clock`."""
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self.num_beats = 0
        self._beat_s = clock()

    def start(self) -> None:
        """Beat from now on, on the running loop."""
        self._beat_s = self._clock()
        self.num_beats += 1
        self._timer = asyncio.get_running_loop().call_later(_INTERVAL_S, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    @property
    def late_s(self) -> float:
        """How long ago the loop should have turned and did not; 0 while it turns."""
        return max(0.0, self._clock() - self._beat_s - _INTERVAL_S)
