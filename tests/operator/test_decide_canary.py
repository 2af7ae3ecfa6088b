"""Canaries, decided and carried out in a small world: steps, promotion, rollback, restarts, changes of mind."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.operator.decide_world import World, ended, make_world, running, set_container

Make = Callable[..., dict[str, Any]]
CANARY = (
    "{replicas: 4, rollout: {strategy: %s, canary: {steps: [5, 50], intervalSeconds: 60}}, engine: {maxNumSeqs: 4}}"
)


def begin(document: Make, strategy: str = "Surge") -> tuple[World, str, str]:
    """A settled service whose change has begun; with the stable revision's and the canary's name."""
    world = make_world(document, CANARY % strategy)
    world.settle()
    stable = world.status["revision"]
    world.change("engine: {maxNumSeqs: 8}")
    world.look()
    return world, stable, world.status["revision"]


def watch_first_step(document: Make, strategy: str = "Surge") -> tuple[World, str, str]:
    """The canary's pods are ready and the first step is being watched."""
    world, stable, canary = begin(document, strategy)
    for _ in range(4):
        world.make_ready()
        world.look()
    assert world.status["rollout"]["stepStartedAt"]
    return world, stable, canary


def pass_step(world: World) -> None:
    """Sixty good seconds."""
    world.counted(100, 0)
    world.wait(60)
    world.look()
    world.make_ready()


def test_the_first_revision_of_a_service_has_no_canary(document: Make) -> None:
    world = make_world(document, CANARY % "Surge")

    decision = world.settle()

    assert (decision.weights, "rollout" in world.status) == ({}, False)


def test_a_canary_gets_no_traffic_before_its_pods_are_ready(document: Make) -> None:
    world, stable, canary = begin(document)

    decision = world.look()

    assert decision.weights == {stable: 100, canary: 0}
    assert world.replicas() == {stable: 4, canary: 1}
    assert decision.wants_canary_stats is None
    assert world.condition("Progressing") == ("True", "Canary")
    assert world.condition("UpToDate") == ("False", "RollingOut")


def test_a_step_begins_when_its_pods_are_ready(document: Make) -> None:
    world, stable, canary = begin(document)

    world.make_ready()
    decision = world.look()

    assert decision.weights == {stable: 95, canary: 5}
    assert decision.wants_canary_stats == (stable, canary)
    assert decision.requeue_after_s == 15
    assert world.events[-1] == ("Normal", "CanaryStep")
    assert {entry["name"]: entry["weight"] for entry in world.status["revisions"]} == {stable: 95, canary: 5}


def test_a_good_canary_goes_through_its_steps_and_is_promoted(document: Make) -> None:
    world, stable, canary = watch_first_step(document)

    pass_step(world)
    assert (world.replicas(), world.status["rollout"]["weight"]) == ({stable: 4, canary: 2}, 5)
    second = world.look()
    assert second.weights == {stable: 50, canary: 50}
    pass_step(world)
    assert world.status["rollout"]["phase"] == "Promoting"
    done = world.settle()

    assert (world.count(ready=True), done.weights, done.wants_canary_stats) == ({canary: 4}, {}, None)
    assert [reason for _, reason in world.events if reason.startswith(("Canary", "Rollout"))] == [
        "CanaryStep",
        "CanaryStep",
        "CanaryPromoted",
        "RolloutComplete",
    ]


def test_a_failing_canary_is_undone_at_once_and_not_tried_again(document: Make) -> None:
    world, stable, canary = watch_first_step(document)

    world.counted(10, 9)
    world.wait(5)
    decision = world.look()
    assert decision.weights == {stable: 100, canary: 0}
    world.wait(100_000)
    world.settle()

    assert world.count(ready=True) == {stable: 4}
    assert world.condition("Progressing") == ("False", "CanaryFailed")
    assert world.condition("UpToDate") == ("False", "CanaryFailed")
    assert world.condition("Ready") == ("True", "Serving")
    assert "90.0% of requests failed" in world.message("Ready")
    assert ("Warning", "CanaryFailed") in world.events
    assert {entry["name"]: entry["failed"] for entry in world.status["revisions"]} == {stable: False, canary: True}


def test_why_the_pods_of_a_failing_canary_died_is_told_after_they_are_gone(document: Make) -> None:
    world, _, canary = watch_first_step(document)
    (pod,) = [pod for pod in world.pods if canary in pod["metadata"]["name"]]
    killed = ended(137, reason="OOMKilled", at=world.now)
    set_container(pod, "worker", running(world.now), last=killed, restarts=1)

    world.counted(20, 4)
    world.wait(5)
    world.look()
    world.wait(100_000)
    world.settle()

    assert "20.0% of requests failed" in world.message("Progressing")
    assert f"pod {pod['metadata']['name']} was killed for using too much memory" in world.message("Progressing")
    assert "quire rollback llama -n serving" in world.message("Progressing")


def test_a_failed_canary_is_replaced_by_the_next_spec(document: Make) -> None:
    world, stable, canary = watch_first_step(document)
    world.counted(10, 9)
    world.settle()

    world.change("engine: {maxNumSeqs: 16}")
    world.look()

    rollout = world.status["rollout"]
    assert (rollout["phase"], rollout["stable"]) == ("Canary", stable)
    assert rollout["revision"] not in {stable, canary}


