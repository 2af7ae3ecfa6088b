"""Troubles of real pods on a real node: each shows in the Ready condition, with its fix, within half a minute of when it can be seen.

Then the cause is removed, and nothing else is touched. Also: a model that is really fetched, and `helm test`. `make e2e` runs this.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster.cache import cache_folder
from cluster.installation import IMAGE_TAG, REPOSITORY, Installation, machine_installation, wait_until
from cluster.machine import MachineCluster
from cluster.model_site import ModelSite
from cluster.node import GATEWAY
from cluster.processes import free_ports
from cluster.signs import (
    IN_THE_IMAGE,
    Manifest,
    Sign,
    creates_no_pods,
    ended_with,
    is_unschedulable,
    runs,
    small_service,
    token_secret,
    waits_for,
)
from cluster.tools import CommandError

pytestmark = [
    pytest.mark.skipif(os.environ.get("QUIRE_E2E") != "1", reason="needs images and a node: make e2e"),
    pytest.mark.timeout(900),
]

NAMESPACE = "quire-troubles"
CHART = REPOSITORY / "charts" / "quire"
DEMO = REPOSITORY / "examples" / "models" / "quire-demo"
WEIGHTS = "model.safetensors"
TOLD_WITHIN_S = 30.0
SEEN_WITHIN_S = 120.0
RECOVERED_WITHIN_S = 180.0
POD_USER = 65532
NODE_LABEL = "quire.dev/e2e-trouble"
SLOW_BYTES_PER_S = 350_000
"""The demo model then takes some 25 s, in which its progress is read several times."""


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """The chart in a namespace of its own, which goes at the end, but after a failure."""
    found = machine_installation(tmp_path_factory.mktemp("installation"), namespace=NAMESPACE)
    found.install_definitions()
    found.install(CHART)
    yield found
    if request.session.testsfailed:
        print(found.diagnosis())
    else:
        found.remove_rest()


@pytest.fixture
def site() -> Iterator[ModelSite]:
    """A web server that pods reach, with the demo model below /demo."""
    with ModelSite(GATEWAY, {"/demo": DEMO}) as started:
        yield started


@pytest.fixture
def serve(request: pytest.FixtureRequest, installation: Installation) -> Iterator[Callable[..., Installation]]:
    """serve(name, uri, **further fields of spec) makes an InferenceService; it is deleted after the test."""
    made: list[Installation] = []

    def make(name: str, uri: str = IN_THE_IMAGE, **spec: Any) -> Installation:
        service = installation.about(name)
        made.append(service)
        service.apply(small_service(name, uri, **spec))
        return service

    yield make
    for service in made:
        if request.session.testsfailed:
            print(service.diagnosis())
        service.namespaced("delete", "inferenceservices.quire.dev", service.model)


def seen(service: Installation, sign: Sign) -> Callable[[], bool]:
    """Whether a pod of the service shows the sign."""
    return lambda: any(sign(pod) for pod in service.workers().values())


def check_told(service: Installation, reason: str, is_seen: Callable[[], bool], *parts: str) -> str:
    """The message of Ready=False, which must come with its reason within TOLD_WITHIN_S of the trouble's being seen."""
    applied = time.monotonic()
    wait_until(is_seen, SEEN_WITHIN_S, service.diagnosis)
    appeared_s = time.monotonic() - applied

    def is_told() -> bool:
        ready = service.verdict("Ready")
        return (ready.get("status"), ready.get("reason")) == ("False", reason)

    took_s = wait_until(is_told, TOLD_WITHIN_S, lambda: f"{service.verdict('Ready')}\n{service.diagnosis()}")
    message = service.verdict("Ready")["message"]
    print(f"\n{reason}: seen {appeared_s:.1f} s after apply, told {took_s:.1f} s later: {message}")
    missing = [part for part in parts if part not in message]
    assert not missing, f"{missing} not in: {message}"
    return message


def check_recovered(service: Installation) -> None:
    """Ready becomes True by itself, all is well, and the model answers."""
    took_s = wait_until(lambda: service.condition("Ready") == "True", RECOVERED_WITHIN_S, service.diagnosis)
    url = service.router_url()
    wait_until(lambda: service.ask(url) is not None, RECOVERED_WITHIN_S, service.diagnosis)
    print(f"ready {took_s:.1f} s after the cause was gone")
    wait_until(lambda: service.verdict("Ready")["reason"] == "Serving", TOLD_WITHIN_S, service.diagnosis)


