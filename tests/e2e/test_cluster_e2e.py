"""Quire on a real node, from `helm install` to `helm uninstall`; `make e2e` builds the images, starts the node and runs this.

One story in order: every test goes on from where the one before it ended, so the first failure ends it (`pytest -x`).
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.installation import (
    MODEL,
    NAMESPACE,
    NEXT_IMAGE,
    RELEASE,
    REPOSITORY,
    Installation,
    fixture_chart,
    machine_installation,
    wait_until,
)
from cluster.load import Load

pytestmark = [
    pytest.mark.skipif(os.environ.get("QUIRE_E2E") != "1", reason="needs images and a node: make e2e"),
    pytest.mark.timeout(900),
]

ANSWER_WITHIN_S = 180.0
ROLLOUT_WITHIN_S = 300.0
SETTLE_REQUESTS = 6
QUICKSTART = REPOSITORY / "examples" / "quickstart.yaml"
CHART = REPOSITORY / "charts" / "quire"


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A client of the machine's cluster, from which an earlier run's rest is removed; says what was wrong at a failure."""
    found = machine_installation(tmp_path_factory.mktemp("installation"))
    yield found
    if request.session.testsfailed:
        print(found.diagnosis())


@pytest.fixture(scope="module")
def objects_before(installation: Installation) -> set[str]:
    """Objects without a namespace that were there before the chart quire was installed."""
    installation.install_definitions()
    return installation.cluster_objects()


@pytest.fixture
def url(installation: Installation) -> str:
    """Where clients send requests."""
    return installation.router_url()


def wait_for_requests(load: Load, more: int = SETTLE_REQUESTS) -> None:
    """Waits until `more` further requests were answered, so that traffic surrounds what the test does."""
    outcome = load.outcome
    enough = outcome.num_good + more

    def answered() -> bool:
        return outcome.num_good >= enough or bool(outcome.failures or outcome.broken)

    wait_until(answered, 120.0, lambda: f"{more} more requests; {outcome}")


def test_the_chart_installs_its_operator_and_routers(installation: Installation, objects_before: set[str]) -> None:
    assert "CustomResourceDefinition/inferenceservices.quire.dev" in objects_before

    installation.install(CHART)

    pods = installation.get("pods")["items"]
    assert len(pods) == 4, [pod["metadata"]["name"] for pod in pods]


def test_the_demo_model_answers_through_the_routers_service(installation: Installation, url: str) -> None:
    applied = time.monotonic()
    installation.namespaced("apply", "-f", QUICKSTART)

    wait_until(lambda: installation.ask(url) is not None, ANSWER_WITHIN_S, installation.diagnosis)
    took_s = time.monotonic() - applied

    print(f"\nthe demo model answered {took_s:.1f} s after kubectl apply: {installation.ask(url)!r}")
    assert took_s < ANSWER_WITHIN_S
    wait_until(lambda: installation.condition("Ready") == "True", 120.0, installation.diagnosis)


def test_kubectl_scale_adds_and_removes_workers(installation: Installation, url: str) -> None:
    installation.namespaced("scale", "inferenceservices.quire.dev", MODEL, "--replicas=3")
    wait_until(lambda: len(installation.ready_workers()) == 3, ROLLOUT_WITHIN_S, installation.diagnosis)
    wait_until(lambda: installation.service_status().get("replicas") == 3, 30.0, installation.diagnosis)

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        installation.namespaced("scale", "inferenceservices.quire.dev", MODEL, "--replicas=2")
        wait_until(lambda: installation.num_worker_pods() == 2, ROLLOUT_WITHIN_S, installation.diagnosis)
        wait_for_requests(load)

    load.outcome.check(min_good=2 * SETTLE_REQUESTS)
    assert installation.service_status()["replicas"] == 2


def test_an_image_change_under_load_fails_no_request(installation: Installation, url: str) -> None:
    before = installation.worker_uids()
    change = f'{{"spec": {{"engine": {{"image": "{NEXT_IMAGE}"}}}}}}'

    def changed() -> bool:
        ready = installation.ready_workers()
        images = {pod["spec"]["containers"][0]["image"] for pod in ready.values()}
        return len(ready) == 2 and images == {NEXT_IMAGE} and installation.num_worker_pods() == 2

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        installation.namespaced("patch", "inferenceservices.quire.dev", MODEL, "--type=merge", "-p", change)
        took_s = wait_until(changed, ROLLOUT_WITHIN_S, installation.diagnosis)
        wait_for_requests(load)

    print(
        f"\nnew image everywhere after {took_s:.1f} s; {load.outcome.num_good} requests, workers {load.outcome.workers}"
    )
    load.outcome.check(min_good=2 * SETTLE_REQUESTS)
    assert not before & installation.worker_uids()


def test_a_deleted_worker_pod_breaks_no_stream(installation: Installation, url: str) -> None:
    victim = sorted(installation.ready_workers())[0]

    # Each stream takes less than the quickstart's drainTimeoutSeconds: longer ones end with an error until routers resume them.
    with Load(url, MODEL) as load:
        wait_until(lambda: load.outcome.streaming[victim] > 0, 120.0, f"a stream from {victim}")
        installation.namespaced("delete", "pod", victim, "--wait=false")
        wait_until(lambda: victim not in installation.ready_workers(), 60.0, installation.diagnosis)
        wait_until(lambda: len(installation.ready_workers()) == 2, ROLLOUT_WITHIN_S, installation.diagnosis)
        wait_for_requests(load)

    print(f"\n{load.outcome.num_good} requests, {load.outcome.num_streamed} of them streams")
    load.outcome.check(min_good=SETTLE_REQUESTS)


def test_an_upgrade_under_load_restarts_no_worker(installation: Installation, url: str, tmp_path: Path) -> None:
    workers = installation.worker_uids()
    generations = [installation.get("deployment", f"{RELEASE}-router")["metadata"]["generation"]]

    with Load(url, MODEL) as load:
        wait_for_requests(load)
        for chart in (fixture_chart(tmp_path), CHART):
            installation.install(chart)
            generations.append(installation.get("deployment", f"{RELEASE}-router")["metadata"]["generation"])
            wait_for_requests(load, more=3 * SETTLE_REQUESTS)

    print(f"\n{load.outcome.num_good} requests during two upgrades")
    load.outcome.check(min_good=7 * SETTLE_REQUESTS)
    assert generations == sorted(set(generations)), "the fixture chart renders the routers as the chart does"
    assert installation.worker_uids() == workers


def test_uninstalling_keeps_the_services_and_the_trust_secret_only(
    installation: Installation, objects_before: set[str]
) -> None:
    workers = installation.worker_uids()

    installation.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")

    kept = {f"InferenceService/{MODEL}", "Secret/quire-trust"}
    wait_until(lambda: installation.left() == kept, 120.0, lambda: f"left: {installation.left() ^ kept}")
    # Namespaces are never a release's; the client made this one.
    assert installation.cluster_objects() - objects_before <= {f"Namespace/{NAMESPACE}"}
    assert installation.worker_uids() == workers


def test_a_service_is_deleted_with_all_of_its_objects_though_no_operator_runs(installation: Installation) -> None:
    installation.namespaced("delete", "inferenceservices.quire.dev", MODEL)

    wait_until(lambda: installation.num_worker_pods() == 0, 120.0, installation.diagnosis)
    wait_until(lambda: installation.left() == {"Secret/quire-trust"}, 60.0, lambda: str(installation.left()))
