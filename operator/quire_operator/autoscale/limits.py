"""Rate limits: how far the number may move now, with what it moved within each limit's period.

Source: kubernetes/kubernetes pkg/controller/podautoscaler/horizontal.go, calculateScaleUpLimitWithScalingRules,
calculateScaleDownLimitWithBehaviors and convertDesiredReplicasWithBehaviorRate.
"""

import math

from quire_operator.autoscale.history import Change, History
from quire_operator.autoscale.policy import Direction, Limit, Policy
from quire_operator.autoscale.schedule import Bounds
from quire_operator.autoscale.step import Step, count


def limit(step: Step, current: int, history: History, policy: Policy, now_s: float, *, is_panic: bool) -> Step:
    """What the limits leave of it. In a panic upward limits do not hold; one that is Disabled does."""
    if step.replicas > current and (not is_panic or policy.up.select == "Disabled"):
        most = max(current, highest(current, history, policy.up, now_s))
        if step.replicas > most:
            return step.then(most, "RateLimited", _words(policy.up, "up", most), is_limited=True)
    if step.replicas < current:
        fewest = min(current, lowest(current, history, policy.down, now_s))
        if step.replicas < fewest:
            return step.then(fewest, "RateLimited", _words(policy.down, "down", fewest), is_limited=True)
    return step


def outside(current: int, bounds: Bounds) -> Step | None:
    """What to do about a number outside the bounds. They are the user's word: they hold at once, whatever is known of demand."""
    if current > bounds.most:
        return Step(replicas=bounds.most, reason=bounds.most_reason, said=(bounds.most_words,))
    if current < bounds.fewest:
        return Step(replicas=bounds.fewest, reason=bounds.fewest_reason, said=(bounds.fewest_words,))
    return None


def bound(step: Step, bounds: Bounds) -> Step:
    """Within the bounds of a service that is awake: its last replica is the cooldown's matter."""
    if step.replicas > bounds.most:
        return step.then(bounds.most, bounds.most_reason, bounds.most_words, is_limited=True)
    if step.replicas < bounds.fewest:
        return step.then(bounds.fewest, bounds.fewest_reason, bounds.fewest_words, is_limited=True)
    if step.replicas < 1:
        return step.then(1, "AtMinimum", "1 replica stays awake")
    return step


def highest(current: int, history: History, direction: Direction, now_s: float) -> int:
    """The most replicas that the limits upwards allow. Percentages round up, or one replica would never grow."""
    if direction.select == "Disabled" or not direction.limits:
        return current
    allowed = (_grown(one, _at_start(current, history, one, now_s)) for one in direction.limits)
    return min(allowed) if direction.select == "Min" else max(allowed)


def lowest(current: int, history: History, direction: Direction, now_s: float) -> int:
    """The fewest replicas that the limits downwards allow. Percentages round down, for the same reason."""
    if direction.select == "Disabled" or not direction.limits:
        return current
    allowed = (_shrunk(one, _at_start(current, history, one, now_s)) for one in direction.limits)
    return max(allowed) if direction.select == "Min" else min(allowed)


def _grown(one: Limit, start: int) -> int:
    return start + one.value if one.kind == "Pods" else math.ceil(round(start * (1 + one.value / 100), 9))


def _shrunk(one: Limit, start: int) -> int:
    return start - one.value if one.kind == "Pods" else int(round(start * (1 - one.value / 100), 9))


def _at_start(current: int, history: History, one: Limit, now_s: float) -> int:
    """Replicas when the limit's period began."""
    return current - _sum(history.ups, one, now_s) + _sum(history.downs, one, now_s)


def _sum(changes: tuple[Change, ...], one: Limit, now_s: float) -> int:
    return sum(change.amount for change in changes if change.at_s > now_s - one.period_s)


def recent(changes: tuple[Change, ...], policy: Policy, now_s: float) -> tuple[Change, ...]:
    """Those that a limit can still count. Limits of either direction count changes of both."""
    longest = max((one.period_s for one in (*policy.up.limits, *policy.down.limits)), default=0)
    return tuple(change for change in changes if change.at_s > now_s - longest)


def _words(direction: Direction, way: str, replicas: int) -> str:
    if direction.select == "Disabled":
        return f"scaling {way} is disabled"
    each = " or ".join(
        f"{one.value}{'%' if one.kind == 'Percent' else ' replicas'} per {one.period_s} s" for one in direction.limits
    )
    which = f"the {'larger' if direction.select == 'Max' else 'smaller'} of " if len(direction.limits) > 1 else ""
    return f"{which}{each} {way} allows {count(replicas)}"
