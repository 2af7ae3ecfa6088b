"""Replicas that follow demand on a real node: from zero, to the maximum, through killed parts, and back, without losing a request.

One story in order, as in test_cluster_e2e. `make e2e` runs this.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.installation import REPOSITORY, Installation, machine_installation, wait_until
from cluster.load import Load
from cluster.signs import IN_THE_IMAGE, small_service

pytestmark = [
    pytest.mark.skipif(os.environ.get("QUIRE_E2E") != "1", reason="needs images and a node: make e2e"),
    pytest.mark.timeout(900),
]

NAMESPACE, MODEL = "quire-scaling", "sleeper"
CHART = REPOSITORY / "charts" / "quire"
MAX_REPLICAS = 3
SCALING = {
    "minReplicas": 0,
    "maxReplicas": MAX_REPLICAS,
    "demandPerReplica": 2,
    "pollingIntervalSeconds": 1,
    "cooldownSeconds": 15,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 10}},
}
FEW, MANY = 1, 10
ASLEEP_WITHIN_S = 180.0
GROWN_WITHIN_S = 240.0
STEADY_REQUESTS = 20


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart in a namespace of its own, with one service that may sleep; it goes at the end, but after a failure."""
    found = machine_installation(tmp_path_factory.mktemp("installation"), namespace=NAMESPACE, model=MODEL)
    found.install_definitions()
    found.install(CHART)
    service = small_service(MODEL, IN_THE_IMAGE, scaling=SCALING)
    del service["spec"]["replicas"]
    found.apply(service)
    yield found
    if request.session.testsfailed:
        print(found.diagnosis())
    else:
        found.remove_rest()


@pytest.fixture
def url(installation: Installation) -> str:
    """Where clients send requests."""
    return installation.router_url()


def replicas(installation: Installation) -> int:
    """What /scale says."""
    return int(installation.get("inferenceservices.quire.dev", MODEL)["spec"].get("replicas", 1))


def is_asleep(installation: Installation) -> Callable[[], bool]:
    """Whether no replica is wanted and no pod is left."""
    return lambda: replicas(installation) == 0 and installation.num_worker_pods() == 0


def history(installation: Installation) -> list[dict[str, Any]]:
    """The autoscaler's last changes, newest first."""
    return list((installation.service_status().get("scaling") or {}).get("history") or [])


def has_grown(installation: Installation) -> Callable[[], bool]:
    """Whether all replicas that there may be are ready."""
    return lambda: len(installation.ready_workers()) == MAX_REPLICAS


def pods(installation: Installation, selector: str) -> list[str]:
    """Names of the pods that a selector finds."""
    return sorted(pod["metadata"]["name"] for pod in installation.get("pods", "-l", selector)["items"])


def leader(installation: Installation) -> str:
    """Name of the operator's pod that holds the Lease; empty while none does."""
    lease = installation.get("leases", f"{installation.release}-operator")
    return str(lease["spec"].get("holderIdentity") or "").rpartition("_")[0]


def answered(load: Load, more: int, *, may_fail: bool = False) -> None:
    """Waits until `more` further requests were answered; not in vain, where one failed that may not."""
    enough = load.outcome.num_good + more
    wait_until(
        lambda: load.outcome.num_good >= enough or bool(load.outcome.failures and not may_fail),
        180.0,
        lambda: str(load.outcome),
    )


def test_a_service_that_nobody_calls_goes_to_sleep(installation: Installation) -> None:
    wait_until(is_asleep(installation), ASLEEP_WITHIN_S, installation.diagnosis)

    assert installation.verdict("Ready")["reason"] == "ScaledToZero"


def test_a_burst_wakes_it_at_once_and_every_request_of_the_burst_is_answered(
    installation: Installation, url: str
) -> None:
    began = time.monotonic()
    with Load(url, MODEL, num_clients=MANY) as load:
        wait_until(lambda: replicas(installation) > 0, 60.0, installation.diagnosis)
        woken_s = time.monotonic() - began
        wait_until(lambda: installation.num_worker_pods() > 0, 60.0, installation.diagnosis)
        pod_s = time.monotonic() - began
        answered(load, 1)
        first_s = time.monotonic() - began
        answered(load, MANY)

    print(
        f"\nasked for {woken_s:.1f} s, pod there {pod_s:.1f} s, first answer {first_s:.1f} s after the first request;"
        f" {load.outcome.num_good} answered"
    )
    load.outcome.check(min_good=MANY + 1)


