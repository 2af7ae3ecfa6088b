"""Latencies of the last minute as percentiles: sliding histograms, cheap enough for every event of every stream. No clock is read here.

    windows of WINDOW_S seconds  | 3 | 1 | 0 | 2 | 4 | 1 .. |     the oldest falls out as a new one begins
                                                     noted here

A note costs a search among NUM_BUCKETS bounds and an addition; percentiles are added up when somebody asks.
"""

import math
from bisect import bisect_left
from collections import deque
from itertools import accumulate
from operator import add

WINDOW_S = 10.0
NUM_WINDOWS = 6
"""Fifty to sixty seconds are looked at."""
RATIO = 1.15
"""Of a bucket's bounds: a percentile is off by half of that at most."""
TOLD_AGAIN_S = 1.0
"""A percentile that was worked out is told again for so long."""
LEAST_S, MOST_S = 0.0005, 1200.0
"""Shorter times count as none, longer ones as this."""
NUM_BUCKETS = math.ceil(math.log(MOST_S / LEAST_S) / math.log(RATIO))
BOUNDS_S: list[float] = [LEAST_S * RATIO**number for number in range(NUM_BUCKETS)]
"""A time up to BOUNDS_S[i], and above the one before, is in bucket i; longer ones than all are in the last."""


class SlidingHistogram:
    """Times are seconds; those of `now_s` are one monotonic clock's."""

    __slots__ = ("_before", "_counts", "_ends_s", "_past", "_told")

    def __init__(self) -> None:
        self._counts: list[int] = []
        """Of the present window; empty until something is noted, and again when all has fallen out: most services rest."""
        self._ends_s = -math.inf
        """When the present window ends."""
        self._past: deque[list[int]] = deque(maxlen=NUM_WINDOWS - 1)
        self._before: list[int] = []
        """The sum of the past windows."""
        self._told: tuple[float, float, float | None] = (-math.inf, -1.0, None)
        """When a percentile was told last, which, and what."""

    def note(self, value_s: float, now_s: float) -> None:
        """One more."""
        if now_s >= self._ends_s:
            self._turn(now_s)
        self._counts[bisect_left(BOUNDS_S, value_s)] += 1

    def percentile(self, share: float, now_s: float) -> float | None:
        """The time that `share` (0..1) of those noted are not above. None: nothing was noted lately."""
        if not self._counts:
            return None
        if now_s >= self._ends_s:
            self._turn(now_s)
        at_s, of, told = self._told
        if of != share or not 0 <= now_s - at_s < TOLD_AGAIN_S:
            told = self._percentile(share)
            self._told = (now_s, share, told)
        return told

    def _percentile(self, share: float) -> float | None:
        sums = list(accumulate(map(add, self._counts, self._before)))
        if not sums[-1]:
            self._forget()
            return None
        rank = share * sums[-1]
        bucket = bisect_left(sums, rank)
        if bucket == 0:
            return 0.0
        below = sums[bucket - 1]
        return BOUNDS_S[bucket - 1] * math.pow(RATIO, (rank - below) / (sums[bucket] - below))

    def _forget(self) -> None:
        self._counts, self._ends_s = [], -math.inf
        self._past.clear()

    def _turn(self, now_s: float) -> None:
        """Begin the window of `now_s`."""
        ended = min(NUM_WINDOWS, 1 + int((now_s - self._ends_s) // WINDOW_S)) if self._counts else 0
        if ended:
            self._past.append(self._counts)
        for _ in range(ended - 1):
            self._past.append(_none())
        self._counts = _none()
        self._before = [sum(numbers) for numbers in zip(*self._past, strict=True)] or _none()
        self._ends_s = (math.floor(now_s / WINDOW_S) + 1) * WINDOW_S


def _none() -> list[int]:
    return [0] * (NUM_BUCKETS + 1)


class StreamLatency:
    """Of one service's streams."""

    __slots__ = ("inter_token", "ttft")

    def __init__(self) -> None:
        self.ttft = SlidingHistogram()
        """From a stream's arrival to its first event."""
        self.inter_token = SlidingHistogram()
        """Waits for a further event."""

    def note_wait(self, asked_s: float, came_s: float) -> None:
        """A stream's next event came. One that was there already when it was asked for does not count, or clients that read slowly would
        make their workers look fast."""
        waited_s = came_s - asked_s
        if waited_s > LEAST_S:
            self.inter_token.note(waited_s, came_s)
