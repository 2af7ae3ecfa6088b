"""Rate limits allow what HPA v2's scaling policies allow. Each row has the name of a case in kubernetes/kubernetes
pkg/controller/podautoscaler/horizontal_test.go, and its numbers."""

from dataclasses import dataclass

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import DEFAULT_DOWN, DEFAULT_UP, Direction, Limit
from tests.operator.autoscale.worlds import NOW, changes, policy, signal


def rules(pods: int = 0, pods_s: int = 60, percent: int = 0, percent_s: int = 60) -> tuple[Limit, ...]:
    """Zero: without that one."""
    both = (Limit(kind="Pods", value=pods, period_s=pods_s), Limit(kind="Percent", value=percent, period_s=percent_s))
    return tuple(one for one in both if one.value)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Changes of the last 120 s, limits, and what is left of a wish."""

    name: str
    current: int
    desired: int
    expected: int
    fewest: int = 1
    most: int = 1000
    up: tuple[Limit, ...] = DEFAULT_UP.limits
    down: tuple[Limit, ...] = DEFAULT_DOWN.limits
    ups: tuple[int, ...] = ()
    downs: tuple[int, ...] = ()
    limited: bool = True


ROWS = [
    Row(
        name="prenormalized desired replicas within range",
        current=5,
        desired=7,
        fewest=3,
        most=8,
        expected=7,
        limited=False,
    ),
    Row(name="prenormalized desired replicas < minReplicas", current=3, desired=1, fewest=2, most=8, expected=2),
    Row(
        name="desired replica count is more than the maximum",
        current=100,
        desired=1000,
        fewest=100,
        most=150,
        expected=150,
    ),
    Row(
        name="scaleUpLimit is the limit because scaleUpLimit < maxReplicas with user policies",
        current=3,
        desired=1000,
        most=2000,
        up=rules(percent=1),
        expected=4,
    ),
    Row(
        name="scaleDownLimit is the limit because scaleDownLimit > minReplicas",
        current=1000,
        desired=3,
        fewest=3,
        most=2000,
        down=rules(pods=20),
        expected=980,
    ),
    Row(name="scaleUp with default behavior", current=10, desired=50, expected=20),
    Row(
        name="scaleUp with pods policy larger than percent policy",
        current=10,
        desired=500,
        up=rules(pods=100, percent=100),
        expected=110,
    ),
    Row(
        name="scaleUp with percent policy larger than pods policy",
        current=10,
        desired=500,
        up=rules(pods=2, percent=100),
        expected=20,
    ),
    Row(
        name="scaleUp with spec MaxReplicas limitation with large pod policy",
        current=10,
        desired=50,
        up=rules(pods=100),
        expected=50,
        limited=False,
    ),
    Row(
        name="scaleUp with spec MaxReplicas limitation with large percent policy",
        current=10,
        desired=50,
        up=rules(percent=10000),
        expected=50,
        limited=False,
    ),
    Row(name="scaleUp with pod policy limitation", current=10, desired=50, up=rules(pods=30), expected=40),
    Row(name="scaleUp with percent policy limitation", current=10, desired=50, up=rules(percent=200), expected=30),
    Row(
        name="scaleDown with percent policy larger than pod policy",
        current=100,
        desired=2,
        down=rules(pods=20, percent=1),
        expected=80,
    ),
    Row(
        name="scaleDown with pod policy larger than percent policy",
        current=100,
        desired=2,
        down=rules(pods=2, percent=1),
        expected=98,
    ),
    Row(name="scaleDown with spec MinReplicas limitation with large pod policy", current=10, desired=0, expected=1),
    Row(
        name="scaleDown with spec MinReplicas limitation with large percent policy",
        current=10,
        desired=2,
        fewest=5,
        down=rules(percent=100),
        expected=5,
    ),
    Row(name="scaleDown with pod policy limitation", current=10, desired=2, down=rules(pods=5), expected=5),
    Row(
        name="scaleDown with percent policy limitation",
        current=10,
        desired=5,
        down=rules(percent=50),
        expected=5,
        limited=False,
    ),
    Row(
        name="scaleUp with spec MaxReplicas limitation with large pod policy and events",
        current=100,
        desired=500,
        most=200,
        up=rules(pods=300),
        ups=(1, 5, 9),
        expected=200,
    ),
    Row(
        name="scaleUp with spec MaxReplicas limitation with large percent policy and events",
        current=100,
        desired=500,
        most=200,
        up=rules(percent=10000),
        ups=(1, 5, 9),
        expected=200,
    ),
    Row(
        name="scaleUp with currentReplicas limitation with a lot of recent scale up events",
        current=100,
        desired=500,
        up=rules(pods=5, pods_s=120),
        ups=(1, 5, 9),
        expected=100,
    ),
    Row(
        name="scaleUp with pod policy and previous scale up events",
        current=100,
        desired=500,
        up=rules(pods=150, pods_s=120),
        ups=(1, 5, 9),
        expected=235,
    ),
    Row(
        name="scaleUp with percent policy and previous scale up events",
        current=100,
        desired=500,
        up=rules(percent=200, percent_s=120),
        ups=(1, 5, 9),
        expected=255,
    ),
    Row(
        name="scaleUp with percent policy and previous scale up and down events",
        current=6,
        desired=24,
        up=rules(percent=300, percent_s=300),
        ups=(4,),
        downs=(2,),
        expected=16,
    ),
    Row(
        name="scaleDown with default policy and previous events",
        current=10,
        desired=5,
        downs=(1, 5, 9),
        expected=5,
        limited=False,
    ),
    Row(
        name="scaleDown with MinReplicas=nil limitation with large pod policy and previous events",
        current=100,
        desired=0,
        down=rules(pods=115, pods_s=120),
        downs=(1, 5, 9),
        expected=1,
    ),
    Row(
        name="scaleDown with spec MinReplicas limitation with large pod policy and previous events",
        current=100,
        desired=0,
        fewest=5,
        down=rules(pods=130, pods_s=120),
        downs=(1, 5, 9),
        expected=5,
    ),
    Row(
        name="scaleDown with spec MinReplicas limitation with large percent policy and previous events",
        current=100,
        desired=2,
        fewest=5,
        down=rules(percent=100, percent_s=120),
        downs=(1, 5, 9),
        expected=5,
    ),
    Row(
        name="scaleDown with pod policy limitation and previous events",
        current=100,
        desired=2,
        down=rules(pods=5, pods_s=120),
        downs=(1, 5, 9),
        expected=100,
    ),
    Row(
        name="scaleDown with percent policy limitation and previous events",
        current=100,
        desired=0,
        down=rules(percent=50, percent_s=120),
        downs=(2, 4, 6),
        expected=56,
    ),
    Row(
        name="scaleDown with percent policy and previous scale up and down events",
        current=10,
        desired=1,
        down=rules(percent=50, percent_s=180),
        ups=(2,),
        downs=(4,),
        expected=6,
    ),
    Row(
        name="scaleDown with previous events preventing further scale down",
        current=100,
        desired=0,
        down=rules(percent=10, percent_s=120),
        downs=(10, 10, 10),
        expected=100,
    ),
    Row(
        name="scaleDown with previous events still allowing more scale down",
        current=10,
        desired=5,
        down=rules(percent=1000, percent_s=120),
        downs=(10, 10, 10),
        expected=5,
        limited=False,
    ),
    Row(
        name="check 'outdated' flag for events for one behavior for up",
        current=100,
        desired=200,
        up=rules(pods=1000),
        ups=(8, 12, 9, 11),
        expected=200,
        limited=False,
    ),
    Row(
        name="events were not marked 'outdated' for two different policies in the behavior for up",
        current=100,
        desired=200,
        up=rules(pods=1000, pods_s=120, percent=100),
        ups=(8, 12, 9, 11),
        expected=200,
        limited=False,
    ),
    Row(
        name="check 'outdated' flag for events for one behavior for down",
        current=100,
        desired=5,
        down=rules(pods=1000),
        downs=(8, 12, 9, 11),
        expected=5,
        limited=False,
    ),
    Row(
        name="events were marked 'outdated' for two different policies in the behavior for down",
        current=100,
        desired=5,
        down=rules(pods=1000, pods_s=30, percent=100),
        downs=(8, 12, 9, 11),
        expected=5,
        limited=False,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"TestScalingWithRules: {row.name}")
def test_limits_leave_of_a_wish_what_hpa_leaves(row: Row) -> None:
    up = Direction(window_s=0, limits=row.up, tolerance=0)
    down = Direction(window_s=0, limits=row.down, tolerance=0)
    history = History(
        created_s=0.0,
        last_active_s=NOW,
        ups=changes(row.ups, 120) if row.ups else (),
        downs=changes(row.downs, 120) if row.downs else (),
    )
    of = policy(min_replicas=row.fewest, max_replicas=row.most, up=up, down=down)

    verdict = decide(signal(row.current, row.desired), of, history, NOW)

    assert (verdict.replicas, verdict.is_limited) == (row.expected, row.limited)


BOTH = rules(pods=2, percent=50)
SELECTED = [
    ("TestCalculateScaleUpLimitWithScalingRules: Min of 3 and 2", 1, 50, "Min", BOTH, 2),
    ("TestCalculateScaleDownLimitWithBehaviors: Min of 2 and 2.5 fewer", 5, 1, "Min", BOTH, 3),
    ("calculateScaleUpLimitWithScalingRules: MaxChangePolicySelect", 10, 50, "Max", BOTH, 15),
    ("calculateScaleUpLimitWithScalingRules: DisabledPolicySelect", 10, 50, "Disabled", BOTH, 10),
    ("calculateScaleDownLimitWithBehaviors: DisabledPolicySelect", 10, 1, "Disabled", BOTH, 10),
    (
        "calculateScaleDownLimitWithBehaviors: a percentage of pods rounds towards fewer",
        5,
        1,
        "Max",
        rules(percent=50),
        2,
    ),
    (
        "calculateScaleUpLimitWithScalingRules: a percentage of pods rounds towards more",
        1,
        9,
        "Max",
        rules(percent=10),
        2,
    ),
]


@pytest.mark.parametrize("row", SELECTED, ids=lambda row: str(row[0]))
def test_the_selected_limit_counts(row: tuple[str, int, int, str, tuple[Limit, ...], int]) -> None:
    _, current, desired, select, limits, expected = row
    way = Direction(window_s=0, limits=limits, select=select, tolerance=0)  # type: ignore[arg-type]

    verdict = decide(signal(current, desired), policy(up=way, down=way), History(created_s=0.0, last_active_s=NOW), NOW)

    assert verdict.replicas == expected


STORED = [
    ("empty entries with two-policy-behavior", (), 60, 0),
    ("one outdated entry to be replaced with behavior", ((61.0, 7),), 60, 0),
    ("one actual entry to be not touched with behavior", ((58.0, 7),), 60, 7),
    ("two entries, one of them to be replaced", ((61.0, 7), (59.0, 6)), 60, 6),
    ("replace one entry, use policies with different periods", ((29.0, 8), (59.0, 6), (61.0, 7), (61.0, 9)), 60, 14),
    ("two entries, both actual", ((58.0, 7), (59.0, 6)), 120, 13),
]


@pytest.mark.parametrize("row", STORED, ids=lambda row: f"TestStoreScaleEvents: {row[0]}")
def test_changes_count_as_long_as_hpa_counts_them(row: tuple[str, tuple[tuple[float, int], ...], int, int]) -> None:
    _, before, longest_s, expected = row
    way = Direction(window_s=0, limits=rules(pods=100, percent=200, percent_s=longest_s), tolerance=0)
    past = tuple(change for ago, amount in before for change in changes((amount,), 2 * ago))
    history = History(created_s=0.0, last_active_s=NOW, ups=past)

    after = decide(signal(10, 15), policy(up=way, down=way), history, NOW).history

    counted = [change.amount for change in after.ups if change.at_s > NOW - 60]
    assert sum(counted) - 5 == expected
    assert (after.ups[-1].at_s, after.ups[-1].amount) == (NOW, 5)
    assert all(change.at_s > NOW - longest_s for change in after.ups)
