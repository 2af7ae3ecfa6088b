"""From spec.scaling to a policy: units, defaults, what takes the place of what."""

from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.api.validation import parse_service
from quire_operator.autoscale.policy import DEFAULT_DOWN, DEFAULT_UP, Fallback, Limit, Panic, Policy, Target
from quire_operator.autoscale.policy_of import policy_of

Make = Callable[..., dict[str, Any]]


def parsed(document: Make, scaling: str, capacity: int | None = None) -> Policy:
    """Of a service with such a spec.scaling."""
    return policy_of(parse_service(document(f"scaling: {scaling}")), capacity)


def test_without_more_than_a_maximum_demand_counts_at_the_engine_s_capacity_with_hpa_s_defaults(document: Make) -> None:
    policy = parsed(document, "{maxReplicas: 4}", capacity=48)

    assert (policy.min_replicas, policy.max_replicas, policy.targets) == (1, 4, (Target(metric="Demand", value=48),))
    assert (policy.up, policy.down) == (DEFAULT_UP, DEFAULT_DOWN)
    assert (policy.activation, policy.cooldown_s, policy.initial_cooldown_s) == (0, 300, 0)
    assert (policy.fallback, policy.schedules, policy.max_kv_fill) == (None, (), 0.8)


def test_without_targets_it_looks_ahead_lets_a_burst_pass_and_keeps_replicas_for_five_starts(document: Make) -> None:
    own = parsed(document, "{maxReplicas: 4}")
    numbered = parsed(document, "{maxReplicas: 4, demandPerReplica: 8}")
    limited = parsed(document, "{maxReplicas: 4, behavior: {scaleUp: {policies: [{type: Pods, value: 1}]}}}")
    windowed = parsed(document, "{maxReplicas: 4, behavior: {scaleDown: {stabilizationWindowSeconds: 300}}}")

    assert (own.looks_ahead, own.panic, own.window_follows_start) == (True, Panic(), True)
    assert (numbered.looks_ahead, numbered.panic) == (False, Panic()), (
        "whoever writes a number gets demand over that number"
    )
    assert (limited.panic, limited.looks_ahead) == (None, True), "whoever writes limits gets them"
    assert (windowed.window_follows_start, windowed.panic) == (False, Panic())


def test_with_targets_it_is_hpa_s_policy_and_nothing_else(document: Make) -> None:
    policy = parsed(document, "{maxReplicas: 4, targets: [{metric: Demand, value: 8}]}", capacity=48)

    assert policy.targets == (Target(metric="Demand", value=8),)
    assert (policy.looks_ahead, policy.panic, policy.window_follows_start) == (False, None, False)


def test_a_capacity_that_nobody_has_told_is_left_to_the_signal(document: Make) -> None:
    assert parsed(document, "{maxReplicas: 4}").targets == ()


def test_targets_get_their_units_and_demand_per_replica_is_one_of_them(document: Make) -> None:
    targets = "[{metric: TimeToFirstToken, value: 800}, {metric: KvUse, value: 75}, {metric: QueueLength, value: 3}]"

    policy = parsed(document, f"{{maxReplicas: 4, demandPerReplica: 12, targets: {targets}}}", capacity=48)

    assert policy.targets == (
        Target(metric="Demand", value=12),
        Target(metric="TimeToFirstToken", value=0.8),
        Target(metric="KvUse", value=0.75),
        Target(metric="QueueLength", value=3),
    )


def test_behavior_is_hpa_s_and_what_it_leaves_out_keeps_hpa_s_default(document: Make) -> None:
    up = "{stabilizationWindowSeconds: 30, policies: [{type: Pods, value: 2}], tolerancePercent: 25}"

    policy = parsed(document, f"{{maxReplicas: 4, behavior: {{scaleUp: {up}, scaleDown: {{selectPolicy: Min}}}}}}")

    assert policy.up.limits == (Limit(kind="Pods", value=2, period_s=60),)
    assert (policy.up.window_s, policy.up.tolerance) == (30, 0.25)
    assert (policy.down.window_s, policy.down.limits, policy.down.select) == (300, DEFAULT_DOWN.limits, "Min")


def test_a_window_of_zero_is_none_and_not_the_default(document: Make) -> None:
    policy = parsed(document, "{maxReplicas: 4, behavior: {scaleDown: {stabilizationWindowSeconds: 0}}}")

    assert policy.down.window_s == 0


def test_panic_and_fallback_are_taken_over(document: Make) -> None:
    policy = parsed(
        document, "{maxReplicas: 4, panic: {windowSeconds: 9, thresholdPercent: 150}, fallback: {replicas: 2}}"
    )

    assert policy.panic == Panic(window_s=9, threshold=1.5)
    assert policy.fallback == Fallback(failure_threshold=3, replicas=2, behavior="CurrentReplicasIfHigher")


@pytest.mark.parametrize("rest", ["", ", demandPerReplica: 8", ", targets: [{metric: Demand, value: 8}]"])
def test_panic_can_be_switched_off_with_every_policy(document: Make, rest: str) -> None:
    policy = parsed(document, f"{{maxReplicas: 4, panic: {{mode: Disabled, windowSeconds: 9}}{rest}}}")

    assert policy.panic is None
    assert policy.up == DEFAULT_UP


def test_schedules_count_minutes_and_weekdays_from_monday(document: Make) -> None:
    one = "{name: office, timeZone: Europe/Berlin, weekdays: [Friday, Monday], start: '07:45', end: '00:00', minReplicas: 2}"

    (schedule,) = parsed(document, f"{{maxReplicas: 4, schedules: [{one}]}}").schedules

    assert (schedule.name, schedule.time_zone, schedule.weekdays) == ("office", "Europe/Berlin", {0, 4})
    assert (schedule.start_minute, schedule.end_minute) == (7 * 60 + 45, 0)
    assert (schedule.min_replicas, schedule.max_replicas) == (2, None)


def test_the_rest_is_in_seconds_and_fractions(document: Make) -> None:
    spec = "{minReplicas: 0, maxReplicas: 4, activationDemand: 3, cooldownSeconds: 10, initialCooldownSeconds: 60, maxKvFillPercent: 0}"

    policy = parsed(document, spec)

    assert (policy.min_replicas, policy.activation, policy.cooldown_s) == (0, 3, 10)
    assert (policy.initial_cooldown_s, policy.max_kv_fill) == (60, 0)
