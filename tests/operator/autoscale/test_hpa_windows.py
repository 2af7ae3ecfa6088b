"""Stabilisation windows hold what HPA v2's hold. Rows name cases of kubernetes/kubernetes
pkg/controller/podautoscaler/horizontal_test.go, TestNormalizeDesiredReplicasWithBehavior unless they say otherwise."""

from dataclasses import dataclass, replace

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Direction
from tests.operator.autoscale.worlds import FREE, NOW, Service, asked, policy, signal


@dataclass(frozen=True, kw_only=True)
class Row:
    """Recommendations before, as (seconds ago, replicas), and what counts of a new one."""

    name: str
    before: tuple[tuple[float, int], ...]
    current: int
    desired: int
    expected: int
    up_s: float = 0.0
    down_s: float = 0.0


ROWS = [
    Row(name="empty recommendations for scaling down", before=(), current=100, desired=5, expected=5),
    Row(
        name="simple scale down stabilization",
        before=((120, 4), (60, 5)),
        current=100,
        desired=3,
        down_s=180,
        expected=5,
    ),
    Row(name="simple scale up stabilization", before=((120, 4), (60, 5)), current=1, desired=7, up_s=300, expected=4),
    Row(name="no scale down stabilization", before=((120, 1), (60, 2)), current=100, desired=3, up_s=300, expected=3),
    Row(name="no scale up stabilization", before=((120, 4), (60, 5)), current=1, desired=3, down_s=300, expected=3),
    Row(
        name="no scale down stabilization, reuse recommendation element",
        before=((600, 10), (540, 9)),
        current=100,
        desired=3,
        expected=3,
    ),
    Row(
        name="no scale up stabilization, reuse recommendation element",
        before=((600, 10), (540, 9)),
        current=1,
        desired=100,
        expected=100,
    ),
    Row(
        name="scale down stabilization, reuse one of obsolete recommendation element",
        before=((600, 10), (60, 4), (120, 5), (540, 9)),
        current=100,
        desired=3,
        down_s=180,
        expected=5,
    ),
    Row(
        name="scale up stabilization, reuse one of obsolete recommendation element",
        before=((6000, 10), (60, 6), (120, 5), (180, 9)),
        current=1,
        desired=100,
        up_s=300,
        expected=5,
    ),
    Row(
        name="scale up and down stabilization, do not scale up when prenormalized rec goes down",
        before=((6000, 2), (180, 3)),
        current=2,
        desired=1,
        up_s=300,
        down_s=300,
        expected=2,
    ),
    Row(
        name="scale up and down stabilization, do not scale down when prenormalized rec goes up",
        before=((6000, 2), (180, 1)),
        current=2,
        desired=3,
        up_s=300,
        down_s=300,
        expected=2,
    ),
    Row(
        name="TestNormalizeDesiredReplicas: stabilize",
        before=((120, 4), (60, 5)),
        current=9,
        desired=3,
        down_s=300,
        expected=5,
    ),
    Row(
        name="TestNormalizeDesiredReplicas: no stabilize - old recommendations",
        before=((600, 10), (540, 9)),
        current=9,
        desired=3,
        down_s=300,
        expected=3,
    ),
    Row(
        name="TestStabilizeDownscale: four pods were asked for a minute ago",
        before=((600, 10), (60, 4)),
        current=4,
        desired=2,
        down_s=300,
        expected=4,
    ),
    Row(
        name="stabilizeRecommendationWithBehaviors: what is as old as the window no longer counts",
        before=((180, 9),),
        current=10,
        desired=3,
        down_s=180,
        expected=3,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.name))
def test_windows_hold_what_hpa_holds(row: Row) -> None:
    up = replace(FREE, window_s=row.up_s, tolerance=0.0)
    down = replace(FREE, window_s=row.down_s, tolerance=0.0)
    history = History(created_s=0.0, last_active_s=NOW, recommendations=asked(*row.before))

    verdict = decide(signal(row.current, row.desired), policy(up=up, down=down), history, NOW)

    assert verdict.replicas == row.expected
    assert (verdict.reason == "Stabilized") == (row.expected != row.desired)


def test_what_was_asked_for_is_remembered_for_the_longer_window_and_no_longer() -> None:
    up, down = replace(FREE, window_s=30.0), replace(FREE, window_s=60.0)
    history = History(created_s=0.0, last_active_s=NOW, recommendations=asked((61, 9), (59, 8), (1, 7)))

    after = decide(signal(10, 5), policy(up=up, down=down), history, NOW).history

    assert [(NOW - one.at_s, one.replicas) for one in after.recommendations] == [(59, 8), (1, 7), (0, 5)]


def test_what_limits_hold_back_is_remembered_as_it_was_asked_for() -> None:
    """normalizeDesiredReplicasWithBehaviors stores the recommendation before limits and bounds."""
    of = policy(max_replicas=6, down=Direction(window_s=60, limits=FREE.limits))

    after = decide(signal(5, 50), of, History(created_s=0.0, last_active_s=NOW), NOW)

    assert (after.replicas, after.history.recommendations[-1].replicas) == (6, 50)


def test_a_new_process_takes_nothing_away_before_a_whole_window_has_passed() -> None:
    """recordInitialRecommendation: the present number counts as the first recommendation."""
    service = Service(policy(down=replace(FREE, window_s=300.0)), replicas=8)

    numbers = service.run(310, lambda _: 1.0)

    assert numbers == [8] * 60 + [1] * 2
    assert service.told[0].message.endswith("8 replicas were asked for within the last 300 s")