def test_a_quota_that_is_exceeded_says_so_until_it_is_raised(
    installation: Installation, serve: Callable[..., Installation]
) -> None:
    # The first test: pods of others that are still terminating would count.
    num_pods = len(installation.get("pods")["items"])
    installation.namespaced("create", "quota", "tight", f"--hard=pods={num_pods}")

    def is_counted() -> bool:
        return "used" in installation.get("resourcequota", "tight").get("status", {})

    try:
        wait_until(is_counted, SEEN_WITHIN_S, "the quota counts")
        service = serve("excessive")

        def is_refused() -> bool:
            return any(
                map(creates_no_pods, installation.get("replicasets", "-l", "quire.dev/service=excessive")["items"])
            )

        check_told(service, "QuotaExceeded", is_refused, "exceeded quota: tight", "raise the namespace's ResourceQuota")

        installation.patch("resourcequota/tight", {"spec": {"hard": {"pods": str(num_pods + 5)}}})
        check_recovered(service)
    finally:
        installation.namespaced("delete", "resourcequota", "tight")


def test_a_pod_that_fits_on_no_node_says_so_until_a_node_has_the_label(
    installation: Installation, serve: Callable[..., Installation]
) -> None:
    (node,) = [item["metadata"]["name"] for item in installation.kubectl.json("get", "nodes")["items"]]
    service = serve("misplaced", placement={"nodeSelector": {NODE_LABEL: "here"}})

    check_told(
        service, "Unschedulable", seen(service, is_unschedulable), "fits on no node", "spec.placement.nodeSelector"
    )

    try:
        installation.kubectl("label", "node", node, f"{NODE_LABEL}=here", "--overwrite")
        check_recovered(service)
    finally:
        installation.kubectl("label", "node", node, f"{NODE_LABEL}-")


def test_too_little_cpu_on_all_nodes_names_the_request_to_lower(serve: Callable[..., Installation]) -> None:
    service = serve("greedy", resources={"requests": {"cpu": "900", "memory": "128Mi"}})

    check_told(
        service, "Unschedulable", seen(service, is_unschedulable), "lower spec.resources.requests.cpu or add nodes"
    )

    service.patch("infsvc/greedy", {"spec": {"resources": {"requests": {"cpu": "100m"}}}})
    check_recovered(service)


def test_an_image_that_is_not_there_says_so_until_the_spec_names_one_that_is(
    serve: Callable[..., Installation],
) -> None:
    image = "localhost/quire-worker:no-such-tag"
    service = serve("typo", engine={"image": image})

    is_seen = seen(service, waits_for("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull"))
    check_told(service, "ImagePullBackOff", is_seen, f"image '{image}' cannot be pulled", "check spec.engine.image")
    # The kubelet goes from one reason to the other; the condition does not.
    wait_until(seen(service, waits_for("ImagePullBackOff")), SEEN_WITHIN_S, service.diagnosis)
    assert service.verdict("Ready")["reason"] == "ImagePullBackOff"

    service.patch("infsvc/typo", {"spec": {"engine": {"image": f"localhost/quire-worker:{IMAGE_TAG}"}}})
    check_recovered(service)


def test_a_worker_that_the_kernel_kills_for_memory_says_so_until_its_limit_is_raised(
    serve: Callable[..., Installation],
) -> None:
    service = serve("cramped", resources={"limits": {"memory": "128Mi"}})

    is_seen = seen(service, ended_with("OOMKilled", "worker"))
    message = check_told(service, "OOMKilled", is_seen, "killed for using too much memory", "its limit is 128Mi")
    assert "raise spec.resources.limits.memory" in message

    service.patch("infsvc/cramped", {"spec": {"resources": {"limits": {"memory": "768Mi"}}}})
    check_recovered(service)


