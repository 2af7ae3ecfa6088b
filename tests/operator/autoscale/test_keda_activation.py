"""Between none and one replica it is KEDA's executor. Rows name cases and branches of kedacore/keda
pkg/scaling/executor/scale_scaledobjects.go and scale_scaledobjects_test.go (2.20)."""

from dataclasses import dataclass

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Fallback
from tests.operator.autoscale.worlds import NOW, policy, signal


@dataclass(frozen=True, kw_only=True)
class Row:
    """One look at the triggers. Times are seconds ago."""

    cites: str
    current: int
    demand: float | None
    expected: int
    active: bool
    fewest: int = 0
    activation: float = 0.0
    forced: bool = False
    last_active: float | None = None
    created: float = 10_000.0
    cooldown: float = 300.0
    initial_cooldown: float = 0.0
    fallback: Fallback | None = None
    refreshed: bool = False
    """Whether the time of the last activity becomes now."""


ROWS = [
    Row(cites="TestScaleToMinReplicasWhenNotActive", current=10, demand=0, expected=0, active=False),
    Row(
        cites="TestScaleToMinReplicasFromLowerInitialReplicaCount",
        current=1,
        demand=0,
        fewest=5,
        expected=5,
        active=False,
    ),
    Row(cites="TestScaleFromMinReplicasWhenActive", current=0, demand=1, expected=1, active=True, refreshed=True),
    Row(
        cites="TestScaleFromIdleToMinReplicasWhenActive",
        current=0,
        demand=1,
        fewest=5,
        expected=5,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="TestScaleFromMinReplicasWhenActivationForced",
        current=0,
        demand=0,
        forced=True,
        expected=1,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="NeedToForceActivation: forced, at the minimum",
        current=0,
        demand=0,
        forced=True,
        fewest=3,
        expected=3,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="scaleFromZeroOrIdle: to one, however much is asked for; HPA goes on from there",
        current=0,
        demand=500,
        expected=1,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="activationThreshold: a value equal to it is not above it",
        current=0,
        demand=5,
        activation=5,
        expected=0,
        active=False,
    ),
    Row(
        cites="activationThreshold: a value above it",
        current=0,
        demand=6,
        activation=5,
        expected=1,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="activationThreshold: awake with as much as it, it is idle, however many HPA would have",
        current=5,
        demand=5,
        activation=5,
        last_active=301,
        expected=0,
        active=False,
    ),
    Row(
        cites="RequestScale: active with replicas, the time of the last activity is refreshed",
        current=1,
        demand=1,
        last_active=1000,
        expected=1,
        active=True,
        refreshed=True,
    ),
    Row(
        cites="scaleToZeroOrIdle: the cooldown is not over",
        current=1,
        demand=0,
        last_active=299,
        expected=1,
        active=False,
    ),
    Row(
        cites="scaleToZeroOrIdle: exactly the cooldown is not over it",
        current=1,
        demand=0,
        last_active=300,
        expected=1,
        active=False,
    ),
    Row(
        cites="scaleToZeroOrIdle: the cooldown is over", current=1, demand=0, last_active=301, expected=0, active=False
    ),
    Row(
        cites="scaleToZeroOrIdle: all replicas go at once, not through HPA's window",
        current=7,
        demand=0,
        last_active=301,
        expected=0,
        active=False,
    ),
    Row(
        cites="scaleToZeroOrIdle: LastActiveTime nil, the initial cooldown is not over",
        current=1,
        demand=0,
        created=899,
        initial_cooldown=900,
        expected=1,
        active=False,
    ),
    Row(
        cites="scaleToZeroOrIdle: LastActiveTime nil, the initial cooldown is over",
        current=1,
        demand=0,
        created=901,
        initial_cooldown=900,
        expected=0,
        active=False,
    ),
    Row(
        cites="scaleToZeroOrIdle: with a last activity the initial cooldown no longer counts",
        current=1,
        demand=0,
        created=400,
        initial_cooldown=900,
        last_active=301,
        expected=0,
        active=False,
    ),
    Row(
        cites="RequestScale: not active, with a minimum: the executor leaves replicas to HPA, which has them above it",
        current=3,
        demand=0,
        fewest=2,
        last_active=301,
        expected=2,
        active=False,
    ),
    Row(
        cites="RequestScale: not active and at the minimum, nothing",
        current=2,
        demand=0,
        fewest=2,
        last_active=301,
        expected=2,
        active=False,
    ),
    Row(
        cites="RequestScale: an error, no fallback: nothing, though the cooldown is over (TriggerError)",
        current=3,
        demand=None,
        last_active=301,
        expected=3,
        active=True,
    ),
    Row(
        cites="RequestScale: an error, fallback: the executor does not scale in, though the cooldown is over",
        current=3,
        demand=None,
        last_active=301,
        fallback=Fallback(replicas=5),
        expected=3,
        active=True,
    ),
    Row(
        cites="RequestScale: an error at zero, no fallback: nothing",
        current=0,
        demand=None,
        expected=0,
        active=False,
    ),
    Row(
        cites="RequestScale: an error at zero, fallback: nothing, and HPA is off there",
        current=0,
        demand=None,
        fallback=Fallback(replicas=5, failure_threshold=0, behavior="Static"),
        expected=0,
        active=False,
    ),
    Row(
        cites="RequestScale: active by force with an error: LastActiveTime is not refreshed (PartialTriggerError)",
        current=2,
        demand=None,
        forced=True,
        last_active=100,
        expected=2,
        active=True,
    ),
    Row(
        cites="RequestScale: active by force with an error, at zero: woken",
        current=0,
        demand=None,
        forced=True,
        last_active=100,
        expected=1,
        active=True,
        refreshed=True,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: str(row.cites))
def test_activation_and_cooldown_are_those_of_keda(row: Row) -> None:
    last_active_s = None if row.last_active is None else NOW - row.last_active
    history = History(created_s=NOW - row.created, last_active_s=last_active_s)
    of = policy(
        value=5.0,
        min_replicas=row.fewest,
        activation=row.activation,
        cooldown_s=row.cooldown,
        initial_cooldown_s=row.initial_cooldown,
        fallback=row.fallback,
    )

    verdict = decide(signal(row.current, row.demand, is_forced_active=row.forced), of, history, NOW)

    assert (verdict.replicas, verdict.is_active) == (row.expected, row.active)
    assert verdict.history.last_active_s == (NOW if row.refreshed else last_active_s)
