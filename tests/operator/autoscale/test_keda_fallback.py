"""While demand is unknown KEDA's fallback counts. Rows name behaviours and branches of kedacore/keda pkg/fallback/fallback.go (2.20);
its metric goes through HPA, so HPA's tolerance, window and limits hold."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import DEFAULT_DOWN, Direction, Fallback, Target
from tests.operator.autoscale.worlds import FREE, LONG_AGO, NOW, asked, policy, signal

Behavior = Literal["Static", "CurrentReplicas", "CurrentReplicasIfHigher", "CurrentReplicasIfLower"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Readings that failed, and what is done."""

    cites: str
    current: int
    fixed: int
    expected: int
    behavior: Behavior = "Static"
    failures: int = 4
    threshold: int = 3
    fewest: int = 1
    most: int = 100
    fallback: bool = True
    """Whether it counts."""


ROWS = [
    Row(
        cites="GetMetricsWithFallback: as many failures as the threshold",
        current=2,
        fixed=5,
        failures=3,
        expected=2,
        fallback=False,
    ),
    Row(cites="GetMetricsWithFallback: more failures than the threshold", current=2, fixed=5, failures=4, expected=5),
    Row(cites="GetMetricsWithFallback: a threshold of 0", current=2, fixed=5, failures=1, threshold=0, expected=5),
    Row(cites="FallbackBehaviorStatic: fewer than there are", current=8, fixed=3, expected=3),
    Row(cites="FallbackBehaviorStatic: more than there are", current=3, fixed=8, expected=8),
    Row(cites="FallbackBehaviorCurrentReplicas: fewer", behavior="CurrentReplicas", current=8, fixed=3, expected=8),
    Row(cites="FallbackBehaviorCurrentReplicas: more", behavior="CurrentReplicas", current=3, fixed=8, expected=3),
    Row(
        cites="FallbackBehaviorCurrentReplicasIfHigher: fewer",
        behavior="CurrentReplicasIfHigher",
        current=8,
        fixed=3,
        expected=8,
    ),
    Row(
        cites="FallbackBehaviorCurrentReplicasIfHigher: more",
        behavior="CurrentReplicasIfHigher",
        current=3,
        fixed=8,
        expected=8,
    ),
    Row(
        cites="FallbackBehaviorCurrentReplicasIfLower: fewer",
        behavior="CurrentReplicasIfLower",
        current=8,
        fixed=3,
        expected=3,
    ),
    Row(
        cites="FallbackBehaviorCurrentReplicasIfLower: more",
        behavior="CurrentReplicasIfLower",
        current=3,
        fixed=8,
        expected=3,
    ),
    Row(cites="doFallback through HPA: target x replicas within the tolerance", current=10, fixed=11, expected=10),
    Row(cites="doFallback through HPA: more than maxReplicas", current=3, fixed=50, most=6, expected=6),
    Row(cites="doFallback through HPA: fewer than minReplicas", current=8, fixed=1, fewest=4, expected=4),
    Row(
        cites="Ours: with fallback.replicas 0 KEDA goes to zero; a replica that runs stays",
        current=4,
        fixed=0,
        fewest=0,
        expected=1,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.cites))
def test_fallback_is_that_of_keda(row: Row) -> None:
    fallback = Fallback(failure_threshold=row.threshold, replicas=row.fixed, behavior=row.behavior)
    of = policy(min_replicas=row.fewest, max_replicas=row.most, fallback=fallback)

    verdict = decide(signal(row.current, num_failures=row.failures), of, LONG_AGO, NOW)

    assert (verdict.replicas, verdict.is_fallback) == (row.expected, row.fallback)


def test_a_fallback_that_is_lower_waits_for_the_window_as_any_recommendation() -> None:
    of = policy(fallback=Fallback(replicas=2, behavior="Static"), down=replace(DEFAULT_DOWN, window_s=300.0))
    recently = History(created_s=0.0, last_active_s=NOW, recommendations=asked((299, 6)))
    earlier = History(created_s=0.0, last_active_s=NOW, recommendations=asked((300, 6)))

    held = decide(signal(6, num_failures=9), of, recently, NOW)
    gone = decide(signal(6, num_failures=9), of, earlier, NOW)

    assert (held.replicas, held.reason) == (6, "Stabilized")
    assert (gone.replicas, gone.reason) == (2, "Fallback")


def test_a_fallback_that_is_higher_grows_at_the_pace_of_the_limits() -> None:
    slow = Direction(window_s=0, limits=(replace(FREE.limits[0], value=1, period_s=60),))
    of = policy(fallback=Fallback(replicas=9), up=slow)

    verdict = decide(signal(2, num_failures=4), of, LONG_AGO, NOW)

    assert (verdict.replicas, verdict.reason, verdict.is_limited) == (3, "RateLimited", True)


def test_a_known_metric_beside_it_may_ask_for_more_than_the_fallback() -> None:
    targets = (Target(metric="Demand", value=1), Target(metric="QueueWait", value=1))
    of = policy(targets=targets, fallback=Fallback(replicas=5))

    verdict = decide(signal(4, readings={"QueueWait": 2.0}, num_failures=4), of, LONG_AGO, NOW)

    assert (verdict.replicas, verdict.is_fallback) == (8, True)


def test_readings_that_succeed_again_end_it_at_once() -> None:
    of = policy(fallback=Fallback(replicas=5))
    during = decide(signal(2, num_failures=4), of, LONG_AGO, NOW)

    after = decide(signal(5, 5), of, during.history, NOW + 5)

    assert (during.replicas, during.reason) == (5, "Fallback")
    assert (after.replicas, after.reason, after.is_fallback) == (5, "WithinTolerance", False)


def test_the_message_says_how_many_readings_failed_and_what_counts_instead() -> None:
    verdict = decide(signal(2, num_failures=4), policy(fallback=Fallback(replicas=5)), LONG_AGO, NOW)

    assert verdict.message == "4 readings of demand failed, fallback CurrentReplicasIfHigher asks for 5 replicas"
