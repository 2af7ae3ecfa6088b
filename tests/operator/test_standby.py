"""Which pods sleep and which wake, and what the rest of the operator makes of those that do."""

from datetime import timedelta
from typing import Any

import pytest

from quire_contract import names
from quire_contract.names import EXIT_MODEL_GONE
from quire_operator.drain_plan import COST_EMPTY
from quire_operator.lost_pods import without_lost
from quire_operator.pod_state import ANNOTATION_LEAVING, ANNOTATION_STANDBY
from quire_operator.standby import plan_standby
from quire_operator.timestamps import format_time
from tests.operator.decide_world import START, World, ended, make_world, running, set_container, set_ready, waiting

STANDBY = """
scaling: {{minReplicas: 0, maxReplicas: 5, standby: {{replicas: {standby}}}}}
replicas: {replicas}
"""


def pod(name: str, state: str) -> dict[str, Any]:
    """States: A ready, z asleep, Z ready though meant to sleep, w woken and not ready yet, W so for long, l loading, g going."""
    long_ago = START - timedelta(minutes=5)
    marks = {"z": "asleep", "Z": "asleep", "w": f"woken {format_time(START)}", "W": f"woken {format_time(long_ago)}"}
    meta: dict[str, Any] = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {}}
    if state in marks:
        meta["annotations"][ANNOTATION_STANDBY] = marks[state]
    if state == "g":
        meta["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    ready = "True" if state in "AZ" else "False"
    return {"metadata": meta, "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}


@pytest.mark.parametrize(
    ("pods", "wanted", "extra", "asleep", "awake"),
    [
        ("", 0, 1, "", ""),
        ("l", 0, 1, "", ""),
        ("A", 0, 1, "0", ""),
        ("z", 0, 1, "", ""),
        ("z", 1, 0, "", "0"),
        ("zz", 1, 1, "", "0"),
        ("zz", 2, 0, "", "01"),
        ("w", 1, 0, "", ""),
        ("wz", 1, 1, "", ""),
        ("Wz", 1, 1, "", "1"),
        ("lz", 1, 0, "", "1"),
        ("gz", 1, 0, "", "1"),
        ("AAz", 1, 1, "", ""),
        ("AA", 1, 1, "1", ""),
        ("AAA", 1, 1, "", ""),
        ("AA", 0, 1, "", ""),
        ("AAg", 1, 1, "1", ""),
        ("Z", 0, 1, "0", ""),
        ("Z", 1, 0, "", "0"),
        ("zZ", 1, 1, "", "1"),
        ("ZZ", 1, 1, "1", "0"),
        ("AA", 2, 0, "", ""),
    ],
)
def test_sleepers_wake_for_what_is_missing_and_the_surplus_sleeps_once_no_pod_has_to_go(
    pods: str, wanted: int, extra: int, asleep: str, awake: str
) -> None:
    made = [pod(str(index), state) for index, state in enumerate(pods)]
    for one in made:
        one["metadata"]["annotations"][names.ANNOTATION_DELETION_COST] = str(-int(one["metadata"]["name"]))

    plan = plan_standby(wanted=wanted, extra=extra, pods=made, now=START)

    assert (plan.asleep, plan.awake) == (set(asleep), set(awake))


def test_a_woken_pod_that_is_broken_does_not_count_as_awake() -> None:
    pods = [pod("0", "w"), pod("1", "z")]

    plan = plan_standby(wanted=1, extra=1, pods=pods, broken={"0"}, now=START)

    assert plan.awake == {"1"}


def test_a_sleeper_that_was_given_up_is_replaced_and_the_condition_says_so(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    world.make_ready()
    fall_asleep(world, world.look().sleep)
    (name,) = {one["metadata"]["name"] for one in world.pods}

    world.change("replicas: 1")
    world.look()
    world.pods[0]["metadata"]["annotations"][ANNOTATION_STANDBY] = "lost told 3 times in 31 s: refused"
    decision = world.look()
    condition, message, told = world.condition("WorkloadReady"), world.message("WorkloadReady"), world.replicas()
    world.look()

    assert (decision.wake, list(told.values()), list(world.replicas().values())) == (set(), [0], [1])
    assert condition == ("False", "StandbyLost")
    assert f"pod {name} sleeps and does not wake: told 3 times in 31 s: refused; a fresh pod takes its place" in message
    assert ("Warning", "PodReplaced") in world.events
    assert {one["metadata"]["name"] for one in world.pods}.isdisjoint({name})


def test_a_pod_whose_model_was_deleted_from_the_cache_is_replaced_for_only_a_fresh_one_fetches(document: Any) -> None:
    world = make_world(document, "replicas: 1")
    world.look()
    (name,) = {one["metadata"]["name"] for one in world.pods}
    set_container(world.pods[0], "worker", waiting("CrashLoopBackOff"), last=ended(EXIT_MODEL_GONE, "is not there"))

    world.look()
    told = world.replicas()
    world.look()

    assert (list(told.values()), list(world.replicas().values())) == ([0], [1])
    assert {one["metadata"]["name"] for one in world.pods}.isdisjoint({name})
    assert ("Warning", "PodReplaced") in world.events


def test_a_sleeper_that_was_given_up_and_serves_again_is_kept(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=1))
    world.settle()
    world.pods[0]["metadata"]["annotations"][ANNOTATION_STANDBY] = "lost told 3 times in 31 s: refused"

    decision = world.look()

    assert list(world.replicas().values()) == [1]
    assert (decision.sleep, decision.wake, world.condition("Ready")) == (set(), set(), ("True", "Serving"))


@pytest.mark.parametrize(
    ("wanted", "alive", "lost", "told"), [(2, 2, 0, 2), (2, 2, 1, 1), (2, 1, 1, 0), (3, 2, 1, 1), (0, 1, 1, 0)]
)
def test_while_a_lost_pod_is_there_no_pod_is_asked_for_in_place_of_one_that_is_not_made_yet(
    wanted: int, alive: int, lost: int, told: int
) -> None:
    pods = [pod(str(index), "z") for index in range(alive)]
    for one in pods:
        one["metadata"]["labels"] = {"quire.dev/revision": "r"}

    assert without_lost({"r": wanted, "s": 1}, pods, [str(index) for index in range(lost)]) == {"r": told, "s": 1}


def test_the_cheapest_to_lose_sleeps_first_and_a_cost_that_is_none_counts_as_nothing() -> None:
    pods = [pod("a", "A"), pod("b", "A"), pod("c", "A")]
    pods[1]["metadata"]["annotations"][names.ANNOTATION_DELETION_COST] = "-5"
    pods[2]["metadata"]["annotations"][names.ANNOTATION_DELETION_COST] = "dear"

    assert plan_standby(wanted=2, extra=1, pods=pods, now=START).asleep == {"b"}


def fall_asleep(world: World, names_: frozenset[str]) -> None:
    """What the sleeper, the worker and the kubelet make of it."""
    for one in world.pods:
        if one["metadata"]["name"] in names_:
            one["metadata"].setdefault("annotations", {})[ANNOTATION_STANDBY] = "asleep"
            one["status"]["conditions"][1]["status"] = "False"
            set_container(one, "worker", running(START))


def wake_up(world: World, names_: frozenset[str]) -> None:
    for one in world.pods:
        if one["metadata"]["name"] in names_:
            one["metadata"]["annotations"][ANNOTATION_STANDBY] = f"woken {format_time(world.now)}"
            set_ready(one, world.now)


def test_at_zero_a_pod_is_made_and_put_to_sleep_and_counts_as_standby_only(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    made = list(world.replicas().values())
    world.make_ready()

    decision = world.look()
    (name,) = decision.sleep
    fall_asleep(world, decision.sleep)
    world.wait(4000)
    after = world.look()

    assert made == [1]
    assert name == world.pods[0]["metadata"]["name"]
    assert (after.sleep, after.wake) == (set(), set())
    assert list(world.replicas().values()) == [1]
    assert (world.status["replicas"], world.status["readyReplicas"]) == (0, 0)
    assert world.status["scaling"]["standby"] == 1
    assert world.condition("Ready") == ("False", "ScaledToZero")
    assert world.condition("Progressing") == ("True", "Complete")
    assert world.status["revisions"][0]["replicas"] == 0


def test_from_zero_to_one_the_sleeper_is_woken_at_once_in_place_of_a_new_pod_and_sleeps_again_afterwards(
    document: Any,
) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    world.make_ready()
    fall_asleep(world, world.look().sleep)
    world.look()
    sleeper = {one["metadata"]["name"] for one in world.pods}

    world.change("replicas: 1")
    decision = world.look()
    woken, deployed = decision.wake, list(world.replicas().values())
    wake_up(world, decision.wake)
    serving = world.look()
    told = dict(world.status["scaling"])
    world.change("replicas: 0")
    again = world.look()

    assert woken == sleeper
    assert deployed == [1]
    assert (serving.sleep, serving.wake) == (set(), set())
    assert told == {"standby": 0}
    assert world.made == 1
    assert again.sleep == sleeper


def test_beyond_the_standby_new_pods_come_and_a_pod_that_dies_is_replaced(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=2, replicas=0))
    world.look()
    world.make_ready()
    fall_asleep(world, world.look().sleep)
    world.pods.pop()
    world.look()
    after_death = len(world.pods)
    world.make_ready()
    fall_asleep(world, world.look().sleep)

    world.change("replicas: 3")
    decision = world.look()

    assert after_death == 2
    assert len(decision.wake) == 2
    assert list(world.replicas().values()) == [3]


def test_a_change_of_revision_moves_the_standby_to_the_new_revision(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=1))
    world.settle()
    world.change("replicas: 0")
    fall_asleep(world, world.look().sleep)
    world.look()
    old = world.status["revision"]

    world.change("engine: {image: example.org/worker:2}")
    world.look()
    new = world.status["revision"]

    assert new != old
    assert world.replicas() == {old: 0, new: 1} or world.replicas() == {new: 1}


def test_a_service_without_standby_any_more_wakes_who_sleeps(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    world.make_ready()
    fall_asleep(world, world.look().sleep)
    world.look()
    sleepers = {one["metadata"]["name"] for one in world.pods}

    world.change("{replicas: 1, scaling: {minReplicas: 0, maxReplicas: 5}}")
    decision = world.look()

    assert decision.wake == sleepers
    assert "standby" not in (world.status.get("scaling") or {})


def rest_and_drain(world: World, *states: str) -> dict[str, str]:
    """Gives the world's pods these states, in their order: A ready, z asleep, v draining; their names by state and place."""
    told = {}
    for index, (one, state) in enumerate(zip(world.pods, states, strict=True)):
        name = one["metadata"]["name"]
        told[f"{state}{index}"] = name
        if state == "z":
            fall_asleep(world, frozenset({name}))
        elif state == "v":
            marks = {ANNOTATION_LEAVING: f"{format_time(world.now)} ScaleDown"}
            one["metadata"].setdefault("annotations", {}).update(marks)
            one["status"]["conditions"][1]["status"] = "False"
    return told


def test_a_replica_drains_on_while_another_goes_to_sleep(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=3, replicas=4))
    world.settle()
    told = rest_and_drain(world, "A", "A", "z", "v")

    world.change("replicas: 2")
    decision = world.look()

    assert set(decision.leaving) == {told["v3"]}
    assert (decision.sleep, decision.wake) == (set(), set())
    assert list(world.replicas().values()) == [4]


@pytest.mark.parametrize("mark", ["asleep", f"woken {format_time(START)}"])
def test_a_replica_drains_on_while_a_sleeper_is_woken_beside_it(document: Any, mark: str) -> None:
    world = make_world(document, STANDBY.format(standby=2, replicas=3))
    world.settle()
    told = rest_and_drain(world, "A", "z", "v")
    world.pods[1]["metadata"]["annotations"][ANNOTATION_STANDBY] = mark

    world.change("replicas: 2")
    decision = world.look()

    assert decision.wake == ({told["z1"]} if mark == "asleep" else set())
    assert set(decision.leaving) == {told["v2"]}
    assert list(world.replicas().values()) == [3]


def test_a_sleeper_that_is_no_longer_wanted_goes_in_place_of_one_that_serves(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=3, replicas=3))
    world.settle()
    rest_and_drain(world, "A", "A", "z")

    world.change("{replicas: 2, scaling: {standby: {replicas: 1}, minReplicas: 0, maxReplicas: 5}}")
    decision = world.look()

    assert decision.leaving == {}
    assert list(world.replicas().values()) == [2]
    assert world.ready == 2


