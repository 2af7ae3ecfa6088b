"""What pods and children tell: each trouble with its reason and its fix, in the Ready condition and as an event."""

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from quire_operator.api.validation import Problem
from quire_operator.decision import FetchProgress
from quire_operator.findings import HARMLESS, ORDER
from quire_operator.observation import observe
from tests.operator.decide_world import (
    START,
    World,
    ended,
    make_world,
    running,
    set_container,
    set_ready,
    unschedulable,
    waiting,
)

Make = Callable[..., dict[str, Any]]
Pod = dict[str, Any]
FETCHED = "{model: {uri: 'hf://org/llama'}, resources: {limits: {memory: 8Gi}}}"
BACK_OFF = waiting("CrashLoopBackOff", "back-off 40s restarting failed container")


def fetch_failed(reason: str, message: str = "why") -> Callable[[Pod], None]:
    """The fetcher ended with its own words."""
    told = f'{{"reason": "{reason}", "message": "{message}"}}'
    return lambda pod: set_container(pod, "fetch", BACK_OFF, last=ended(1, told), restarts=3)


def worker_ended(exit_code: int, message: str, reason: str = "Error") -> Callable[[Pod], None]:
    return lambda pod: set_container(pod, "worker", BACK_OFF, last=ended(exit_code, message, reason), restarts=3)


def worker_waits(reason: str, message: str = "") -> Callable[[Pod], None]:
    return lambda pod: set_container(pod, "worker", waiting(reason, message))


def no_room(message: str) -> Callable[[Pod], None]:
    return lambda pod: unschedulable(pod, message)