def test_a_refused_credential_says_so_until_the_secret_has_the_right_one(
    installation: Installation, site: ModelSite, serve: Callable[..., Installation]
) -> None:
    site.token = "the-right-token"
    installation.apply(token_secret("hub", "a-wrong-token"))
    service = serve("locked", f"{site.url}/demo", model={"uri": f"{site.url}/demo", "secretRef": {"name": "hub"}})

    is_seen = seen(service, ended_with("Error", "fetch"))
    fix = "put valid credentials into the Secret that spec.model.secretRef names"
    message = check_told(service, "ModelSourceUnauthorized", is_seen, f"{site.url}/demo/", "HTTP 401", fix)
    log = service.namespaced("logs", "-l", "quire.dev/service=locked", "-c", "fetch", "--tail=-1")
    assert "a-wrong-token" not in message + log
    assert service.verdict("ModelReady")["reason"] == "ModelSourceUnauthorized"

    installation.apply(token_secret("hub", "the-right-token"))
    check_recovered(service)
    assert service.verdict("ModelReady")["status"] == "True"


def test_a_model_that_is_not_at_its_source_says_so_until_it_is_there(
    site: ModelSite, serve: Callable[..., Installation]
) -> None:
    service = serve("absent", f"{site.url}/later")

    is_seen = seen(service, ended_with("Error", "fetch"))
    check_told(service, "ModelSourceNotFound", is_seen, f"{site.url}/later", "config.json", "correct spec.model.uri")

    site.folders["/later"] = DEMO
    check_recovered(service)


def test_a_source_that_does_not_answer_is_told_while_it_is_tried_again(serve: Callable[..., Installation]) -> None:
    (port,) = free_ports(1, GATEWAY)
    service = serve("unheard", f"http://{GATEWAY}:{port}/demo")

    is_seen = seen(service, runs("fetch"))
    check_told(service, "ModelSourceUnreachable", is_seen, f"Cannot connect to host {GATEWAY}:{port}", "check DNS")

    with ModelSite(GATEWAY, {"/demo": DEMO}, port):
        check_recovered(service)


def test_a_models_progress_shows_while_it_is_fetched_and_then_it_answers(
    installation: Installation, site: ModelSite, serve: Callable[..., Installation]
) -> None:
    site.bytes_per_s = SLOW_BYTES_PER_S
    service = serve("distant", f"{site.url}/demo")
    told: list[tuple[int, int, str]] = []

    def is_ready() -> bool:
        status = service.service_status()
        fetch, conditions = status.get("fetch") or {}, {entry["type"]: entry for entry in status.get("conditions", ())}
        if fetch.get("phase") == "downloading":
            told.append((fetch["doneBytes"], fetch.get("totalBytes", 0), conditions["Ready"]["message"]))
        return bool(conditions) and conditions["Ready"]["status"] == "True"

    took_s = wait_until(is_ready, RECOVERED_WITHIN_S, service.diagnosis)
    done = sorted({entry[0] for entry in told})
    print(f"\nready after {took_s:.1f} s; told {done} of {told[-1][1]} bytes; {told[-1][2]}")
    size = sum(file.stat().st_size for file in DEMO.iterdir())
    assert {entry[1] for entry in told} == {size}
    assert len(done) >= 3
    assert 0 < done[-2] < size
    assert f"of {size / 1e6:.1f} MB" in told[-1][2]
    assert "%)" in told[-1][2]
    answer = None

    def is_answered() -> bool:
        nonlocal answer
        answer = service.ask(service.router_url())
        return answer is not None

    wait_until(is_answered, RECOVERED_WITHIN_S, service.diagnosis)
    assert "42" in str(answer)
    assert "fetch" not in service.service_status()


def fetching_pod(service: Installation, site: ModelSite) -> Manifest:
    """The service's one pod, once its fetcher has a quarter of the weights; waits for it."""
    enough = (DEMO / WEIGHTS).stat().st_size // 4

    def is_under_way() -> bool:
        return int((service.service_status().get("fetch") or {}).get("doneBytes", 0)) >= enough

    wait_until(is_under_way, SEEN_WITHIN_S, lambda: f"{site.asked}\n{service.diagnosis()}")
    (pod,) = service.workers().values()
    return pod


