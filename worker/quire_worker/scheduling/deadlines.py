"""When requests run out of time: a heap of the moments at which one has to be looked at again.

Knows times and requests' names; not what ends when one is over.
"""

import heapq
import itertools
from collections.abc import Collection
from typing import NamedTuple

QUEUE_TIMEOUT = "queue_timeout"
"""It was not in the batch in time. Nothing was computed for it."""
DEADLINE = "deadline"
"""It was not done in time."""
_COMPACT_FROM = 1024


class _Due(NamedTuple):
    at_s: float
    serial: int
    """No two are equal, so that a heap never compares what follows."""
    kind: str
    request_id: str
    arrival: int


class Deadlines:
    """Moments to come, of requests that may have ended meanwhile."""

    def __init__(self) -> None:
        self._heap: list[_Due] = []
        self._serials = itertools.count()
        self.next_s = float("inf")
        """The next moment; infinite if there is none."""

    def add(self, kind: str, at_s: float, request_id: str, arrival: int) -> None:
        """Look at a request again at `at_s`, by the scheduler's clock."""
        heapq.heappush(self._heap, _Due(at_s, next(self._serials), kind, request_id, arrival))
        self.next_s = self._heap[0].at_s

    def take_due(self, now_s: float) -> list[tuple[str, str, int]]:
        """(kind, request id, arrival number) of all whose moment has come, oldest first."""
        due = []
        while self._heap and self._heap[0].at_s <= now_s:
            moment = heapq.heappop(self._heap)
            due.append((moment.kind, moment.request_id, moment.arrival))
        self.next_s = self._heap[0].at_s if self._heap else float("inf")
        return due

    def forget_ended(self, alive: Collection[str]) -> None:
        """Drop what has ended once that is most of the heap: a request usually ends long before its deadline."""
        if len(self._heap) >= _COMPACT_FROM and len(self._heap) > 4 * len(alive):
            self._heap = [moment for moment in self._heap if moment.request_id in alive]
            heapq.heapify(self._heap)
            self.next_s = self._heap[0].at_s if self._heap else float("inf")
