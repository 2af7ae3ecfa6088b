"""Whether a worker has just begun to take requests: its caches are empty, what its engine does lazily is still to be done.

    added after the router's first configuration | seen while not ready | a new life of its engine    new: warms up once it is ready
    ready when the router itself was new                                                             as warm as any

State and a pure function; no clock is read here. What a warming worker gets of the requests is decided in `scoring`.
"""

import math

LEAST_SHARE = 0.1
"""Of a usual worker's load, at the beginning."""


class Warmup:
    """Of one worker. Times are seconds of a monotonic clock."""

    __slots__ = ("_is_new", "_is_ready", "_was_ready", "ready_s", "since_s")

    def __init__(self) -> None:
        self._is_new = self._is_ready = self._was_ready = False
        self.ready_s = -math.inf
        """When it became ready last, new or not."""
        self.since_s = -math.inf
        """When it became ready as a new one; long ago if it never was new."""

    def begin(self) -> None:
        """It is a new worker, or a new life of one."""
        self._is_new, self._is_ready = True, False

    def ready(self, now_s: float) -> None:
        """It takes requests."""
        if not self._is_ready:
            self.ready_s = now_s
        self._is_ready = self._was_ready = True
        if self._is_new:
            self._is_new, self.since_s = False, now_s

    def not_ready(self) -> None:
        """It takes none. One that was ready before is only away for a while: a new life is told by `begin`."""
        self._is_ready = False
        if not self._was_ready:
            self._is_new = True


def share_of(since_s: float, now_s: float, slow_start_s: float) -> float:
    """The share of a usual worker's load that one which is ready since `since_s` takes: it grows evenly to 1 within `slow_start_s`."""
    passed_s = now_s - since_s
    if passed_s >= slow_start_s:
        return 1.0
    return max(LEAST_SHARE, passed_s / slow_start_s)