def test_a_failed_canary_may_be_scaled_to_zero_and_back_without_coming_back(document: Make) -> None:
    world, stable, _ = watch_first_step(document)
    world.counted(10, 9)
    world.settle()

    world.change("replicas: 0")
    world.settle()
    world.change("replicas: 2")
    world.settle()

    assert world.count(ready=True) == {stable: 2}
    assert world.condition("Progressing") == ("False", "CanaryFailed")


def test_going_back_to_the_old_spec_gives_it_all_traffic_at_once_and_restarts_nothing(document: Make) -> None:
    world, stable, canary = watch_first_step(document)
    before = {pod["metadata"]["name"] for pod in world.pods if stable in pod["metadata"]["name"]}

    world.change("engine: {maxNumSeqs: 4}")
    decision = world.look()
    world.settle()

    assert decision.weights == {stable: 100, canary: 0}
    assert {pod["metadata"]["name"] for pod in world.pods} == before
    assert "rollout" not in world.status


def test_going_back_after_a_failure_ends_it(document: Make) -> None:
    world, stable, _ = watch_first_step(document)
    world.counted(10, 9)
    world.settle()

    world.change("engine: {maxNumSeqs: 4}")
    world.settle()

    assert world.condition("UpToDate") == ("True", "UpToDate")
    assert (world.status["revision"], "rollout" in world.status) == (stable, False)


def test_a_canary_without_any_router_stays_where_it_is(document: Make) -> None:
    world, stable, canary = watch_first_step(document)

    world.wait(100_000)
    decision = world.look()

    assert decision.weights == {stable: 95, canary: 5}
    assert "no router has been asked" in world.message("Progressing")


def test_a_canary_that_nobody_calls_is_promoted_and_says_that_nothing_was_seen(document: Make) -> None:
    world, _, canary = watch_first_step(document)

    for _ in range(2):
        world.counted(0, 0, stable=(0, 0))
        world.wait(60)
        world.look()
        world.make_ready()
        world.look()

    assert world.status["rollout"]["phase"] == "Promoting"
    assert "nothing was observed" in world.status["rollout"]["message"]
    world.settle()
    assert world.count(ready=True) == {canary: 4}


def test_a_canary_in_place_of_stable_pods_never_has_more_pods_than_wanted(document: Make) -> None:
    world, stable, canary = watch_first_step(document, "Recreate")

    assert world.count(ready=True) == {stable: 3, canary: 1}
    pass_step(world)
    for _ in range(4):
        world.look()
        world.make_ready()
        assert len(world.pods) <= 4
    assert world.count(ready=True) == {stable: 2, canary: 2}
    world.counted(10, 9)
    for _ in range(6):
        world.look()
        world.make_ready()
        assert len(world.pods) <= 4

    assert world.count(ready=True) == {stable: 4}


@pytest.mark.parametrize(
    "rollout", ["{strategy: Surge}", "{strategy: Surge, canary: {steps: [5], intervalSeconds: 60}}"]
)
def test_the_canarys_own_settings_may_change_in_the_middle(document: Make, rollout: str) -> None:
    world, _, canary = watch_first_step(document)
    pass_step(world)

    world.change(f"rollout: {rollout}")
    world.settle()

    assert world.count(ready=True) == {canary: 4}


@pytest.mark.parametrize("wanted", [0, 1, 9])
def test_replicas_may_change_in_the_middle_of_a_canary(document: Make, wanted: int) -> None:
    world, stable, canary = watch_first_step(document)

    world.change(f"replicas: {wanted}")
    world.settle()

    assert world.count(ready=True) == ({stable: wanted, canary: 1} if wanted else {})


def test_a_paused_canary_keeps_its_split(document: Make) -> None:
    world, stable, canary = watch_first_step(document)
    world.counted(10, 9)

    world.document["metadata"]["annotations"] = {"quire.dev/paused": "true"}
    decision = world.look()

    assert (decision.manifests, decision.weights) == (None, {stable: 95, canary: 5})


def test_an_upgrade_of_the_default_image_goes_through_the_canary_too(document: Make) -> None:
    world = make_world(document, CANARY % "Surge")
    world.settle()
    stable = world.status["revision"]
    world.platform = type(world.platform)(namespace="serving", worker_image="quire-worker:9")

    decision = world.look()
    assert (decision.is_upgrading, world.status["rollout"]["phase"]) == (True, "Canary")
    world.make_ready()
    world.look()
    world.counted(10, 9)
    failed = world.look()

    assert not failed.is_upgrading
    world.settle()
    assert world.count(ready=True) == {stable: 4}
    assert not world.look().is_upgrading


def test_a_restart_goes_on_from_status(document: Make) -> None:
    world, stable, canary = watch_first_step(document)
    pass_step(world)
    world.look()
    began = world.status["rollout"]["stepStartedAt"]

    world.canary = None
    world.wait(30)
    decision = world.look()

    assert (world.status["rollout"]["step"], world.status["rollout"]["stepStartedAt"]) == (2, began)
    assert decision.weights == {stable: 50, canary: 50}
