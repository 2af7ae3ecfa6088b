"""Canaries with real worker pods and routers under load, the command line beside them, and an operator or API server that goes away.

`make e2e` builds the images, starts the node and runs this. One story in order: every test goes on from where the one before it ended.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.cache import cache_folder
from cluster.installation import NEXT_IMAGE, REPOSITORY, Installation, machine_installation, wait_until
from cluster.load import Load
from cluster.machine import MachineCluster
from cluster.rollout_watch import LABEL_REVISION, RolloutWatch

pytestmark = [
    pytest.mark.skipif(os.environ.get("QUIRE_E2E") != "1", reason="needs images and a node: make e2e"),
    pytest.mark.timeout(900),
]

NAMESPACE, RELEASE, MODEL = "quire-rollouts", "rollouts", "rollouts-demo"
KIND = "inferenceservices.quire.dev"
STEPS, STEP_S = (25, 50), 20
AWAY_S = 60.0
LEASE_S = 15.0
WITHIN_S = 240.0
SETTLE_REQUESTS = 6
SERVICE: dict[str, Any] = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": MODEL},
    "spec": {
        "model": {"uri": "file://./models/quire-demo"},
        "replicas": 2,
        "engine": {"kvCacheMemory": "256Mi", "maxNumSeqs": 16, "drainTimeoutSeconds": 20, "computeThreads": 1},
        "resources": {"requests": {"cpu": "100m", "memory": "384Mi"}},
        # The canary begins with a cold cache on a machine that it shares with all else: latency is judged by tests of their own.
        "rollout": {
            "canary": {"steps": list(STEPS), "intervalSeconds": STEP_S, "maxLatencyIncreasePercent": 1000},
        },
    },
}


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A release of its own with the service, all ready; says what was wrong at a failure, and removes it at the end."""
    folder = tmp_path_factory.mktemp("rollouts")
    found = machine_installation(folder, namespace=NAMESPACE, release=RELEASE, model=MODEL)
    found.install_definitions()
    found.install(REPOSITORY / "charts" / "quire")
    apply(found, SERVICE)
    wait_until(lambda: found.condition("WorkloadReady") == "True", WITHIN_S, found.diagnosis)
    wait_until(lambda: found.ask(found.router_url()) is not None, 60.0, found.diagnosis)
    yield found
    if request.session.testsfailed:
        print(found.diagnosis())
    else:
        found.remove_rest()


@pytest.fixture
def url(installation: Installation) -> str:
    """Where clients send requests."""
    return installation.router_url()


def apply(installation: Installation, document: dict[str, Any]) -> None:
    """kubectl apply."""
    arguments = ("--namespace", installation.namespace, "apply", "-f", "-")
    installation.kubectl(*arguments, stdin=json.dumps(document))


def change(installation: Installation, spec: dict[str, Any]) -> None:
    """A merge patch of the service's spec."""
    installation.namespaced("patch", KIND, MODEL, "--type=merge", "-p", json.dumps({"spec": spec}))


def document_of(installation: Installation) -> dict[str, Any]:
    """The service."""
    found: dict[str, Any] = installation.get(KIND, MODEL)
    return found


def condition_of(installation: Installation, kind: str) -> tuple[str, str, str]:
    """Status, reason and message of a condition; empty if it is not there."""
    for entry in installation.service_status().get("conditions") or []:
        if entry["type"] == kind:
            return entry["status"], entry["reason"], entry["message"]
    return "", "", ""


def events_of(installation: Installation) -> dict[str, list[str]]:
    """Messages of the service's events by reason."""
    found: dict[str, list[str]] = {}
    for event in installation.get("events", "--field-selector", f"involvedObject.name={MODEL}")["items"]:
        found.setdefault(event["reason"], []).append(event["message"])
    return found


def revisions_of_pods(installation: Installation) -> list[str]:
    """The revision of each worker pod, ending ones with them."""
    pods = installation.get("pods", "-l", f"quire.dev/service={MODEL}")["items"]
    return sorted(pod["metadata"]["labels"][LABEL_REVISION] for pod in pods)


def wanted_pods(installation: Installation) -> int:
    """Worker pods that the Deployments are asked for."""
    deployments = installation.get("deployments", "-l", f"quire.dev/service={MODEL}")["items"]
    return sum(int(deployment["spec"]["replicas"]) for deployment in deployments)


def restarts(installation: Installation, component: str) -> dict[str, int]:
    """Restarts of the containers of a component's pods, by pod."""
    pods = installation.get("pods", "-l", f"app.kubernetes.io/component={component}")["items"]
    return {
        pod["metadata"]["name"]: sum(entry["restartCount"] for entry in pod["status"].get("containerStatuses") or [])
        for pod in pods
    }


