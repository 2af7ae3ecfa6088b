"""Rates of what comes and what starts, over the last half minute. Times are given; no clock is read here."""

import math

DRAIN_MEMORY_S = 30.0
"""Time in which the memory of starts falls to 1/e."""
WINDOW_S = 30


class DrainRate:
    """How fast a queue gets shorter: starts a second, measured only while something waits."""

    __slots__ = ("_busy_s", "_is_busy", "_seen_s", "_starts")

    def __init__(self) -> None:
        self._starts = 0.0
        self._busy_s = 0.0
        self._is_busy = False
        self._seen_s = 0.0

    def note(self, now_s: float, *, started: int, is_busy: bool) -> None:
        """`started` requests start; whether anything waits from now on."""
        passed_s = max(0.0, now_s - self._seen_s)
        self._seen_s = now_s
        if self._is_busy:
            kept = math.exp(-passed_s / DRAIN_MEMORY_S)
            self._starts *= kept
            self._busy_s = self._busy_s * kept + DRAIN_MEMORY_S * (1 - kept)
        self._starts += started
        self._is_busy = is_busy

    def per_s(self, now_s: float) -> float | None:
        """Starts a second. None: nothing has started while something waited."""
        self.note(now_s, started=0, is_busy=self._is_busy)
        return None if self._starts < 0.5 or self._busy_s <= 0 else self._starts / self._busy_s


class Arrivals:
    """Counts what comes, in seconds of the last WINDOW_S."""

    __slots__ = ("_at", "_counts", "_first", "total")

    def __init__(self) -> None:
        self.total = 0
        self._counts = [0] * WINDOW_S
        self._at = 0
        self._first: int | None = None

    def note(self, now_s: float) -> None:
        """One more."""
        self.total += 1
        second = int(now_s)
        if second != self._at or self._first is None:
            self._advance(second)
        self._counts[second % WINDOW_S] += 1

    def per_s(self, now_s: float) -> float:
        """Mean of the last WINDOW_S seconds, or of those since the first arrival."""
        if self._first is None:
            return 0.0
        second = int(now_s)
        self._advance(second)
        return sum(self._counts) / min(WINDOW_S, second - self._first + 1)

    def _advance(self, second: int) -> None:
        if self._first is None:
            self._first = self._at = second
        for passed in range(self._at + 1, min(second, self._at + WINDOW_S) + 1):
            self._counts[passed % WINDOW_S] = 0
        self._at = max(self._at, second)
