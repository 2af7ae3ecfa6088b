"""What the targets alone ask for: HPA's formulas, without windows, limits and bounds.

Source: kubernetes/kubernetes pkg/controller/podautoscaler/replica_calculator.go (external metrics: AverageValue for metrics that add up
over replicas, Value for the others) and computeReplicasForMetrics in horizontal.go; KEP-4951 for a tolerance each way. The replicas that a
total's ratio is taken over are those asked for, not those that exist already, so a total never asks twice; and a ratio over no ready
replica says nothing, where HPA would take it for zero.
"""

import math
from dataclasses import dataclass

from quire_operator.autoscale.outlook import Outlook
from quire_operator.autoscale.policy import TOTALS, Metric, Policy, Target
from quire_operator.autoscale.reading import reading_of
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.step import count

_NAMES: dict[Metric, str] = {
    "Demand": "demand",
    "QueueLength": "queue length",
    "QueueWait": "queue wait",
    "TimeToFirstToken": "time to first token",
    "InterTokenLatency": "inter-token latency",
    "KvUse": "KV use",
}


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one target asks for, and in which words."""

    replicas: int
    words: str
    is_within: bool = False
    """It is off its target by no more than the tolerance."""
    is_frozen: bool = False
    """It would ask for more, but what was asked for before still loads."""


@dataclass(frozen=True, kw_only=True)
class Recommended:
    """What all of them ask for."""

    ask: Ask | None
    """The largest; None: nothing is known."""
    unknown: tuple[str, ...]
    """Metrics without a reading that should have one."""


def recommend(
    signal: Signal, policy: Policy, targets: tuple[Target, ...], *, is_loading: bool, outlook: Outlook | None = None
) -> Recommended:
    """The largest of what each target asks for. Of equal ones the first counts. An outlook takes the place of demand."""
    asks: list[Ask] = []
    unknown: list[str] = []
    for target in targets:
        reading = reading_of(signal, target.metric)
        if reading is None:
            unknown.append(_NAMES[target.metric])
        elif target.metric == "Demand" and outlook is not None:
            asks.append(_ask_of_total(signal, policy, target, outlook.demand, f"{outlook.words}: {outlook.demand:.1f}"))
        elif target.metric in TOTALS:
            asks.append(_ask_of_total(signal, policy, target, reading, f"{_NAMES[target.metric]} {reading:g}"))
        else:
            asks.append(_ask_of_ratio(signal, policy, target, reading, is_loading=is_loading))
    return Recommended(ask=max(asks, key=lambda one: one.replicas, default=None), unknown=tuple(unknown))


def _ask_of_total(signal: Signal, policy: Policy, target: Target, reading: float, what: str) -> Ask:
    """AverageValue: so many of `target.value` each."""
    words = f"{what} at {target.value:g} a replica"
    if is_within(policy, reading / (target.value * signal.replicas)):
        return _within(signal, policy, words)
    replicas = whole(reading / target.value)
    return Ask(replicas=replicas, words=f"{words} asks for {count(replicas)}")


def _ask_of_ratio(signal: Signal, policy: Policy, target: Target, reading: float, *, is_loading: bool) -> Ask:
    """Value: the ready replicas times how far off it is. While one loads, what it would change is not in the reading yet."""
    words = f"{_NAMES[target.metric]} {_shown(target.metric, reading)} against {_shown(target.metric, target.value)}"
    ratio = reading / target.value
    if is_within(policy, ratio):
        return _within(signal, policy, words)
    if not signal.ready:
        return Ask(replicas=signal.replicas, words=f"{words}, but no replica is ready", is_frozen=True)
    if ratio > 1.0 and is_loading:
        held = f"{words}, while {signal.replicas - signal.ready} of {count(signal.replicas)} load"
        return Ask(replicas=signal.replicas, words=held, is_frozen=True)
    replicas = whole(ratio * signal.ready)
    return Ask(replicas=replicas, words=f"{words} with {signal.ready} ready asks for {count(replicas)}")


def _within(signal: Signal, policy: Policy, words: str) -> Ask:
    up, down = policy.up.tolerance, policy.down.tolerance
    return Ask(
        replicas=signal.replicas,
        words=f"{words} is within the tolerance (-{down:.0%}, +{up:.0%}) of {count(signal.replicas)}",
        is_within=True,
    )


def is_within(policy: Policy, ratio: float) -> bool:
    """Whether a metric that is `ratio` times its target changes nothing."""
    return 1.0 - policy.down.tolerance <= ratio <= 1.0 + policy.up.tolerance


def whole(replicas: float) -> int:
    """Rounded up, but for what only binary fractions add."""
    return math.ceil(round(replicas, 9))


def _shown(metric: Metric, value: float) -> str:
    return f"{value:.0%}" if metric == "KvUse" else f"{value * 1000:.0f} ms"
