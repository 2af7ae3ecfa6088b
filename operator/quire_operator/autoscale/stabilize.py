"""Windows: downwards the highest, upwards the lowest of the recent recommendations counts.

Source: kubernetes/kubernetes pkg/controller/podautoscaler/horizontal.go, stabilizeRecommendationWithBehaviors.
"""

from dataclasses import replace

from quire_operator.autoscale.history import Recommendation
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.step import Step, count

STARTS, MIN_WINDOW_S = 5.0, 60.0
"""How many starts a window that follows them lasts, and at least how many seconds."""


def with_window(policy: Policy, start_s: float | None) -> Policy:
    """A replica that is back soon need not be kept for long: the downward window is five starts, if it follows them."""
    if not policy.window_follows_start or start_s is None:
        return policy
    window_s = min(max(STARTS * start_s, MIN_WINDOW_S), policy.down.window_s)
    return replace(policy, down=replace(policy.down, window_s=window_s))


def stabilize(
    step: Step,
    current: int,
    recommendations: tuple[Recommendation, ...],
    policy: Policy,
    now_s: float,
    *,
    is_panic: bool,
) -> Step:
    """`step` is the newest recommendation, `recommendations` are those before it. In a panic nothing is waited for upwards."""
    up_after, down_after = now_s - policy.up.window_s, now_s - policy.down.window_s
    lowest = min((one.replicas for one in recommendations if one.at_s > up_after), default=step.replicas)
    highest = max((one.replicas for one in recommendations if one.at_s > down_after), default=step.replicas)
    at_least = step.replicas if is_panic else min(lowest, step.replicas)
    at_most = max(highest, step.replicas)
    replicas = min(max(current, at_least), at_most)
    if replicas == step.replicas:
        return step
    if step.replicas >= current:
        words = f"{count(lowest)} were enough within the last {policy.up.window_s:g} s"
    else:
        words = f"{count(highest)} were asked for within the last {policy.down.window_s:g} s"
    return step.then(replicas, "Stabilized", words)


def remembered(
    recommendations: tuple[Recommendation, ...], newest: int | None, policy: Policy, now_s: float
) -> tuple[Recommendation, ...]:
    """With the newest, without those that no window reaches."""
    after = now_s - max(policy.up.window_s, policy.down.window_s)
    kept = tuple(one for one in recommendations if one.at_s > after)
    return kept if newest is None else (*kept, Recommendation(at_s=now_s, replicas=newest))