CASES: list[tuple[str, Callable[[Pod], None], str, str]] = [
    (
        "no GPU is free",
        no_room("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "Unschedulable",
        "no node has enough free nvidia.com/gpu: add GPU nodes or lower spec.replicas",
    ),
    (
        "no memory is free",
        no_room("0/3 nodes are available: 1 Insufficient memory, 2 Insufficient cpu."),
        "Unschedulable",
        "lower spec.resources.requests.memory or add nodes",
    ),
    ("no node carries the label", no_room("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
     "Unschedulable", "check spec.placement.nodeSelector"),
    ("a taint", no_room("0/1 nodes are available: 1 node(s) had untolerated taint {a: b}."), "Unschedulable",
     "spec.placement.tolerations"),
    ("the claim is missing", no_room('persistentvolumeclaim "models" not found'), "VolumeClaimMissing",
     "create PersistentVolumeClaim models in this namespace"),
    ("the claim is not bound", no_room("0/1 nodes: pod has unbound immediate PersistentVolumeClaims."), "VolumeClaimPending",
     "check its storage class"),
    ("there is no node", no_room("no nodes available to schedule pods"), "Unschedulable", "add nodes"),
    ("the image cannot be pulled", worker_waits("ImagePullBackOff"), "ImagePullBackOff",
     "image 'quire-worker:0.1.0' cannot be pulled; check spec.engine.image"),
    ("nor at first", worker_waits("ErrImagePull"), "ImagePullBackOff", "spec.podTemplate.imagePullSecrets"),
    ("the image's name is none", worker_waits("InvalidImageName"), "InvalidImageName", "correct spec.engine.image"),
    ("a Secret is missing", worker_waits("CreateContainerConfigError", 'secret "s" not found'), "CreateContainerConfigError",
     'secret "s" not found; create the Secret or ConfigMap in this namespace'),
    ("the runtime refuses", worker_waits("RunContainerError", "no such file"), "CreateContainerError", "no such file"),
    ("the worker is killed for memory", worker_ended(137, "", "OOMKilled"), "OOMKilled",
     "its limit is 8Gi: raise spec.resources.limits.memory"),
    ("flags or model are wrong", worker_ended(2, "loading\nquire-worker: error: --dtype fp8 is not known\n"), "WorkerCannotStart",
     "quire-worker: error: --dtype fp8 is not known"),
    ("the worker crashes", worker_ended(1, "Traceback\nValueError: x"), "CrashLoopBackOff",
     "ended with exit code 1: ValueError: x; see kubectl logs"),
    ("the source wants a login", fetch_failed("ModelSourceUnauthorized", "401 from host"), "ModelSourceUnauthorized",
     "401 from host; put valid credentials into the Secret that spec.model.secretRef names"),
    ("the source has no such model", fetch_failed("ModelSourceNotFound"), "ModelSourceNotFound", "correct spec.model.uri"),
    ("the source is away", fetch_failed("ModelSourceUnreachable"), "ModelSourceUnreachable", "modelCIDRs"),
    ("the files are damaged", fetch_failed("ModelChecksumMismatch"), "ModelChecksumMismatch", "pin spec.model.revision"),
    ("the cache is full", fetch_failed("NoSpace"), "NoSpace", "models.cache.size"),
    ("the source is no model", fetch_failed("InvalidModel"), "InvalidModel", "Hugging Face format"),
    ("the cache cannot be written", fetch_failed("ModelCacheUnusable"), "ModelCacheUnusable", "writable"),
    ("the fetcher says something else", fetch_failed("Surprise", "odd"), "ModelFetchFailed", "odd; see kubectl logs"),
    ("the fetcher left a log only", lambda pod: set_container(pod, "fetch", ended(1, "a\nlast line")), "ModelFetchFailed",
     "last line"),
    ("the fetcher is killed", lambda pod: set_container(pod, "fetch", ended(137, "")), "ModelFetchFailed",
     "the fetcher ended with exit code 137; see kubectl logs"),
    ("the fetcher is killed for memory", lambda pod: set_container(pod, "fetch", ended(137, "", "OOMKilled")), "ModelFetchFailed",
     "models.fetchResources"),
    ("the model is fetched", lambda pod: set_container(pod, "fetch", running()), "FetchingModel", "fetching the model"),
    ("the model is loaded", lambda pod: set_container(pod, "worker", running()), "Loading", "loads the model"),
]  # fmt: skip


@pytest.mark.parametrize(("hurt", "reason", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_trouble_is_named_with_its_fix(document: Make, hurt: Callable[[Pod], None], reason: str, words: str) -> None:
    world = make_world(document, FETCHED)
    world.look()

    hurt(world.pods[0])
    world.look()

    assert world.condition("Ready") == world.condition("WorkloadReady") == ("False", reason)
    assert words in world.message("Ready")
    assert (("Warning", reason) in world.events) == (reason not in HARMLESS)


REFUSALS = [
    ('pods "x" is forbidden: exceeded quota: q, requested: cpu=1, used: cpu=2, limited: cpu=2', "QuotaExceeded", "ResourceQuota"),
    ('pods "x" is forbidden: violates PodSecurity "restricted"', "PodSecurityRefused", "HostPath"),
    ('admission webhook "policy.example" denied the request: no', "AdmissionRefused", "webhook"),
    ('pods "x" is forbidden: no PriorityClass with name high was found', "AdmissionRefused", "priorityClassName"),
    ('User "system:serviceaccount:a:b" cannot patch resource "deployments"', "OperatorForbidden", "Role"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "reason", "words"), REFUSALS, ids=[case[1] + case[2] for case in REFUSALS])
def test_what_the_api_server_refuses_is_named_whoever_asked(
    document: Make, message: str, reason: str, words: str
) -> None:
    applied = make_world(document, apply_errors=(Problem(path="Deployment/x", message=message),))
    created = make_world(document)
    created.look()
    created.pods.clear()
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    created.of_kind("Deployment")[0]["status"] = {"conditions": [failure]}

    for world in (applied, created):
        world.platform = world.platform
        told = [finding for finding in observe(world.snapshot).findings() if finding.reason == reason]
        assert len(told) == 1
        assert words in told[0].message
    created.look()
    assert created.condition("Ready") == ("False", reason)


def test_a_worker_that_was_killed_for_memory_and_serves_again_is_told_for_a_while(document: Make) -> None:
    world = make_world(document)
    world.settle()
    last = ended(137, "", "OOMKilled", at=world.now)
    set_container(world.pods[0], "worker", running(world.now), last=last, restarts=1)

    world.wait(60)
    world.look()
    assert world.condition("Ready") == ("True", "Serving")
    assert "killed for using too much memory" in world.message("Ready")

    world.wait(3600)
    world.look()
    assert world.message("Ready") == "1 replica serving"


def test_a_pod_that_was_ready_and_is_not_any_more_is_told_apart_from_one_that_loads(document: Make) -> None:
    world = make_world(document)
    world.look()
    (pod,) = world.pods
    set_container(pod, "worker", running(START))
    lost = {"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T10:00:00Z"}
    pod["status"]["conditions"] = [lost]

    world.look()

    assert world.condition("Ready") == ("False", "NotReady")


def test_a_pod_on_a_lost_node_is_named_and_nobody_waits_for_its_devices(document: Make) -> None:
    world = make_world(document)
    world.settle()
    (pod,) = world.pods
    pod["metadata"]["deletionTimestamp"] = "2026-11-21T09:00:30Z"
    pod["spec"]["nodeName"] = "node-7"

    world.wait(600)
    world.look()

    assert observe(world.snapshot).of(world.status["revision"]).terminating == 0
    assert "node node-7 does not answer" in world.message("WorkloadReady")


def test_an_evicted_pod_does_not_count_and_says_why(document: Make) -> None:
    world = make_world(document)
    world.settle()
    message = "The node was low on resource: memory. "
    evicted = copy.deepcopy(world.pods[0])
    evicted["metadata"]["name"] = "pod-evicted"
    evicted["status"] |= {"phase": "Failed", "reason": "Evicted", "message": message}
    world.pods = [evicted]

    world.look()

    assert (world.status["replicas"], world.condition("Ready")) == (0, ("False", "Evicted"))
    assert "low on resource: memory; set spec.resources.requests" in world.message("Ready")

    world.wait(7200)
    assert observe(world.snapshot).findings() == ()


def test_a_pod_whose_containers_do_not_come_is_told_after_two_minutes(document: Make) -> None:
    world = make_world(document)
    world.look()
    decision = world.look()

    world.wait(decision.requeue_after_s or 0)
    world.look()

    assert world.condition("Ready") == ("False", "ContainerCreating")
    assert "kubectl describe pod" in world.message("Ready")


def test_equal_troubles_of_many_pods_are_one_message(document: Make) -> None:
    world = make_world(document, "replicas: 3")
    world.look()

    for pod in world.pods:
        set_container(pod, "worker", waiting("ImagePullBackOff"))
    world.look()

    assert world.message("Ready").count("cannot be pulled") == 1
    assert world.message("Ready").endswith("(and 2 more like it)")


def test_the_most_important_trouble_stands_in_ready(document: Make) -> None:
    world = make_world(document, "{replicas: 2, model: {uri: 'hf://a/b'}}")
    world.look()
    first, second = world.pods
    set_container(first, "worker", running())

    fetch_failed("ModelSourceNotFound")(second)
    world.look()

    assert world.condition("Ready") == ("False", "ModelSourceNotFound")


def fetching(document: Make) -> World:
    """A service whose only pod fetches its model."""
    world = make_world(document, FETCHED)
    world.look()
    set_container(world.pods[0], "fetch", running())
    return world


def test_a_download_shows_its_progress_and_is_looked_at_again(document: Make) -> None:
    world = fetching(document)
    name = world.pods[0]["metadata"]["name"]

    progress = FetchProgress(phase="downloading", done_bytes=3_100_000_000, total_bytes=16_100_000_000)
    world.fetches = {name: progress}
    decision = world.look()

    assert (decision.wants_fetch_progress, decision.requeue_after_s) == (True, 10)
    assert world.condition("ModelReady") == ("False", "FetchingModel")
    assert world.message("ModelReady") == "downloading 3.1 of 16.1 GB (19 %)"
    assert "downloading 3.1 of 16.1 GB (19 %)" in world.message("Ready")
    assert world.status["fetch"] == {
        "phase": "downloading",
        "doneBytes": 3_100_000_000,
        "totalBytes": 16_100_000_000,
    }


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (4_300_000, 8_600_000, "downloading 4.3 of 8.6 MB (50 %)"),
        (999, None, "downloading the model, 0.0 MB so far"),
        (2_000_000_000, None, "downloading the model, 2.0 GB so far"),
        (0, 0, "downloading the model, 0.0 MB so far"),
    ],
)
def test_progress_is_told_in_a_unit_in_which_it_moves(document: Make, done: int, total: int | None, text: str) -> None:
    world = fetching(document)
    world.fetches = {
        world.pods[0]["metadata"]["name"]: FetchProgress(phase="downloading", done_bytes=done, total_bytes=total)
    }

    world.look()

    assert world.message("ModelReady") == text


def test_a_source_that_does_not_answer_is_told_while_it_is_tried_again(document: Make) -> None:
    world = fetching(document)
    name = world.pods[0]["metadata"]["name"]

    world.fetches = {name: FetchProgress(phase="resolving", trouble="listing: Cannot connect to host nowhere:443")}
    world.look()

    assert world.condition("Ready") == ("False", "ModelSourceUnreachable")
    assert world.condition("ModelReady") == ("False", "ModelSourceUnreachable")
    assert "cannot be fetched just now: listing: Cannot connect to host nowhere:443; check DNS" in world.message(
        "Ready"
    )
    assert world.condition("Progressing") == ("True", "Starting")

    world.fetches = {name: FetchProgress(phase="resolving", message="pod other fetches the same model")}
    world.look()

    assert world.condition("Ready") == ("False", "FetchingModel")
    assert "pod other fetches the same model" in world.message("Ready")


def test_a_fetch_that_failed_and_downloads_again_is_no_trouble_any_more(document: Make) -> None:
    world = make_world(document, FETCHED)
    world.look()
    (pod,) = world.pods
    failed = ended(1, '{"reason": "ModelSourceUnreachable", "message": "timeout"}')
    set_container(pod, "fetch", running(), last=failed, restarts=1)

    world.fetches = {pod["metadata"]["name"]: FetchProgress(phase="resolving")}
    world.look()
    before = world.condition("Ready")[1]
    world.fetches = {pod["metadata"]["name"]: FetchProgress(phase="downloading", done_bytes=1)}
    world.look()

    assert (before, world.condition("Ready")[1]) == ("ModelSourceUnreachable", "FetchingModel")


def test_an_old_crash_is_not_why_a_worker_is_not_ready_now(document: Make) -> None:
    world = make_world(document)
    world.look()
    (pod,) = world.pods
    set_container(pod, "worker", running(START), last=ended(1, "x"), restarts=4)
    pod["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": "2026-11-21T10:00:00Z"}]

    world.look()

    assert world.condition("Ready") == ("False", "NotReady")


def test_names_that_change_with_each_attempt_are_left_out(document: Make) -> None:
    told = []
    for name in ("x-1", "x-2"):
        message = f'pods "{name}" is forbidden: exceeded quota: q'
        world = make_world(document, apply_errors=(Problem(path="Deployment/x", message=message),))
        told.append([finding.message for finding in observe(world.snapshot).findings()])

    assert told[0] == told[1]


def test_a_fetched_model_is_a_condition_of_its_own(document: Make) -> None:
    world = fetching(document)
    (pod,) = world.pods
    pod["status"]["initContainerStatuses"] = []
    set_container(pod, "fetch", ended(0, "", "Completed"))

    set_ready(pod, world.now)
    decision = world.look()

    assert world.condition("ModelReady") == ("True", "Fetched")
    assert (decision.wants_fetch_progress, "fetch" in world.status) == (False, False)


def test_the_same_trouble_again_changes_no_status_and_tells_no_second_event(document: Make) -> None:
    world = make_world(document)
    world.look()
    set_container(world.pods[0], "worker", BACK_OFF, last=ended(1, "x"), restarts=3)
    world.look()
    before, told = world.status, len(world.events)

    for restarts in range(4, 8):
        world.wait(40)
        world.pods[0]["status"]["containerStatuses"] = []
        set_container(world.pods[0], "worker", BACK_OFF, last=ended(1, "x", at=world.now), restarts=restarts)
        world.look()

    assert (world.status, len(world.events)) == (before, told)


def test_every_reason_of_the_fetcher_has_a_place_in_the_order(repository: Any) -> None:
    text = (repository / "worker/quire_worker/fetch/errors.py").read_text()

    reasons = [line.split('"')[1] for line in text.splitlines() if line.startswith("    ") and ' = "' in line]

    assert reasons and set(reasons) <= set(ORDER)


def test_pods_are_broken_when_they_will_not_come_up_by_themselves(document: Make) -> None:
    world = make_world(document, "replicas: 3")
    world.look()
    first, second, _ = world.pods
    set_container(first, "worker", waiting("ImagePullBackOff"))
    set_container(second, "worker", running(START + timedelta(seconds=1)))

    pods = observe(world.snapshot).of(world.status["revision"])

    assert (pods.desired, pods.alive, pods.ready, pods.broken) == (3, 3, 0, 1)
