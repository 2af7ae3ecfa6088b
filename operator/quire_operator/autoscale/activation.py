"""Between none and one: who wakes a service, and when it may sleep.

Source: kedacore/keda pkg/scaling/executor/scale_scaledobjects.go (RequestScale, scaleFromZeroOrIdle, scaleToZeroOrIdle). Beyond KEDA's: a
replica that loads counts as activity, and a process that has begun later than the service waits before it lets one sleep.
"""

from dataclasses import dataclass

from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.reading import reading_of
from quire_operator.autoscale.schedule import Bounds
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.step import Step, count

RESTART_S = 60.0
"""The time of the last activity that a new process reads is up to half a minute old; it lets nothing sleep before twice that."""


@dataclass(frozen=True, kw_only=True)
class Activity:
    """Whether anybody wants the service."""

    demand: float | None
    """None: unknown."""
    is_active: bool
    """Demand is above activation, or somebody forces it. While demand is unknown, whoever is awake stays so."""
    at_least: float = 0.0
    """What those say who answer, where not all do."""

    @property
    def is_idle(self) -> bool:
        """Known to be wanted by nobody."""
        return self.demand is not None and not self.is_active


def activity_of(signal: Signal, policy: Policy) -> Activity:
    """Strictly above activation, as KEDA's activationThreshold."""
    at_least = reading_of(signal, "Demand")
    demand = None if signal.num_failures else at_least
    is_above = at_least is not None and at_least > policy.activation
    is_kept = demand is None and signal.replicas > 0
    return Activity(demand=demand, is_active=is_above or is_kept or signal.is_forced_active, at_least=at_least or 0.0)


def wake(signal: Signal, policy: Policy, bounds: Bounds, activity: Activity) -> Step:
    """Of a service without replicas. HPA is off then: one or the minimum comes, and grows from there."""
    replicas = max(1, bounds.fewest)
    if signal.is_forced_active:
        return Step(replicas=replicas, reason="Activated", said=(f"forced to be active; starts {count(replicas)}",))
    if activity.is_active:
        words = f"demand {activity.at_least:g} is above {policy.activation:g}; starts {count(replicas)}"
        return Step(replicas=replicas, reason="Activated", said=(words,))
    if bounds.fewest > 0:
        return Step(replicas=replicas, reason=bounds.fewest_reason, said=(bounds.fewest_words,))
    if activity.demand is None:
        return Step(replicas=0, reason="DemandUnknown", said=("demand is unknown; a service that sleeps is not woken",))
    words = f"demand {activity.demand:g} is not above {policy.activation:g}; sleeps"
    return Step(replicas=0, reason="Asleep", said=(words,))


def idle_until(policy: Policy, history: History) -> float:
    """The last moment at which the cooldown still holds."""
    if history.last_active_s is not None:
        until_s = history.last_active_s + policy.cooldown_s
    else:
        until_s = history.created_s + policy.initial_cooldown_s
    if history.loaded_s is not None:
        until_s = max(until_s, history.loaded_s + policy.cooldown_s)
    if history.begun_s is not None:
        never_told = history.last_active_s is None
        until_s = max(
            until_s, history.begun_s + (policy.cooldown_s if never_told else min(policy.cooldown_s, RESTART_S))
        )
    return until_s