def check_resumed(site: ModelSite) -> None:
    """The weights were asked for once from their beginning and once from where they were cut."""
    (resumed,) = site.resumed(WEIGHTS)
    size = (DEMO / WEIGHTS).stat().st_size
    print(f"\nresumed at byte {resumed.first_byte} of {size}")
    assert resumed.first_byte >= size // 4
    assert resumed.first_byte + resumed.num_bytes == size


def test_a_fetcher_that_is_killed_goes_on_where_it_was(site: ModelSite, serve: Callable[..., Installation]) -> None:
    site.bytes_per_s = SLOW_BYTES_PER_S
    service = serve("struck", f"{site.url}/demo")
    pod = fetching_pod(service, site)
    container = pod["status"]["initContainerStatuses"][0]["containerID"].removeprefix("containerd://")

    MachineCluster(cache_folder() / "cluster").node().ctr("tasks", "kill", "--signal", "KILL", container)
    wait_until(lambda: len(site.resumed(WEIGHTS)) > 0, SEEN_WITHIN_S, service.diagnosis)
    site.bytes_per_s = None
    check_recovered(service)

    check_resumed(site)
    (after,) = service.workers().values()
    assert after["metadata"]["uid"] == pod["metadata"]["uid"]
    assert after["status"]["initContainerStatuses"][0]["restartCount"] == 1


@pytest.fixture
def shared_cache(installation: Installation, tmp_path: Path) -> Iterator[None]:
    """A volume for the model cache's claim, which the chart's pods share while this lasts."""
    folder = tmp_path / "models"
    folder.mkdir()
    os.chown(folder, POD_USER, POD_USER)
    for parent in folder.parents[:3]:
        parent.chmod(0o755)
    name = f"{NAMESPACE}-models"
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteMany"],
        "hostPath": {"path": str(folder)},
        "persistentVolumeReclaimPolicy": "Retain",
        "claimRef": {"namespace": NAMESPACE, "name": "quire-models"},
    }
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
    installation.kubectl("delete", "pv", name, "--ignore-not-found")  # of a run that was killed
    installation.apply(volume)
    installation.install(CHART, "models.cache.kind=PersistentVolumeClaim", "models.cache.size=1Gi")
    yield
    installation.install(CHART)
    installation.namespaced("delete", "pvc", "quire-models", "--ignore-not-found")
    installation.kubectl("delete", "pv", name)


@pytest.mark.usefixtures("shared_cache")
def test_another_pod_goes_on_where_a_deleted_one_was_in_a_shared_cache(
    site: ModelSite, serve: Callable[..., Installation]
) -> None:
    site.bytes_per_s = SLOW_BYTES_PER_S
    service = serve("moved", f"{site.url}/demo")
    pod = fetching_pod(service, site)

    service.namespaced("delete", "pod", pod["metadata"]["name"], "--wait=false")
    wait_until(lambda: len(site.resumed(WEIGHTS)) > 0, SEEN_WITHIN_S, service.diagnosis)
    site.bytes_per_s = None
    check_recovered(service)

    check_resumed(site)
    assert pod["metadata"]["uid"] not in service.worker_uids()


def test_helm_test_passes_and_names_the_models(installation: Installation, serve: Callable[..., Installation]) -> None:
    service = serve("tested")
    check_recovered(service)

    told = installation.helm("test", installation.release, "--namespace", NAMESPACE, "--logs", timeout_s=200.0)

    print(told)
    assert "Phase:          Succeeded" in told
    assert "models: ['tested']" in told
    assert "quire-test" not in {item["metadata"]["name"] for item in installation.get("pods")["items"]}


def test_helm_test_fails_with_the_reason_where_no_router_answers(installation: Installation) -> None:
    installation.namespaced("scale", "deployment", f"{installation.release}-router", "--replicas=0")
    try:
        with pytest.raises(CommandError) as failed:
            installation.helm("test", installation.release, "--namespace", NAMESPACE, "--logs", timeout_s=200.0)
    finally:
        installation.namespaced("scale", "deployment", f"{installation.release}-router", "--replicas=2")

    told = str(failed.value)
    assert "no healthy router at http://quire-router:80" in told
    assert f"kubectl get pods -n {NAMESPACE} -l app.kubernetes.io/component=router" in told