def test_ten_times_the_load_grows_to_the_maximum_in_two_decisions(installation: Installation, url: str) -> None:
    with Load(url, MODEL, num_clients=FEW) as few:
        answered(few, 2)
        with Load(url, MODEL, num_clients=MANY) as many:
            took_s = wait_until(has_grown(installation), GROWN_WITHIN_S, installation.diagnosis)
            answered(many, STEADY_REQUESTS)
        answered(few, 1)

    ups = [entry["replicas"] for entry in history(installation)]
    print(f"\n{MAX_REPLICAS} ready after {took_s:.1f} s; history, newest first: {history(installation)}")
    few.outcome.check(min_good=3)
    many.outcome.check(min_good=STEADY_REQUESTS)
    assert ups[0] == MAX_REPLICAS
    assert len(many.outcome.workers) == MAX_REPLICAS


@pytest.mark.parametrize(
    "selector",
    ["app.kubernetes.io/component=operator", "app.kubernetes.io/component=router", f"quire.dev/service={MODEL}"],
    ids=["operator", "routers", "workers"],
)
def test_a_part_is_killed_under_load_and_the_replicas_are_right_again_within_a_minute(
    installation: Installation, url: str, selector: str
) -> None:
    seen: set[int] = set()
    is_operator, is_router = selector.endswith("operator"), selector.endswith("router")

    def has_recovered() -> bool:
        seen.add(replicas(installation))
        return has_grown(installation)() and (not is_operator or leader(installation) not in ("", victim))

    with Load(url, MODEL, num_clients=MANY) as load:
        wait_until(has_grown(installation), GROWN_WITHIN_S, installation.diagnosis)
        # Of two operators, the one that only waits would be missed by nobody.
        victim = leader(installation) if is_operator else pods(installation, selector)[0]
        assert victim, "nobody holds the operator's Lease"
        killed_s = time.monotonic()
        installation.namespaced("delete", "pod", victim, "--grace-period=0", "--force")
        wait_until(has_recovered, 60.0, installation.diagnosis)
        took_s = time.monotonic() - killed_s
        answered(load, 2 * STEADY_REQUESTS, may_fail=is_router)
        has_recovered()

    print(
        f"\n{victim} killed; right again after {took_s:.1f} s; {load.outcome.num_good} answered, {load.outcome.broken}"
    )
    assert seen == {MAX_REPLICAS}
    if not is_router:  # a router that is killed breaks its own connections
        load.outcome.check(min_good=2 * STEADY_REQUESTS)
    assert load.outcome.num_good >= 2 * STEADY_REQUESTS


def test_without_load_it_sleeps_again_and_the_last_streams_are_not_cut(installation: Installation, url: str) -> None:
    with Load(url, MODEL, num_clients=FEW, max_tokens=512) as load:
        answered(load, 2)
    load.outcome.check(min_good=2)

    took_s = wait_until(is_asleep(installation), ASLEEP_WITHIN_S, installation.diagnosis)

    print(f"\nasleep {took_s:.1f} s after the last request; history, newest first: {history(installation)}")
    assert history(installation)[0]["replicas"] == 0


def test_an_operator_that_comes_anew_leaves_a_sleeping_service_asleep_and_wakes_it(
    installation: Installation, url: str, tmp_path: Path
) -> None:
    installation.namespaced("rollout", "restart", f"deployment/{installation.release}-operator")
    installation.namespaced("rollout", "status", f"deployment/{installation.release}-operator", "--timeout=120s")
    assert replicas(installation) == 0

    with Load(url, MODEL, num_clients=FEW) as load:
        answered(load, 2)

    load.outcome.check(min_good=2)
