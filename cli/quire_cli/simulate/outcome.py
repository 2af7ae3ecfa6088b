"""What a simulation saw, and the figures that are made of it."""

from array import array
from dataclasses import dataclass, field

import msgspec

from quire_cli.simulate.samples import Histogram, percentile


class Objective(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's latency is to be."""

    ttft_s: float = 1.0
    """Time to first token at most."""
    itl_s: float = 0.05
    """Mean time between its tokens at most."""
    share: float = 0.95
    """Of requests that are to have both."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of the course."""

    at_s: float
    wanted: int
    """What /scale said."""
    ready: int
    existing: int
    """Loading and draining ones included."""
    held: int
    queued: int
    running: int
    arrivals: int
    """Since the point before."""
    ttft_p95_s: float | None
    """Of first tokens since the point before."""


@dataclass(kw_only=True)
class Record:
    """Filled while the simulation runs."""

    arrived: "array[float]" = field(default_factory=lambda: array("d"))
    """By request number, seconds."""
    ttft: "array[float]" = field(default_factory=lambda: array("d"))
    """By request number, seconds; negative: none came."""
    itl: "array[float]" = field(default_factory=lambda: array("d"))
    """Mean over a request; negative: it had less than two tokens, or did not end."""
    done: "array[int]" = field(default_factory=lambda: array("b"))
    points: list[Point] = field(default_factory=list)
    num_dropped: int = 0
    """Refused, or gave up waiting."""
    num_held: int = 0
    """Requests that waited in the router."""
    held_most: int = 0
    num_output: int = 0
    """Tokens of answers that ended."""
    num_prompt: int = 0

    def arrive(self, at_s: float) -> None:
        """The next request."""
        self.arrived.append(at_s)
        self.ttft.append(-1.0)
        self.itl.append(-1.0)
        self.done.append(0)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles in seconds."""

    p50: float
    p95: float
    p99: float
    mean: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The figures of one simulation."""

    policy: str
    duration_s: float
    """From the beginning until the last answer."""
    requests: int
    dropped: int
    held: int
    """Requests that waited in the router."""
    held_most: int
    """At once."""
    ttft: Spread
    itl: Spread
    """Of gaps between tokens."""
    request_itl: Spread
    """Of requests' means."""
    prompt_tokens: int
    output_tokens: int
    cached_share: float
    """Of prompt tokens."""
    preemptions: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    """Requests that met the objective."""
    good_share: float
    """The same over all requests, dropped ones included."""
    objective: Objective
    replica_hours: float
    cost: float
    """In the unit of the price."""
    replicas_most: int
    replicas_mean: float
    starts: int
    changes: int
    """Of the number asked for."""

    @property
    def holds(self) -> bool:
        """Whether enough requests met the objective."""
        return self.good_share >= self.objective.share


def spread_of(values: list[float]) -> Spread:
    """Of any values."""
    values.sort()
    mean = sum(values) / len(values) if values else 0.0
    return Spread(p50=percentile(values, 0.5), p95=percentile(values, 0.95), p99=percentile(values, 0.99), mean=mean)


def spread_of_gaps(gaps: Histogram) -> Spread:
    """Of a histogram."""
    return Spread(p50=gaps.percentile(0.5), p95=gaps.percentile(0.95), p99=gaps.percentile(0.99), mean=gaps.mean)


def num_good(record: Record, objective: Objective) -> int:
    """Requests that ended and met the objective."""
    return sum(
        1
        for ttft, itl, done in zip(record.ttft, record.itl, record.done, strict=True)
        if done and ttft <= objective.ttft_s and itl <= objective.itl_s
    )