def test_a_sleeper_whose_node_is_lost_soon_is_not_woken_and_goes_once_another_sleeps(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    world.make_ready()
    told = rest_and_drain(world, "z")
    doomed = {told["z0"]: "its node is interrupted"}

    world.change("replicas: 1")
    woken = world.look(doomed=doomed).wake
    world.change("replicas: 0")
    leaving = world.look(doomed=doomed).leaving
    beside = list(world.replicas().values())
    (fresh,) = {one["metadata"]["name"] for one in world.pods} - set(doomed)
    fall_asleep(world, frozenset({fresh}))
    mark = {ANNOTATION_LEAVING: f"{format_time(world.now)} x", names.ANNOTATION_DELETION_COST: str(COST_EMPTY)}
    world.pods[0]["metadata"]["annotations"].update(mark)
    world.look(doomed=doomed, empty=frozenset(doomed))

    assert woken == set()
    assert set(leaving) == set(doomed)
    assert beside == [2]
    assert list(world.replicas().values()) == [1]


def test_a_doomed_replica_goes_though_its_replacement_is_one_that_slept_and_the_new_pod_sleeps(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=2, replicas=1))
    world.settle()
    told = rest_and_drain(world, "v", "z")
    doomed = {told["v0"]: "its node is interrupted"}
    victim = world.pods[0]

    woken = world.look(doomed=doomed).wake
    beside = list(world.replicas().values())
    wake_up(world, woken)
    set_ready(world.pods[2], world.now)
    asleep = world.look(doomed=doomed).sleep
    fall_asleep(world, asleep)
    victim["metadata"]["annotations"][names.ANNOTATION_DELETION_COST] = str(COST_EMPTY)
    world.look(doomed=doomed, empty=frozenset(doomed))

    assert woken == {told["z1"]}
    assert beside == [3]
    assert len(asleep) == 1
    assert list(world.replicas().values()) == [2]


def test_a_spec_that_is_refused_leaves_the_number_of_those_that_sleep(document: Any) -> None:
    world = make_world(document, STANDBY.format(standby=1, replicas=0))
    world.look()
    world.make_ready()
    fall_asleep(world, world.look().sleep)
    world.look()

    world.change("model: {uri: nonsense}")
    world.look()

    assert world.condition("Accepted") == ("False", "InvalidSpec")
    assert world.status["scaling"] == {"standby": 1}
