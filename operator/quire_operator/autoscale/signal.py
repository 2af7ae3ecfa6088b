"""What the autoscaler is told of one InferenceService at one moment. Types only; this module must not know where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from quire_operator.autoscale.policy import Metric


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One reading."""

    readings: Mapping[Metric, float]
    """What is known now; a metric that is not here is unknown, never zero. A latency that nobody had reason to measure is absent too."""
    idle: frozenset[Metric] = frozenset()
    """Absent metrics that are no fault: there was nothing to measure, such as latencies without requests."""
    num_failures: int = 0
    """Readings of demand in a row that failed or were stale, this one included; 0: demand is known."""
    replicas: int
    """/scale's spec.replicas now."""
    ready: int
    """Replicas that serve."""
    loading: int = 0
    """Replicas that exist, or are asked for, and do not serve yet: capacity to come."""
    capacity: int | None = None
    """Requests that one replica runs at once, as engines report it; None: none has told."""
    kv_used_tokens: int | None = None
    """KV that requests hold, over all replicas; None: unknown."""
    kv_tokens_per_replica: int | None = None
    is_forced_active: bool = False
    """Somebody asked for it: KEDA's force-activation."""
    arrivals_per_s: float | None = None
    """Requests that came, over the last half minute; None: unknown."""
    start_s: float | None = None
    """How long the last start of a replica took, from the decision to ready; None: unknown, then decisions measure it themselves."""


@dataclass(frozen=True, kw_only=True)
class WorkerLoad:
    """Of one replica, for the choice of who goes."""

    in_flight: int
    """Requests in its queue, in its batch and on the way to it."""
    kv_used_tokens: int = 0
    is_draining: bool = False


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What the routers of a release together say of one service."""

    held: int
    queued: int
    running: int
    """`unreported` ones of the reports included."""
    held_oldest_s: float = 0.0
    arrivals_per_s: float = 0.0
    readings: Mapping[Metric, float] = field(default_factory=dict)
    idle: frozenset[Metric] = frozenset()
    capacity: int | None = None
    kv_used_tokens: int | None = None
    kv_tokens_per_replica: int | None = None
    workers: Mapping[str, WorkerLoad] = field(default_factory=dict)
    """By the name of the pod."""
    arrivals: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Requests that came, by (router, boot): one that came and went between two readings shows here only."""

    @property
    def total(self) -> int:
        """held + queued + running."""
        return self.held + self.queued + self.running