def quire(installation: Installation, *arguments: str) -> tuple[int, str]:
    """Exit code and output of the command line."""
    command = [sys.executable, "-m", "quire_cli", *arguments, "-n", NAMESPACE]
    done = subprocess.run(
        command, env=installation.kubectl.environment, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout + done.stderr


def wait_for_requests(load: Load, more: int = SETTLE_REQUESTS) -> None:
    """Waits until `more` further requests were answered."""
    enough = load.outcome.num_good + more
    wait_until(lambda: load.outcome.num_good >= enough, 120.0, lambda: f"{more} more requests; {load.outcome}")


def watch_until_rolled_back(installation: Installation, watch: RolloutWatch, stable: str) -> float:
    """Looks until the canary has failed and only pods of the stable revision are left; the seconds until it failed."""
    took_s = wait_until(lambda: watch.look().phase != "Canary", WITHIN_S, installation.diagnosis)
    assert watch.looks[-1].phase == "Failed", watch.told()
    wait_until(lambda: revisions_of_pods(installation) == [stable, stable], 90.0, installation.diagnosis)
    return took_s


def leader_of(installation: Installation) -> str:
    """The pod that holds the Lease; empty while none does."""
    (lease,) = [item for item in installation.get("leases")["items"] if "operator" in item["metadata"]["name"]]
    return str(lease["spec"].get("holderIdentity") or "").rpartition("_")[0]


def test_a_good_revision_is_promoted_step_by_step_and_no_request_fails(installation: Installation, url: str) -> None:
    stable = installation.service_status()["revision"]

    with Load(url, MODEL, num_clients=4) as load:
        wait_for_requests(load)
        watch = RolloutWatch(installation, load)
        change(installation, {"engine": {"image": NEXT_IMAGE}})
        wait_until(lambda: watch.look().phase == "Canary", 60.0, installation.diagnosis)
        canary = installation.service_status()["revision"]
        promoted_s = wait_until(
            lambda: watch.look().phase not in ("Canary", "Failed"), WITHIN_S, installation.diagnosis
        )
        whole_s = wait_until(lambda: watch.look().phase == "", WITHIN_S, installation.diagnosis)
        wait_until(lambda: revisions_of_pods(installation) == [canary, canary], 90.0, installation.diagnosis)
        wait_for_requests(load)

    shares = {weight: watch.share(canary, weight) for weight in STEPS}
    print(f"\npromoted after {promoted_s:.1f} s, all pods {whole_s:.1f} s later; {load.outcome.num_good} requests")
    print(f"the canary's share of each step: {shares}\n{watch.told()}")
    load.outcome.check(min_good=50)
    assert [step for step in watch.steps() if step[0] == "Canary"][-2:] == [("Canary", 25), ("Canary", 50)]
    for weight, (of_canary, of_all) in shares.items():
        expected = of_all * weight / 100
        assert of_all >= 20
        assert abs(of_canary - expected) < 4 * math.sqrt(expected * (1 - weight / 100))
    events = events_of(installation)
    assert [f"gets {weight} % of the traffic" in " ".join(events["CanaryStep"]) for weight in STEPS] == [True, True]
    assert canary in events["CanaryPromoted"][0]
    assert "requests, 0 failed" in events["CanaryPromoted"][0]
    assert canary in events["RolloutComplete"][-1]
    assert condition_of(installation, "UpToDate")[:2] == ("True", "UpToDate")
    assert condition_of(installation, "Progressing")[:2] == ("True", "Complete")
    assert (installation.service_status()["revision"], stable != canary) == (canary, True)


def test_a_paused_service_stays_as_it_is_until_it_is_resumed(installation: Installation) -> None:
    stable, uids = installation.service_status()["revision"], installation.worker_uids()

    code, told = quire(installation, "pause", MODEL)
    assert (code, "is paused" in told) == (0, True), told
    # One request at a time: the others wait for whole answers, however fast the machine is at the moment.
    slow = {"steps": [50], "intervalSeconds": 30, "maxLatencyIncreasePercent": 100}
    change(installation, {"engine": {"maxNumSeqs": 1}, "rollout": {"canary": slow}})
    wait_until(lambda: condition_of(installation, "UpToDate")[:2] == ("False", "Paused"), 30.0, installation.diagnosis)
    status_code, status = quire(installation, "status", MODEL)
    kept = revisions_of_pods(installation)
    code, told = quire(installation, "resume", MODEL)

    assert (code, "is looked after again" in told) == (0, True), told
    assert (status_code, kept, uids) == (0, [stable, stable], installation.worker_uids() & uids)
    assert f"quire resume {MODEL} -n {NAMESPACE}" in status
    wait_until(
        lambda: (installation.service_status().get("rollout") or {}).get("phase") == "Canary",
        30.0,
        installation.diagnosis,
    )


def test_a_slow_revision_is_rolled_back_and_no_request_fails(installation: Installation, url: str) -> None:
    stable = installation.service_status()["rollout"]["stable"]
    uids, spec = installation.worker_uids(), document_of(installation)["spec"]

    with Load(url, MODEL, num_clients=8) as load:
        watch = RolloutWatch(installation, load)
        failed_s = watch_until_rolled_back(installation, watch, stable)
        before = load.outcome.by_worker.total()
        wait_for_requests(load, more=20)
    told = condition_of(installation, "Progressing")

    print(f"\nrolled back after {failed_s:.1f} s; {before} requests before\n{watch.told()}\n{told}")
    load.outcome.check(min_good=30)
    assert told[:2] == ("False", "CanaryFailed")
    assert "95th percentile of the time to first token" in told[2]
    assert f"quire rollback {MODEL}" in told[2]
    assert installation.worker_uids() <= uids
    assert document_of(installation)["spec"] == spec, "the spec is the user's"
    assert condition_of(installation, "Ready")[0] == "True"
    assert stable in events_of(installation)["CanaryFailed"][-1]


def test_a_rollback_by_hand_takes_the_bad_change_out_of_the_spec(installation: Installation) -> None:
    uids, stable = installation.worker_uids(), installation.service_status()["rollout"]["stable"]
    status_code, status = quire(installation, "status", MODEL)

    code, told = quire(installation, "rollback", MODEL)
    wait_until(lambda: installation.service_status().get("rollout") is None, 60.0, installation.diagnosis)

    print(f"\n{status}\n{told}")
    assert (status_code, "rolled back" in status) == (0, True), status
    assert f"quire rollback {MODEL} -n {NAMESPACE}" in status
    assert (code, "engine.maxNumSeqs: 1 -> 16" in told) == (0, True), told
    assert document_of(installation)["spec"]["engine"]["maxNumSeqs"] == 16
    assert (installation.service_status()["revision"], installation.worker_uids()) == (stable, uids)
    assert condition_of(installation, "Progressing")[:2] == ("True", "Complete")


def test_a_revision_whose_pods_die_under_load_is_rolled_back(installation: Installation, url: str) -> None:
    stable, uids = installation.service_status()["revision"], installation.worker_uids()
    canary = {"steps": [50], "intervalSeconds": 60, "maxLatencyIncreasePercent": 1000}

    # Its KV pool takes memory as requests fill it, and does not fit into the limit.
    small = {"requests": {"memory": "256Mi"}, "limits": {"memory": "280Mi"}}
    change(installation, {"engine": {"kvCacheMemory": "1Gi"}, "resources": small, "rollout": {"canary": canary}})
    with Load(url, MODEL, num_clients=6, num_more_words=900) as load:
        watch = RolloutWatch(installation, load)
        failed_s = watch_until_rolled_back(installation, watch, stable)
    bad = load.outcome
    with Load(url, MODEL) as load:
        wait_for_requests(load, more=20)
    told = condition_of(installation, "Progressing")

    print(
        f"\nrolled back after {failed_s:.1f} s; {bad.num_good} good, {len(bad.failures)} failed, {len(bad.broken)} broken"
    )
    print(f"{watch.told()}\n{told}")
    load.outcome.check(min_good=20)
    assert told[:2] == ("False", "CanaryFailed")
    assert "% of requests failed, above rollout.canary.maxErrorPercent 1" in told[2]
    assert "its limit is 280Mi: raise spec.resources.limits.memory" in told[2]
    assert installation.worker_uids() == uids
    # A connection that is refused or reset before the first byte is tried elsewhere; streams that had begun go on elsewhere.
    assert not bad.failures
    assert not bad.broken
    assert quire(installation, "rollback", MODEL)[0] == 0
    wait_until(lambda: installation.service_status().get("rollout") is None, 60.0, installation.diagnosis)
    assert installation.worker_uids() == uids


def test_a_revision_whose_pods_never_start_gets_no_request(installation: Installation, url: str) -> None:
    stable, uids = installation.service_status()["revision"], installation.worker_uids()

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        watch = RolloutWatch(installation, load)
        change(installation, {"engine": {"image": "localhost/quire-worker:not-there"}})
        wait_until(
            lambda: watch.look().phase == "Canary" and condition_of(installation, "Progressing")[0] == "False",
            60.0,
            installation.diagnosis,
        )
        told, ready = condition_of(installation, "Progressing"), condition_of(installation, "Ready")
        code, rolled = quire(installation, "rollback", MODEL)
        wait_until(lambda: watch.look().phase == "", 60.0, installation.diagnosis)
        wait_until(lambda: revisions_of_pods(installation) == [stable, stable], 180.0, installation.diagnosis)
        wait_for_requests(load)

    print(f"\n{watch.told()}\n{told}\n{rolled}")
    load.outcome.check(min_good=2 * SETTLE_REQUESTS)
    assert (told[1], "check spec.engine.image" in told[2]) == ("ImagePullBackOff", True)
    assert (ready[0], told[2] in ready[2]) == ("True", True)
    assert {weight for _, weight in watch.steps()} == {0}
    assert (code, f'engine.image: "localhost/quire-worker:not-there" -> "{NEXT_IMAGE}"' in rolled) == (0, True), rolled
    assert installation.worker_uids() == uids


@pytest.mark.parametrize("way", ["deleted", "killed"])
def test_another_operator_takes_over_and_nothing_restarts(installation: Installation, url: str, way: str) -> None:
    workers, routers = installation.worker_uids(), restarts(installation, "router")
    leader, replicas = leader_of(installation), 3 if way == "deleted" else 2

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        if way == "deleted":
            installation.namespaced("delete", "pod", leader, "--wait=false")
        else:
            (status,) = installation.get("pod", leader)["status"]["containerStatuses"]
            container = status["containerID"].rpartition("/")[2]
            MachineCluster(cache_folder() / "cluster").node().ctr("tasks", "kill", "--signal", "KILL", container)
        began_s = time.monotonic()
        installation.namespaced("scale", KIND, MODEL, f"--replicas={replicas}")
        taken_s = wait_until(lambda: leader_of(installation) not in ("", leader), 60.0, installation.diagnosis)
        wait_until(lambda: len(installation.workers()) == replicas, 60.0, installation.diagnosis)
        done_s = time.monotonic() - began_s
        wait_until(lambda: installation.num_worker_pods() == replicas, 90.0, installation.diagnosis)
        wait_until(lambda: installation.condition("WorkloadReady") == "True", 90.0, installation.diagnosis)
        wait_for_requests(load)

    print(f"\nleader {way}: another led {taken_s:.1f} s later, the change was carried out after {done_s:.1f} s")
    print(f"{load.outcome.num_good} requests; operators' restarts {restarts(installation, 'operator')}")
    load.outcome.check(min_good=2 * SETTLE_REQUESTS)
    assert taken_s < 2 * LEASE_S + 5
    assert len(workers & installation.worker_uids()) == min(replicas, len(workers))
    assert restarts(installation, "router") == routers
    assert set(restarts(installation, "worker").values()) == {0}


@pytest.mark.parametrize("way", ["killed", "frozen"])
def test_an_api_server_that_is_away_for_a_minute_fails_no_request(
    installation: Installation, url: str, way: str
) -> None:
    workers, routers = installation.worker_uids(), restarts(installation, "router")
    operators, replicas = restarts(installation, "operator"), 3 if way == "killed" else 2
    cluster = MachineCluster(cache_folder() / "cluster")

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        began_s = time.monotonic()
        with cluster.without_api_server(frozen=way == "frozen"):
            wait_until(lambda: time.monotonic() - began_s >= AWAY_S, 2 * AWAY_S, "a minute passes")
            during = load.outcome.num_good
        away_s = time.monotonic() - began_s
        # It answers before it has read again which resources are defined.
        known = ("--namespace", installation.namespace, "get", KIND)
        wait_until(lambda: installation.kubectl.run(*known).returncode == 0, 120.0, installation.diagnosis)
        installation.namespaced("scale", KIND, MODEL, f"--replicas={replicas}")
        back_s = time.monotonic()
        carried_out_s = wait_until(lambda: wanted_pods(installation) == replicas, 120.0, installation.diagnosis)
        wait_until(lambda: len(installation.workers()) == replicas, 120.0, installation.diagnosis)
        wait_until(lambda: installation.num_worker_pods() == replicas, 90.0, installation.diagnosis)
        wait_until(lambda: installation.condition("WorkloadReady") == "True", 120.0, installation.diagnosis)
        ready_s = time.monotonic() - back_s
        wait_for_requests(load)

    restarted = {pod: count - operators.get(pod, 0) for pod, count in restarts(installation, "operator").items()}
    print(f"\n{way}: away for {away_s:.1f} s, {during} requests until it came back, {load.outcome.num_good} in all")
    print(f"the operator carried the change out after {carried_out_s:.1f} s, its pods served after {ready_s:.1f} s")
    print(f"operators' restarts {restarted}")
    load.outcome.check(min_good=during + SETTLE_REQUESTS)
    assert len(workers & installation.worker_uids()) == min(replicas, len(workers))
    assert set(restarts(installation, "worker").values()) == {0}
    assert restarts(installation, "router") == routers
    # The leader ends when its Lease has run out, and waits as a candidate from then on; a candidate never ends.
    assert sum(restarted.values()) <= 1
