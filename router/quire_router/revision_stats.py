"""Counts what each revision of a service answered, for whoever judges a canary: requests, errors, time to first token.

An attempt at a worker counts once: as answered, or as failed if nothing of an answer came. An error is an answer of 500 or more, a failed
attempt or a stream that broke; not a refusal that is the client's doing (4xx, 429), a client that left or a worker that drains.
Counters begin at the process's start and only grow. This module must not know requests, endpoints or who reads the numbers.
"""

from bisect import bisect_left
from collections.abc import Collection
from itertools import accumulate

import msgspec

from quire_contract import names

MAX_REVISIONS = 2000
"""Remembered at most; beyond it, those that nobody runs any more are forgotten, the oldest first."""
Revision = tuple[str, str]
"""("namespace/name" of the service, revision)."""


class RevisionCounts:
    """The counters of one revision."""

    __slots__ = ("_buckets", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self._buckets = [0] * (len(names.BUCKETS_TTFT_S) + 1)

    def answered(self, status: int, ttft_s: float | None) -> None:
        """An answer has begun; `ttft_s` is its time to first token (None: not a stream, its first byte tells nothing)."""
        self.requests += 1
        if status >= 500:
            self.errors += 1
        elif ttft_s is not None:
            self._buckets[bisect_left(names.BUCKETS_TTFT_S, ttft_s)] += 1

    def failed(self) -> None:
        """No answer came: no connection, a reset, a timeout, a refusal by the worker."""
        self.requests += 1
        self.errors += 1

    def broke(self) -> None:
        """An answer that had begun did not end well."""
        self.errors += 1

    @property
    def cumulative(self) -> tuple[int, ...]:
        """Streams up to each bound of BUCKETS_TTFT_S, and in all."""
        return tuple(accumulate(self._buckets))


class TtftShown(msgspec.Struct, frozen=True, kw_only=True):
    """A histogram; `counts` are cumulative and one longer than `bounds_s`: the last is all."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]


class RevisionShown(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one revision since the process began."""

    requests: int
    errors: int
    ttft: TtftShown


class StatsShown(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer."""

    boot: str
    """Another one after a restart, when counters begin anew."""
    services: dict[str, dict[str, RevisionShown]]


class RevisionStats:
    """The counters of all revisions. `boot` names this process."""

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._counts: dict[Revision, RevisionCounts] = {}

    def of(self, service: str, revision: str) -> RevisionCounts:
        """The counters of one revision; made when they are asked for first."""
        return self._counts.setdefault((service, revision), RevisionCounts())

    def forget_unused(self, used: Collection[Revision]) -> None:
        """Make room if there are too many."""
        surplus = len(self._counts) - MAX_REVISIONS
        for key in [key for key in self._counts if key not in used][: max(0, surplus)]:
            del self._counts[key]

    def shown(self) -> StatsShown:
        """All counters as they are now. Workers that belong to no service are left out."""
        services: dict[str, dict[str, RevisionShown]] = {}
        for (service, revision), counts in self._counts.items():
            if service:
                services.setdefault(service, {})[revision] = RevisionShown(
                    requests=counts.requests,
                    errors=counts.errors,
                    ttft=TtftShown(bounds_s=names.BUCKETS_TTFT_S, counts=counts.cumulative),
                )
        return StatsShown(boot=self._boot, services=services)
