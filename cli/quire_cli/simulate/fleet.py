"""The replicas of a simulated service: how many are asked for, which of them load, serve, drain, and what they cost.

As the operator does it: a new replica loads before it serves; the one with the least to do goes first, those that load before those that
serve; who goes takes nothing new and ends when its last stream has, and is taken back if it is needed again before that.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from math import log
from typing import Generic, Protocol, TypeVar

from quire_cli.simulate.request import Request


class SimWorker(Protocol):
    """What fleet and simulation need of a worker, fast or exact."""

    number: int
    due_s: float
    kv_tokens: int

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def load(self) -> int: ...

    @property
    def kv_used(self) -> int: ...

    def add(self, request: Request, now_s: float) -> None: ...

    def advance(self, now_s: float) -> None: ...

    def close(self) -> None: ...


W = TypeVar("W", bound=SimWorker)


class Phase(IntEnum):
    """A replica's life, in order."""

    LOADING = 0
    READY = 1
    DRAINING = 2
    GONE = 3


@dataclass(eq=False, kw_only=True)
class Replica(Generic[W]):
    """One replica."""

    worker: W
    phase: Phase
    asked_s: float
    ready_s: float


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """How long a replica loads: lognormal around the median."""

    median_s: float
    spread: float = 0.15
    """Standard deviation of its logarithm; 0: always the same."""

    def draw_s(self, rng: random.Random) -> float:
        """One start."""
        return rng.lognormvariate(log(self.median_s), self.spread) if self.median_s > 0 else 0.0


class Fleet(Generic[W]):
    """All replicas of one service."""

    def __init__(
        self,
        make: Callable[[int], W],
        cold_start: ColdStart,
        seed: int,
        on_ready: Callable[[W, float], None],
        on_drain: Callable[[W], None],
    ) -> None:
        """`make` builds the worker of a number; `on_ready` and `on_drain` are told when one begins and ceases to take requests."""
        self._make, self._cold_start = make, cold_start
        self._rng = random.Random(seed)  # noqa: S311 - simulated chance
        self._on_ready, self._on_drain = on_ready, on_drain
        self._loading: list[tuple[float, int, Replica[W]]] = []
        self._by_number: dict[int, Replica[W]] = {}
        self._num_made = 0
        self._since_s = 0.0
        self.wanted = 0
        """What /scale says."""
        self.replica_s = 0.0
        """Seconds that replicas existed, loading and draining ones included."""
        self.most = 0
        self.num_starts = 0

    @property
    def replicas(self) -> list[Replica[W]]:
        """Those that exist."""
        return list(self._by_number.values())

    def num(self, phase: Phase) -> int:
        """How many are in a phase."""
        return sum(replica.phase is phase for replica in self._by_number.values())

    @property
    def next_ready_s(self) -> float:
        """When the next one begins to serve; inf: none loads."""
        while self._loading and self._loading[0][2].phase is not Phase.LOADING:
            heapq.heappop(self._loading)
        return self._loading[0][0] if self._loading else float("inf")

    def begin(self, number: int, now_s: float) -> None:
        """So many serve from the start."""
        self.wanted = number
        for _ in range(number):
            self._serve(self._add(now_s, now_s), now_s)

    def scale(self, number: int, now_s: float) -> None:
        """Make it so many."""
        self._account(now_s)
        for _ in range(number - self.wanted - self._take_back(number - self.wanted, now_s)):
            replica = self._add(now_s, now_s + self._cold_start.draw_s(self._rng))
            heapq.heappush(self._loading, (replica.ready_s, replica.worker.number, replica))
            self.num_starts += 1
        if number < self.wanted:
            for replica in self._victims(self.wanted - number):
                self._end(replica, now_s)
        self.wanted = number
        self.most = max(self.most, len(self._by_number))

    def start_due(self, now_s: float) -> None:
        """Those that have loaded by now begin to serve."""
        while self.next_ready_s <= now_s:
            self._serve(heapq.heappop(self._loading)[2], now_s)

    def settle(self, worker: W, now_s: float) -> None:
        """A worker has become idle: one that drains is gone."""
        replica = self._by_number[worker.number]
        if replica.phase is Phase.DRAINING and worker.load == 0:
            self._forget(replica, now_s)

    def close(self, now_s: float) -> None:
        """Count until now."""
        self._account(now_s)

    def _add(self, asked_s: float, ready_s: float) -> Replica[W]:
        self._account(asked_s)
        worker = self._make(self._num_made)
        self._num_made += 1
        replica = Replica(worker=worker, phase=Phase.LOADING, asked_s=asked_s, ready_s=ready_s)
        self._by_number[worker.number] = replica
        self.most = max(self.most, len(self._by_number))
        return replica

    def _serve(self, replica: Replica[W], now_s: float) -> None:
        replica.phase = Phase.READY
        self._on_ready(replica.worker, now_s)

    def _take_back(self, number: int, now_s: float) -> int:
        """Up to so many of those that drain serve again, the busiest first: they keep their caches, and nothing has to load."""
        draining = [replica for replica in self._by_number.values() if replica.phase is Phase.DRAINING]
        draining.sort(key=lambda replica: -replica.worker.load)
        for replica in draining[: max(0, number)]:
            self._serve(replica, now_s)
        return len(draining[: max(0, number)])

    def _victims(self, number: int) -> list[Replica[W]]:
        alive = [replica for replica in self._by_number.values() if replica.phase < Phase.DRAINING]
        alive.sort(key=lambda replica: (replica.phase, replica.worker.load, -replica.worker.number))
        return alive[:number]

    def _end(self, replica: Replica[W], now_s: float) -> None:
        if replica.phase is Phase.READY:
            self._on_drain(replica.worker)
        if replica.worker.load == 0:
            self._forget(replica, now_s)
        else:
            replica.phase = Phase.DRAINING

    def _forget(self, replica: Replica[W], now_s: float) -> None:
        self._account(now_s)
        replica.phase = Phase.GONE
        del self._by_number[replica.worker.number]
        replica.worker.close()

    def _account(self, now_s: float) -> None:
        self.replica_s += (now_s - self._since_s) * len(self._by_number)
        self._since_s = now_s
