"""Who goes when there are too many, in which order, and who is asked for beside a replica whose node is about to be lost."""

from datetime import UTC, datetime, timedelta

import pytest

from quire_contract import names
from quire_operator import pod_state
from quire_operator.autoscale.signal import WorkerLoad
from quire_operator.drain_plan import COST_DRAINING, COST_EMPTY, DrainInput, DrainPlan, Leaving, plan_drains
from quire_operator.timestamps import format_time

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TIMEOUT_S = 30.0


def pod(name: str, *, ready: bool = True, since_s: float | None = None, cost: int | None = None, age_s: float = 100.0):
    annotations = {}
    if since_s is not None:
        began = format_time(NOW - timedelta(seconds=since_s))
        annotations[pod_state.ANNOTATION_LEAVING] = f"{began} ScaleDown"
    if cost is not None:
        annotations[names.ANNOTATION_DELETION_COST] = str(cost)
    created = format_time(NOW - timedelta(seconds=age_s))
    return {
        "metadata": {"name": name, "annotations": annotations, "creationTimestamp": created},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def plan(pods, wanted: int, *, told: int | None = None, loads=None, empty=(), doomed=None) -> DrainPlan:
    return plan_drains(
        DrainInput(
            pods=pods,
            told=len(pods) if told is None else told,
            wanted=wanted,
            loads={name: WorkerLoad(in_flight=load) for name, load in (loads or {}).items()},
            empty=empty,
            doomed=doomed or {},
            drain_timeout_s=TIMEOUT_S,
            now=NOW,
        )
    )


@pytest.mark.parametrize("wanted", [2, 3, 5])
def test_enough_or_too_few_replicas_are_left_alone(wanted) -> None:
    assert plan([pod("a"), pod("b")], wanted) == DrainPlan(replicas=wanted)


def test_least_loaded_drains_and_the_deployment_shrinks_no_sooner_than_it_is_empty() -> None:
    found = plan([pod("a"), pod("b"), pod("c")], 2, loads={"a": 3, "b": 1, "c": 2})

    assert found.replicas == 3
    assert found.leaving == {"b": Leaving(why="ScaleDown", cost=COST_DRAINING)}


def test_of_equal_loads_the_youngest_goes() -> None:
    found = plan([pod("old", age_s=50.0), pod("young", age_s=5.0)], 1)

    assert list(found.leaving) == ["young"]


def test_one_that_drains_goes_on_with_it_though_another_has_less_load_now() -> None:
    found = plan([pod("a"), pod("b", since_s=1.0, ready=False)], 1, loads={"b": 4})

    assert list(found.leaving) == ["b"]


def test_pods_that_do_not_serve_go_without_a_drain() -> None:
    found = plan([pod("a"), pod("b"), pod("loading", ready=False)], 2)

    assert found == DrainPlan(replicas=2)


def test_replica_that_was_asked_for_and_never_made_goes_first() -> None:
    assert plan([pod("a"), pod("b")], 2, told=4) == DrainPlan(replicas=2)


@pytest.mark.parametrize(
    ("victim", "empty", "replicas"),
    [
        (pod("b", since_s=5.0, ready=False, cost=COST_DRAINING), ("b",), 2),
        (pod("b", since_s=5.0, ready=True, cost=COST_EMPTY), ("b",), 2),
        (pod("b", since_s=5.0, ready=False, cost=COST_EMPTY), (), 2),
        (pod("b", since_s=5.0, ready=False, cost=COST_EMPTY), ("b",), 1),
        (pod("b", since_s=TIMEOUT_S + 16, ready=True, cost=COST_DRAINING), (), 1),
    ],
    ids=["cost-not-written", "still-ready", "busy-again", "empty-and-first", "late"],
)
def test_victim_goes_once_it_is_empty_and_sure_to_be_the_one_that_goes(victim, empty, replicas) -> None:
    found = plan([pod("a"), victim], 1, empty=empty)

    assert found.replicas == replicas


def test_when_all_go_nobody_waits_for_readiness() -> None:
    found = plan([pod("a", since_s=1.0, cost=COST_EMPTY)], 0, empty=("a",))

    assert found.replicas == 0


def test_those_that_are_empty_go_before_the_others_are() -> None:
    pods = [pod("a", since_s=5.0, ready=False, cost=COST_EMPTY), pod("b", since_s=5.0, ready=False), pod("c")]

    found = plan(pods, 1, empty=("a",))

    assert found.replicas == 2
    assert {name: one.cost for name, one in found.leaving.items()} == {"a": COST_EMPTY, "b": COST_DRAINING}


def test_demand_that_comes_back_takes_victims_back() -> None:
    found = plan([pod("a"), pod("b", since_s=5.0, ready=False)], 2)

    assert found == DrainPlan(replicas=2)


def test_late_victim_is_looked_at_when_it_is_late() -> None:
    found = plan([pod("a"), pod("b", since_s=5.0, ready=False)], 1)

    assert found.look_again == NOW + timedelta(seconds=TIMEOUT_S + 15 - 5)


def test_replica_on_a_node_that_is_lost_soon_drains_and_another_is_asked_for() -> None:
    found = plan([pod("a"), pod("b")], 2, doomed={"b": "spot"})

    assert found.replicas == 3
    assert found.leaving == {"b": Leaving(why="spot", cost=COST_DRAINING)}


def test_doomed_replica_stays_until_its_replacement_serves() -> None:
    drained = pod("b", since_s=5.0, ready=False, cost=COST_EMPTY)

    loading = plan([pod("a"), drained, pod("c", ready=False)], 2, empty=("b",), doomed={"b": "spot"})
    serving = plan([pod("a"), drained, pod("c")], 2, empty=("b",), doomed={"b": "spot"})

    assert (loading.replicas, serving.replicas) == (3, 2)


def test_doomed_replica_is_a_better_victim_than_any() -> None:
    drained = pod("b", since_s=5.0, ready=False, cost=COST_EMPTY)

    found = plan([pod("a"), drained], 1, empty=("b",), doomed={"b": "spot"})

    assert found.replicas == 1
    assert list(found.leaving) == ["b"]
