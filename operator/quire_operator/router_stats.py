"""Sums what routers counted for a service's revisions since a canary's step began, over routers and their restarts.

Pure bookkeeping over answers; this module must not know how they are fetched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Any

from quire_operator.decision import CanaryObservation, RevisionCounts

_P95 = 0.95


@dataclass(frozen=True)
class Counters:
    """One revision's counters since a router's start."""

    requests: int = 0
    errors: int = 0
    bounds_s: tuple[float, ...] = ()
    """Upper bounds of the buckets; the last bucket, beyond them, has none."""
    counts: tuple[int, ...] = ()
    """Cumulative, one more than bounds."""

    def minus(self, earlier: "Counters") -> "Counters":
        """What was added since `earlier`."""
        if earlier.bounds_s != self.bounds_s:
            earlier = Counters(earlier.requests, earlier.errors, self.bounds_s, (0,) * len(self.counts))
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Counters(self.requests - earlier.requests, self.errors - earlier.errors, self.bounds_s, counts)

    def plus(self, other: "Counters") -> "Counters":
        """Both together; timings of other buckets than ours are left out."""
        counts = self.counts
        if not counts:
            return Counters(self.requests + other.requests, self.errors + other.errors, other.bounds_s, other.counts)
        if other.bounds_s == self.bounds_s:
            counts = tuple(left + right for left, right in zip(counts, other.counts, strict=True))
        return Counters(self.requests + other.requests, self.errors + other.errors, self.bounds_s, counts)


@dataclass(frozen=True)
class RouterAnswer:
    """One router's answer."""

    boot: str
    """Another one after each start."""
    services: Mapping[str, Mapping[str, Counters]]
    """By "namespace/name", then by revision."""


def parse_answer(document: Any) -> RouterAnswer:
    """A router's JSON. ValueError, KeyError or TypeError if it is something else."""
    services = {
        str(service): {str(revision): _counters(entry) for revision, entry in revisions.items()}
        for service, revisions in document["services"].items()
    }
    return RouterAnswer(str(document["boot"]), services)


@dataclass(kw_only=True)
class StepTally:
    """The counts of one service since one step began."""

    service: str
    """namespace/name."""
    revisions: tuple[str, str]
    """Stable, canary."""
    step: str
    """What tells this step from others."""
    since: datetime | None = None
    """When the first router answered."""
    _last: dict[tuple[str, str], tuple[str, Counters]] = field(default_factory=dict)
    _sums: dict[str, Counters] = field(default_factory=dict)

    def add(self, router: str, answer: RouterAnswer, now: datetime) -> None:
        """Count what `router` counted since its last answer: all, if it has been restarted; nothing, if this is its first."""
        known = answer.services.get(self.service, {})
        for revision in self.revisions:
            counters = known.get(revision, Counters())
            last = self._last.get((router, revision))
            if last is not None:
                goes_on = last[0] == answer.boot and counters.requests >= last[1].requests  # else it began anew
                added = counters.minus(last[1]) if goes_on else counters
                self._sums[revision] = self._sums.get(revision, Counters()).plus(added)
            self._last[router, revision] = (answer.boot, counters)
        if self.since is None:
            self.since = now

    def observation(self) -> CanaryObservation | None:
        """What was seen; None until a router has answered."""
        if self.since is None:
            return None
        counts = {
            revision: RevisionCounts(requests=seen.requests, errors=seen.errors, ttft_p95_s=percentile_95(seen))
            for revision, seen in self._sums.items()
        }
        return CanaryObservation(since=self.since, revisions=counts)


def percentile_95(counters: Counters) -> float | None:
    """Between the bounds of its bucket by linear interpolation, as Prometheus does; None without timings."""
    if not counters.counts or counters.counts[-1] <= 0 or not counters.bounds_s:
        return None
    rank = _P95 * counters.counts[-1]
    edges: Sequence[float] = (0.0, *counters.bounds_s)
    below = 0
    for (low, high), count in zip(pairwise(edges), counters.counts, strict=False):
        if count >= rank:
            return low + (high - low) * (rank - below) / max(1, count - below)
        below = count
    return counters.bounds_s[-1]


def _counters(entry: Any) -> Counters:
    timings = entry.get("ttft") or {}
    bounds = tuple(float(bound) for bound in timings.get("bounds_s") or ())
    counts = tuple(int(count) for count in timings.get("counts") or ())
    if bounds and len(counts) != len(bounds) + 1:
        raise ValueError("counts and bounds_s do not fit")
    return Counters(int(entry["requests"]), int(entry["errors"]), bounds, counts if bounds else ())
