"""The operator's decisions, carried out in a small world: acceptance, revisions, upgrades, rollouts, pause, status."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from quire_operator.api.validation import Problem
from quire_operator.decide import decide_service
from quire_operator.platform import Platform
from tests.operator.decide_world import REVISION, make_world, set_container, waiting

Make = Callable[..., dict[str, Any]]
NEWER = Platform(namespace="serving", worker_image="quire-worker:9")


def test_a_new_service_becomes_a_revision_a_deployment_and_what_pods_need(document: Make) -> None:
    world = make_world(document, "replicas: 2")

    world.look()

    kinds = [child["kind"] for child in world.children]
    assert kinds.index("ControllerRevision") < kinds.index("Deployment")
    assert {"ServiceAccount", "Service", "PodDisruptionBudget"} <= set(kinds)
    assert list(world.replicas().values()) == [2]
    assert world.condition("Ready") == ("False", "WaitingForPods")
    assert ("Normal", "RevisionCreated") in world.events


def test_every_object_is_owned_by_the_service(document: Make) -> None:
    world = make_world(document)

    world.look()

    owners = [child["metadata"]["ownerReferences"][0] for child in world.children]
    assert {owner["uid"] for owner in owners} == {"u-1"}
    assert all(owner["controller"] and not owner["blockOwnerDeletion"] for owner in owners)


def test_a_service_settles_and_then_nothing_changes(document: Make) -> None:
    world = make_world(document, "replicas: 2")
    world.settle()
    before, told = (json.dumps([world.children, world.status], sort_keys=True), len(world.events))

    world.wait(100_000)
    decision = world.look()

    assert json.dumps([world.children, world.status], sort_keys=True) == before
    assert (len(world.events), decision.requeue_after_s, decision.weights) == (told, None, {})


def test_a_service_whose_pods_serve_says_so_in_every_part_of_status(document: Make) -> None:
    world = make_world(document, "replicas: 2")

    world.settle()

    status = world.status
    assert {
        kind: world.condition(kind) for kind in ("Ready", "Accepted", "WorkloadReady", "Progressing", "UpToDate")
    } == {
        "Ready": ("True", "Serving"),
        "Accepted": ("True", "Accepted"),
        "WorkloadReady": ("True", "AllReady"),
        "Progressing": ("True", "Complete"),
        "UpToDate": ("True", "UpToDate"),
    }
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (2, 2, 2)
    assert status["selector"] == "quire.dev/service=llama,quire.dev/role=worker"
    assert status["url"] == "http://quire-router.serving.svc/v1"
    assert status["model"] == "llama"
    assert status["observedGeneration"] == 1
    (revision,) = status["revisions"]
    assert (revision["name"], revision["weight"], revision["readyReplicas"]) == (status["revision"], 100, 2)
    assert "ModelReady" not in {entry["type"] for entry in status["conditions"]}


def test_the_time_of_a_condition_stays_while_its_status_does(document: Make) -> None:
    world = make_world(document)
    world.look()
    began = world.status["conditions"][0]["lastTransitionTime"]

    world.wait(60)
    set_container(world.pods[0], "worker", waiting("ImagePullBackOff"))
    world.look()
    kept = world.status["conditions"][0]
    world.wait(60)
    world.settle()

    assert (kept["reason"], kept["lastTransitionTime"]) == ("ImagePullBackOff", began)
    assert world.status["conditions"][0]["lastTransitionTime"] > began


REFUSED = [
    ("replicas: -1", "InvalidSpec", "spec.replicas: must be at least 0"),
    ("engine: {depth: 7, foo: 1}", "InvalidSpec", "spec.engine.foo: unknown field"),
    ("parallelism: {tensor: 2}", "NotYetSupported", "spec.parallelism.tensor: not supported by this version"),
    ("model: {uri: ftp}", "InvalidSpec", "spec.model.uri: must be one of"),
    ("model: null", "InvalidSpec", "spec.model: is required"),
]


@pytest.mark.parametrize(("spec", "reason", "words"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_spec_that_cannot_be_carried_out_is_a_condition_and_touches_nothing(
    document: Make, spec: str, reason: str, words: str
) -> None:
    world = make_world(document, spec)

    decision = world.look()

    assert decision.manifests is None
    assert world.condition("Accepted") == world.condition("Ready") == ("False", reason)
    assert words in world.message("Accepted")
    assert world.events == [("Warning", reason)]


def test_a_running_service_edited_to_an_invalid_spec_goes_on_serving(document: Make) -> None:
    world = make_world(document, "replicas: 2")
    world.settle()

    world.change("engine: {depth: 7}")
    decision = world.look()

    assert decision.manifests is None
    assert (world.status["readyReplicas"], world.condition("WorkloadReady")) == (2, ("True", "AllReady"))
    assert world.condition("Ready") == ("False", "InvalidSpec")
    assert world.message("Ready").endswith("; 2 replicas of the last good spec go on serving")


def test_the_same_problem_is_told_once_as_an_event(document: Make) -> None:
    world = make_world(document, "replicas: -1")

    for _ in range(3):
        world.look()

    assert world.events == [("Warning", "InvalidSpec")]


def test_a_name_that_another_service_has_is_a_condition(document: Make) -> None:
    world = make_world(document, conflicts=(Problem(path="spec.model.name", message="'x' is served already; rename"),))

    decision = world.look()

    assert (decision.manifests, world.condition("Ready")) == (None, ("False", "NameConflict"))
    assert "spec.model.name: 'x' is served already; rename" in world.message("Ready")


def test_many_problems_fit_into_a_bounded_message(document: Make) -> None:
    world = make_world(document)
    world.document["spec"]["engine"] = {f"field{number}": 1 for number in range(400)}

    world.look()

    assert len(world.message("Ready")) <= 2000
    assert " more" in world.message("Accepted")


def test_an_upgrade_of_the_operator_that_renders_differently_changes_no_template(document: Make) -> None:
    world = make_world(document, "replicas: 2")
    world.settle()
    pods = [pod["metadata"]["name"] for pod in world.pods]
    templates = [child["spec"]["template"] for child in world.of_kind("Deployment")]

    world.platform = Platform(namespace="serving", run_as_user=1000, model_root="/elsewhere", bind_host="::")
    world.settle()

    assert [child["spec"]["template"] for child in world.of_kind("Deployment")] == templates
    assert [pod["metadata"]["name"] for pod in world.pods] == pods


def test_a_new_default_image_waits_for_its_turn_then_rolls(document: Make) -> None:
    world = make_world(document)
    world.settle()
    first = world.status["revision"]

    world.platform, world.may_upgrade = NEWER, False
    queued = world.settle()
    assert (world.status["revision"], queued.is_upgrading) == (first, False)
    assert world.condition("UpToDate") == ("False", "UpgradeQueued")
    assert world.condition("Ready") == ("True", "Serving")

    world.may_upgrade = True
    rolling = world.look()
    assert rolling.is_upgrading
    done = world.settle()
    assert (world.status["revision"] != first, done.is_upgrading) == (True, False)
    assert world.pods[0]["spec"]["containers"][0]["image"] == "quire-worker:9"


def test_a_change_of_the_spec_takes_the_new_default_image_without_waiting(document: Make) -> None:
    world = make_world(document, may_upgrade=False)
    world.settle()

    world.platform = NEWER
    world.change("engine: {maxNumSeqs: 8}")
    decision = world.settle()

    assert (world.condition("UpToDate"), decision.is_upgrading) == (("True", "UpToDate"), False)
    assert world.pods[0]["spec"]["containers"][0]["image"] == "quire-worker:9"


def test_an_image_named_in_the_spec_is_a_change_like_any_other(document: Make) -> None:
    world = make_world(document, may_upgrade=False)
    world.settle()

    world.change("engine: {image: 'mine:1'}")
    decision = world.look()
    world.settle()

    assert not decision.is_upgrading
    assert world.pods[0]["spec"]["containers"][0]["image"] == "mine:1"


def test_naming_the_image_that_the_pods_have_already_restarts_nothing(document: Make) -> None:
    world = make_world(document)
    world.settle()
    pods = [pod["metadata"]["name"] for pod in world.pods]

    world.change(f"engine: {{image: '{Platform().worker_image}'}}")
    world.settle()

    assert [pod["metadata"]["name"] for pod in world.pods] == pods


def test_surge_never_has_fewer_ready_pods_than_wanted(document: Make) -> None:
    world = make_world(document, "replicas: 5")
    world.settle()
    world.change("engine: {maxNumSeqs: 8}")

    for _ in range(20):
        world.look()
        assert world.ready >= 5
        assert len(world.pods) <= 7
        assert world.condition("Ready")[0] == "True"
        world.make_ready()

    assert world.condition("UpToDate") == ("True", "UpToDate")
    assert world.events[-1] == ("Normal", "RolloutComplete")
    assert "rollout" not in world.status


def test_recreate_never_has_more_pods_than_wanted(document: Make) -> None:
    world = make_world(document, "{replicas: 3, rollout: {strategy: Recreate}}")
    world.settle()
    world.change("engine: {maxNumSeqs: 8}")

    for _ in range(20):
        world.look()
        assert (len(world.pods) <= 3, world.ready >= 2) == (True, True)
        world.make_ready()

    assert world.condition("UpToDate") == ("True", "UpToDate")


def test_a_revision_that_never_starts_leaves_the_old_pods_and_says_why(document: Make) -> None:
    world = make_world(document, "replicas: 2")
    world.settle()
    old = world.status["revision"]

    world.change("engine: {image: 'typo:1'}")
    world.look()
    stuck = next(pod for pod in world.pods if pod["metadata"]["labels"][REVISION] != old)
    stuck["status"]["stuck"] = True
    set_container(stuck, "worker", waiting("ErrImagePull"))
    world.settle()

    assert world.count(ready=True)[old] == 2
    assert world.condition("Progressing") == ("False", "ImagePullBackOff")
    assert world.condition("Ready") == ("True", "Serving")
    assert "'typo:1' cannot be pulled; check spec.engine.image" in world.message("Ready")
    assert ("Warning", "ImagePullBackOff") in world.events


def test_a_revision_without_a_diagnosis_is_stuck_after_the_deadline(document: Make) -> None:
    world = make_world(document)
    first = world.look()
    deadline_s = world.of_kind("Deployment")[0]["spec"]["progressDeadlineSeconds"]
    second = world.look()

    world.wait(deadline_s)
    set_container(world.pods[0], "worker", {"running": {"startedAt": "2026-11-21T09:00:00Z"}})
    world.look()

    assert (first.requeue_after_s, second.requeue_after_s) == (None, 121.0)
    assert world.condition("Progressing") == ("False", "ProgressDeadlineExceeded")


def test_going_back_in_the_middle_of_a_rollout_restarts_no_old_pod(document: Make) -> None:
    world = make_world(document, "replicas: 4")
    world.settle()
    old, before = world.status["revision"], {pod["metadata"]["name"] for pod in world.pods}
    world.change("engine: {maxNumSeqs: 8}")
    world.look()

    world.change("engine: {}")
    world.settle()

    assert world.status["revision"] == old
    assert {pod["metadata"]["name"] for pod in world.pods} == before


def test_a_second_change_in_the_middle_ends_at_the_last_spec(document: Make) -> None:
    world = make_world(document, "replicas: 4")
    world.settle()
    world.change("engine: {maxNumSeqs: 8}")
    world.look()
    world.make_ready()
    world.look()

    world.change("engine: {maxNumSeqs: 16}")
    world.settle()

    assert list(world.count(ready=True).values()) == [4]
    assert world.pods[0]["spec"]["containers"][0]["args"].count("16") == 1


@pytest.mark.parametrize("wanted", [0, 1, 7])
def test_replicas_may_change_in_the_middle(document: Make, wanted: int) -> None:
    world = make_world(document, "replicas: 4")
    world.settle()
    world.change("engine: {maxNumSeqs: 8}")
    world.look()

    world.change(f"replicas: {wanted}")
    world.settle()

    assert world.count(ready=True) == ({world.status["revision"]: wanted} if wanted else {})


def test_a_service_of_no_replicas_keeps_its_deployment_and_says_how_to_start_it(document: Make) -> None:
    world = make_world(document, "replicas: 0")

    world.settle()

    assert world.replicas() == {world.status["revision"]: 0}
    assert world.condition("Ready") == ("False", "ScaledToZero")
    assert "kubectl scale infsvc/llama --replicas=1" in world.message("Ready")


def test_some_of_the_replicas_are_enough_to_be_ready_but_not_for_the_workload(document: Make) -> None:
    world = make_world(document, "replicas: 3")
    world.look()
    world.pods[0]["status"]["stuck"] = True

    world.make_ready()
    world.look()

    assert world.condition("Ready") == ("True", "PartiallyServing")
    assert world.condition("WorkloadReady") == ("False", "Starting")
    assert world.message("Ready").startswith("2 of 3 replicas serve")


def test_pods_that_serve_another_name_do_not_make_the_new_name_ready(document: Make) -> None:
    world = make_world(document)
    world.settle()

    world.change("model: {uri: 'pvc://models/llama', name: renamed}")
    world.look()

    assert world.condition("Ready") == ("False", "NotServingYet")


def test_history_is_limited_and_the_oldest_go_first(document: Make) -> None:
    world = make_world(document, "rollout: {revisionHistoryLimit: 2}")
    seen = []
    for number in range(1, 7):
        world.change(f"engine: {{maxNumSeqs: {number}}}")
        world.settle()
        seen.append(world.status["revision"])

    stored = [child["metadata"]["labels"][REVISION] for child in world.of_kind("ControllerRevision")]

    assert stored == [seen[5], seen[4], seen[3]]
    assert [entry["name"] for entry in world.status["revisions"]] == stored


def test_a_rollback_from_what_is_stored_brings_back_the_stored_revision(document: Make) -> None:
    world = make_world(document, "{resources: {limits: {memory: 4Gi}}, placement: {nodeSelector: {a: b}}}")
    world.settle()
    first = world.status["revision"]
    stored = next(child["data"] for child in world.of_kind("ControllerRevision"))
    world.platform = NEWER
    world.replace_spec("{model: {uri: 'pvc://models/other'}, engine: {maxNumSeqs: 9}}")
    world.settle()

    spec = {**stored["shape"], "replicas": 1}
    spec["engine"] = {**spec.get("engine", {}), "image": stored["image"]}
    world.document["spec"] = spec
    world.settle()

    assert world.status["revision"] == first
    assert world.status["revisions"][0]["name"] == first


def test_a_revision_whose_record_was_deleted_is_kept_from_its_deployment(document: Make) -> None:
    world = make_world(document)
    world.settle()
    name, pods = world.status["revision"], [pod["metadata"]["name"] for pod in world.pods]
    world.children = [child for child in world.children if child["kind"] != "ControllerRevision"]

    world.platform = Platform(namespace="serving", run_as_user=1000)
    world.settle()

    (record,) = world.of_kind("ControllerRevision")
    assert (record["metadata"]["labels"][REVISION], record["data"]["shape"]) == (
        name,
        {"model": {"uri": "pvc://models/llama"}},
    )
    assert [pod["metadata"]["name"] for pod in world.pods] == pods


def test_a_paused_service_is_watched_and_left_alone(document: Make) -> None:
    world = make_world(document)
    world.settle()

    world.document["metadata"]["annotations"] = {"quire.dev/paused": "true"}
    world.change("engine: {maxNumSeqs: 8}")
    paused = world.look()
    assert (paused.manifests, world.condition("Paused")) == (None, ("True", "PausedByAnnotation"))
    assert (world.condition("Ready"), world.condition("UpToDate")) == (("True", "Serving"), ("False", "Paused"))

    del world.document["metadata"]["annotations"]
    world.settle()
    assert "Paused" not in {entry["type"] for entry in world.status["conditions"]}
    assert [reason for _, reason in world.events if reason in {"Paused", "Resumed"}] == ["Paused", "Resumed"]
    assert world.condition("UpToDate") == ("True", "UpToDate")


@pytest.mark.parametrize("steps", range(8))
def test_a_restart_at_any_point_of_a_rollout_ends_the_same(document: Make, steps: int) -> None:
    world = make_world(document, "replicas: 3")
    world.settle()
    world.change("engine: {maxNumSeqs: 8}")
    for _ in range(steps):
        world.look()
        world.make_ready()

    del world.document["status"]
    world.settle()

    assert list(world.count(ready=True).values()) == [3]
    assert world.condition("UpToDate") == ("True", "UpToDate")


def test_a_decision_takes_little_time(document: Make) -> None:
    """A resync decides about hundreds of services; the bound is far above the 1 ms that it takes."""
    world = make_world(document, "replicas: 2")
    world.settle()
    snapshot = world.snapshot

    took = min(timed(lambda: decide_service(snapshot, world.platform)) for _ in range(20))

    assert took < 0.01


def timed(call: Callable[[], object]) -> float:
    """Seconds of processor time."""
    began = time.process_time()
    call()
    return time.process_time() - began


def test_deciding_changes_nothing_of_what_it_was_given(document: Make) -> None:
    world = make_world(document)
    world.settle()
    snapshot = world.snapshot
    before = json.dumps([snapshot.document, snapshot.children, snapshot.pods], sort_keys=True)

    decide_service(snapshot, NEWER)

    assert json.dumps([snapshot.document, snapshot.children, snapshot.pods], sort_keys=True) == before
