"""What targets ask for equals what HPA v2 asks for. Each row names the case of kubernetes/kubernetes that it has its numbers from.

Pods of a replica count there as replicas here. HPA's numbers are thousandths; so are these.
"""

from dataclasses import dataclass

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.policy import Direction, Metric, Target
from tests.operator.autoscale.worlds import FREE, LONG_AGO, NOW, policy, signal

CALCULATOR = "pkg/controller/podautoscaler/replica_calculator_test.go"
CONTROLLER = "pkg/controller/podautoscaler/horizontal_test.go"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric, one decision."""

    cites: str
    current: int
    value: float
    target: float
    expected: int
    per_pod: bool = False
    ready: int | None = None
    up: float = 0.1
    down: float = 0.1


ROWS = [
    Row(cites="TestReplicaCalcScaleUpCMExternal", current=1, value=8600, target=4400, expected=2),
    Row(
        cites="TestReplicaCalcScaleUpCMExternalIgnoresUnreadyPods",
        current=3,
        ready=1,
        value=8600,
        target=4400,
        expected=2,
    ),
    Row(cites="TestReplicaCalcScaleUpCMObject", current=3, value=20000, target=15000, expected=4),
    Row(
        cites="TestReplicaCalcScaleUpCMObjectIgnoresUnreadyPods",
        current=3,
        ready=1,
        value=50000,
        target=10000,
        expected=5,
    ),
    Row(cites="TestReplicaCalcScaleUpPerPodCMExternal", per_pod=True, current=3, value=8600, target=2150, expected=4),
    Row(cites="TestReplicaCalcScaleUpCMPerPodObject", per_pod=True, current=3, value=20000, target=5000, expected=4),
    Row(cites="TestReplicaCalcScaleDownCMExternal", current=5, value=8600, target=14334, expected=3),
    Row(cites="TestReplicaCalcScaleDownCMObject", current=5, value=12000, target=20000, expected=3),
    Row(cites="TestReplicaCalcScaleDownPerPodCMExternal", per_pod=True, current=5, value=8600, target=2867, expected=3),
    Row(cites="TestReplicaCalcScaleDownPerPodCMObject", per_pod=True, current=5, value=6000, target=2000, expected=3),
    Row(cites="TestReplicaCalcToleranceCMExternal", current=3, value=8600, target=8888, expected=3),
    Row(cites="TestReplicaCalcToleranceCMObject", current=3, value=20666, target=20000, expected=3),
    Row(cites="TestReplicaCalcTolerancePerPodCMExternal", per_pod=True, current=3, value=8600, target=2900, expected=3),
    Row(cites="TestReplicaCalcTolerancePerPodCMObject", per_pod=True, current=4, value=20166, target=5000, expected=4),
    Row(
        cites="TestReplicaCalcConfigurableToleranceCMExternal", current=3, value=8900, target=8800, up=0.01, expected=4
    ),
    Row(
        cites="TestReplicaCalcConfigurableToleranceCMObject", current=3, value=20666, target=20000, up=0.01, expected=4
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerancePerPodCMExternal",
        per_pod=True,
        current=3,
        value=8600,
        target=2800,
        up=0.01,
        expected=4,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerancePerPodCMObject",
        per_pod=True,
        current=4,
        value=20208,
        target=5000,
        up=0.01,
        expected=5,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerance: outside of a 0% tolerance",
        current=3,
        value=1010,
        target=1000,
        up=0.0,
        down=0.0,
        expected=4,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerance: within a 200% scale-up tolerance",
        current=3,
        value=1900,
        target=1000,
        up=2.0,
        expected=3,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerance: outside an 8% scale-up tolerance, a large one downwards",
        current=3,
        value=1090,
        target=1000,
        up=0.08,
        down=2.0,
        expected=4,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerance: within a 36% scale-down tolerance",
        current=3,
        value=650,
        target=1000,
        down=0.36,
        expected=3,
    ),
    Row(
        cites="TestReplicaCalcConfigurableTolerance: outside a 34% scale-down tolerance",
        current=3,
        value=650,
        target=1000,
        down=0.34,
        expected=2,
    ),
    Row(
        cites="Tolerances.isWithin: the bound upwards belongs to it",
        per_pod=True,
        current=10,
        value=11,
        target=1,
        expected=10,
    ),
    Row(
        cites="TestExternalPerPodMetricUsageOverflow: a large metric at an equal target",
        per_pod=True,
        current=1,
        value=2**63 - 1,
        target=2**63 - 1,
        expected=1,
    ),
    Row(
        cites="TestExternalPerPodMetricReplicaOverflow: what no pods could do ends at the maximum",
        per_pod=True,
        current=1,
        value=2**63 - 1,
        target=1,
        expected=2000,
    ),
    Row(
        cites="TestReplicaCalcScaleUpOverflow: the same of a metric that is no total",
        current=3,
        value=2**63 - 1,
        target=1,
        expected=2000,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{CALCULATOR}: {row.cites}")
def test_a_target_asks_for_what_hpa_asks_for(row: Row) -> None:
    metric: Metric = "QueueLength" if row.per_pod else "QueueWait"
    up = Direction(window_s=0, limits=FREE.limits, tolerance=row.up)
    down = Direction(window_s=0, limits=FREE.limits, tolerance=row.down)
    reading = signal(
        row.current, readings={metric: row.value, "Demand": 1.0}, ready=row.current if row.ready is None else row.ready
    )

    verdict = decide(reading, policy(metric, row.target, up=up, down=down), LONG_AGO, NOW)

    assert verdict.replicas == row.expected


@dataclass(frozen=True, kw_only=True)
class Several:
    """Two targets, of which one may be unknown: the first is a total at 1 a replica, the second a ratio to 1."""

    cites: str
    current: int
    first: float | None
    second: float | None
    expected: int
    fewest: int = 1
    most: int = 2000


SEVERAL = [
    Several(
        cites="computeReplicasForMetrics: the largest counts, the first's", current=3, first=6, second=1.4, expected=6
    ),
    Several(
        cites="computeReplicasForMetrics: the largest counts, the second's", current=3, first=4, second=2.0, expected=6
    ),
    Several(
        cites="TestScaleUpOneMetricEmpty: one without a value does not keep the other from growing",
        current=3,
        first=4,
        second=None,
        fewest=2,
        most=6,
        expected=4,
    ),
    Several(
        cites="computeReplicasForMetrics: the other one unknown",
        current=3,
        first=None,
        second=1.3,
        fewest=2,
        most=6,
        expected=4,
    ),
    Several(
        cites="TestNoScaleDownOneMetricEmpty: one without a value keeps the other from shrinking",
        current=5,
        first=3,
        second=None,
        fewest=2,
        most=6,
        expected=5,
    ),
    Several(
        cites="TestNoScaleDownOneMetricInvalid: the other one unknown",
        current=5,
        first=None,
        second=0.5,
        fewest=2,
        most=6,
        expected=5,
    ),
    Several(
        cites="TestConditionFailedGetMetrics: none known, nothing changes",
        current=3,
        first=None,
        second=None,
        expected=3,
    ),
    Several(
        cites="TestScaleUpRCImmediately: below the minimum, whatever metrics say",
        current=1,
        first=0,
        second=0.0,
        fewest=2,
        most=6,
        expected=2,
    ),
    Several(
        cites="TestScaleDownRCImmediately: above the maximum, whatever metrics say",
        current=6,
        first=50,
        second=5.0,
        fewest=2,
        most=5,
        expected=5,
    ),
    Several(
        cites="reconcileAutoscaler: below the minimum without any metric",
        current=1,
        first=None,
        second=None,
        fewest=2,
        expected=2,
    ),
    Several(
        cites="reconcileAutoscaler: above the maximum without any metric",
        current=9,
        first=None,
        second=None,
        most=6,
        expected=6,
    ),
    Several(
        cites="TestZeroReplicas: at zero HPA is off; here KEDA's activation is left",
        current=0,
        first=None,
        second=3.0,
        fewest=0,
        expected=0,
    ),
]


@pytest.mark.parametrize("row", SEVERAL, ids=lambda row: f"{CONTROLLER}: {row.cites}")
def test_of_several_targets_the_largest_counts_and_an_unknown_one_keeps_replicas(row: Several) -> None:
    targets = (Target(metric="QueueLength", value=1), Target(metric="QueueWait", value=1))
    readings: dict[Metric, float | None] = {"Demand": 0.0, "QueueLength": row.first, "QueueWait": row.second}
    known = {metric: value for metric, value in readings.items() if value is not None}
    rules = policy(targets=targets, min_replicas=row.fewest, max_replicas=row.most)

    verdict = decide(signal(row.current, readings=known), rules, LONG_AGO, NOW)

    assert verdict.replicas == row.expected
