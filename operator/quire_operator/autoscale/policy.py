"""By what the number of replicas is decided: HPA v2's and KEDA's words and meanings, and what they lack.

Types only. `policy_of` (beside) makes one from an InferenceService; this module must not know the API, clusters or clocks. Times are
seconds; a share is a fraction of 1.
"""

from dataclasses import dataclass
from typing import Literal

Metric = Literal[
    "Demand",
    "QueueLength",
    "QueueWait",
    "TimeToFirstToken",
    "InterTokenLatency",
    "KvUse",
]
"""Demand: held + queued + running requests. QueueLength: held + queued. QueueWait, TimeToFirstToken, InterTokenLatency: 95th percentiles
of the last minute in seconds. KvUse: share of the KV blocks that requests hold."""
TOTALS: frozenset[Metric] = frozenset(("Demand", "QueueLength"))
"""Metrics that count over all replicas, like HPA's AverageValue; the others are HPA's Value."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What one metric should be: per replica if it is one of TOTALS, else as it is."""

    metric: Metric
    value: float


@dataclass(frozen=True, kw_only=True)
class Limit:
    """HPAScalingPolicy: at most this change per period."""

    kind: Literal["Pods", "Percent"]
    value: int
    period_s: int


@dataclass(frozen=True, kw_only=True)
class Direction:
    """HPAScalingRules: how fast one way. Source: kubernetes/kubernetes pkg/controller/podautoscaler, KEP-4951 (tolerance)."""

    window_s: float
    limits: tuple[Limit, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"
    tolerance: float = 0.1


DEFAULT_UP = Direction(
    window_s=0.0,
    limits=(Limit(kind="Percent", value=100, period_s=15), Limit(kind="Pods", value=4, period_s=15)),
)
DEFAULT_DOWN = Direction(window_s=300.0, limits=(Limit(kind="Percent", value=100, period_s=15),))
"""HPA's own defaults."""


@dataclass(frozen=True, kw_only=True)
class Panic:
    """Knative's panic mode: while demand over a short window is far above what the ready replicas are meant for, the rate limits and the
    upward window do not hold, and nothing goes down."""

    window_s: float = 6.0
    threshold: float = 2.0
    """Demand over targets x ready replicas."""
    hold_s: float = 60.0
    """How long after the last such moment nothing goes down."""


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """KEDA's fallback: replicas while demand has been unknown for more than `failure_threshold` readings."""

    failure_threshold: int = 3
    replicas: int = 1
    behavior: Literal["Static", "CurrentReplicas", "CurrentReplicasIfHigher", "CurrentReplicasIfLower"] = (
        "CurrentReplicasIfHigher"
    )


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Other bounds at some hours of some days; of several that hold at once the largest minimum and the largest maximum count."""

    name: str
    time_zone: str
    """IANA name."""
    weekdays: frozenset[int]
    """0 is Monday. The day on which it begins, where it goes over midnight."""
    start_minute: int
    """Of the day, local time."""
    end_minute: int
    """Not after `start_minute`: of the next day."""
    min_replicas: int | None = None
    max_replicas: int | None = None


@dataclass(frozen=True, kw_only=True)
class Policy:
    """All of it, for one InferenceService."""

    min_replicas: int
    max_replicas: int
    targets: tuple[Target, ...]
    """The largest recommendation counts. Empty: Demand at what one replica's engine runs at once (`Signal.capacity`)."""
    up: Direction = DEFAULT_UP
    down: Direction = DEFAULT_DOWN
    activation: float = 0.0
    """Demand must be larger than this to wake a service at zero, and to keep it awake (KEDA's activationThreshold)."""
    cooldown_s: float = 300.0
    """Without activity for so long, the last replicas go (only to zero, as KEDA's)."""
    initial_cooldown_s: float = 0.0
    """The same, of a service that was never active, since its creation."""
    panic: Panic | None = None
    fallback: Fallback | None = None
    schedules: tuple[Schedule, ...] = ()
    max_kv_fill: float = 0.8
    """No scale-down after which the KV in use would take more than this share of what is left; 0: no such veto."""
    startup_s: float = 600.0
    """A replica that loads for less than this is capacity to come, not a fault."""
    looks_ahead: bool = False
    """Demand is what there will be when a start is over (`outlook`), not what there is. Without it: HPA's formula."""
    window_follows_start: bool = False
    """The downward window is five starts long, between 60 s and `down.window_s`."""
