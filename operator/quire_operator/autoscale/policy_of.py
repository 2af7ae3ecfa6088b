"""From an InferenceService's scaling to a policy. Knows the API; must not know clusters, signals or clocks."""

from collections.abc import Mapping
from typing import Final

from quire_operator.api.inference_service import InferenceService
from quire_operator.api.operations import (
    ScalingDirection,
    ScalingFallback,
    ScalingPanic,
    ScalingSchedule,
    ScalingSpec,
    ScalingTarget,
)
from quire_operator.autoscale.policy import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    Direction,
    Fallback,
    Limit,
    Metric,
    Panic,
    Policy,
    Schedule,
    Target,
)

_PER_UNIT: Final[Mapping[Metric, float]] = {
    "Demand": 1.0,
    "QueueLength": 1.0,
    "QueueWait": 1000.0,
    "TimeToFirstToken": 1000.0,
    "InterTokenLatency": 1000.0,
    "KvUse": 100.0,
}
"""What the spec's value is divided by: milliseconds, percent."""
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def policy_of(service: InferenceService, capacity: int | None = None) -> Policy:
    """The policy of a service with `spec.scaling`. `capacity`: requests that one replica runs at once, where its engine has told.

    Without targets it is Quire's own policy: it looks ahead, unless a number for one replica is written; it keeps replicas for as long
    as their start is worth, and lets a burst pass the default limits. With targets it is HPA's, to the letter.
    The service is valid (`parse_service`), so its time zones exist.
    """
    scaling = service.spec.scaling
    assert scaling is not None, "a service without spec.scaling has no policy"
    is_own = not scaling.targets
    is_free = is_own and not scaling.behavior.scale_up.policies
    return Policy(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        targets=_targets(scaling, capacity),
        up=_direction(scaling.behavior.scale_up, DEFAULT_UP),
        down=_direction(scaling.behavior.scale_down, DEFAULT_DOWN),
        activation=float(scaling.activation_demand),
        cooldown_s=float(scaling.cooldown_seconds),
        initial_cooldown_s=float(scaling.initial_cooldown_seconds),
        panic=_panic(scaling.panic, Panic() if is_free else None),
        fallback=_fallback(scaling.fallback),
        schedules=tuple(map(_schedule, scaling.schedules)),
        max_kv_fill=scaling.max_kv_fill_percent / 100,
        looks_ahead=is_own and scaling.demand_per_replica is None,
        window_follows_start=is_own and scaling.behavior.scale_down.stabilization_window_seconds is None,
    )


def _targets(scaling: ScalingSpec, capacity: int | None) -> tuple[Target, ...]:
    """The spec's; demandPerReplica is one more. Neither: the engine's own capacity, empty while it is unknown."""
    targets = tuple(map(_target, scaling.targets))
    if scaling.demand_per_replica is not None:
        return (Target(metric="Demand", value=float(scaling.demand_per_replica)), *targets)
    if not targets and capacity:
        return (Target(metric="Demand", value=float(capacity)),)
    return targets


def _target(target: ScalingTarget) -> Target:
    return Target(metric=target.metric, value=target.value / _PER_UNIT[target.metric])


def _direction(direction: ScalingDirection, default: Direction) -> Direction:
    window_s = direction.stabilization_window_seconds
    limits = tuple(Limit(kind=one.type, value=one.value, period_s=one.period_seconds) for one in direction.policies)
    return Direction(
        window_s=default.window_s if window_s is None else float(window_s),
        limits=limits or default.limits,
        select=direction.select_policy,
        tolerance=direction.tolerance_percent / 100,
    )


def _panic(panic: ScalingPanic | None, default: Panic | None) -> Panic | None:
    if panic is None:
        return default
    if panic.mode == "Disabled":
        return None
    return Panic(window_s=float(panic.window_seconds), threshold=panic.threshold_percent / 100)


def _fallback(fallback: ScalingFallback | None) -> Fallback | None:
    if fallback is None:
        return None
    return Fallback(
        failure_threshold=fallback.failure_threshold, replicas=fallback.replicas, behavior=fallback.behavior
    )


def _schedule(schedule: ScalingSchedule) -> Schedule:
    return Schedule(
        name=schedule.name,
        time_zone=schedule.time_zone,
        weekdays=frozenset(map(_WEEKDAYS.index, schedule.weekdays)),
        start_minute=_minute(schedule.start),
        end_minute=_minute(schedule.end),
        min_replicas=schedule.min_replicas,
        max_replicas=schedule.max_replicas,
    )


def _minute(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
