"""What the autoscaler answers. Types only."""

from dataclasses import dataclass

from quire_operator.autoscale.history import History


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One decision."""

    replicas: int
    """What /scale should say; the present number: nothing changes."""
    reason: str
    """One CamelCase word for programs: Activated, AboveTarget, BelowTarget, WithinTolerance, Stabilized, RateLimited, AtMaximum, AtMinimum,
    Scheduled, Panic, CoolingDown, ScaledToZero, KvWouldNotFit, Loading, DemandUnknown, Fallback and so on."""
    message: str
    """The same for a person, with the numbers that decided."""
    is_active: bool
    """KEDA's Active: demand is above activation."""
    is_fallback: bool = False
    is_limited: bool = False
    """HPA's ScalingLimited: bounds or rate limits hold it away from what the targets ask."""
    history: History
    """Give it to the next decision."""
