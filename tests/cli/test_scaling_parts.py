"""What scaling on one machine is made of: how many workers, on which cores, who leaves first, and what is said of it."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_cli.local.pod import Pod, PodState
from quire_cli.local.pod_plan import PodPlan, Probe
from quire_cli.local.sizes import first_replicas, most_replicas, num_engines, scaling_warnings
from quire_cli.local.worker_set import most_awake, victims
from quire_cli.manifest_files import load_resources
from tests.cli.files import put

HEAD = "apiVersion: quire.dev/v1alpha1\nkind: InferenceService\nmetadata: {name: a}\nspec:\n  model: {uri: file:x}\n"
PROBE = Probe(url="http://127.0.0.1:9/", period_s=1, timeout_s=1, max_failures=1)


class Silent:
    """Hears about changes and does nothing."""

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """Called by the pod."""


@pytest.fixture
async def make_pod(tmp_path: Path) -> AsyncIterator[Callable[[int, PodState], Pod]]:
    """Pods that were never started, in whatever state."""
    async with aiohttp.ClientSession() as http:

        def make(number: int, state: PodState) -> Pod:
            plan = PodPlan(
                name=f"a-{number}", role="worker", service="a", argv=(), environ={}, readiness=PROBE, liveness=PROBE,
                start_timeout_s=1, grace_s=1, endpoint=None,
            )  # fmt: skip
            pod = Pod(plan, log=tmp_path / "log", cwd=tmp_path, http=http, listener=Silent())
            pod.state = state
            return pod

        yield make


def load(tmp_path: Path, spec: str) -> Any:
    """The services of a manifest."""
    file = tmp_path / "a.yaml"
    file.write_text(HEAD + spec)
    return load_resources([file]).services


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("  replicas: 3\n", (3, 3)),
        ("  scaling: {minReplicas: 0, maxReplicas: 4}\n", (0, 4)),
        ("  scaling: {minReplicas: 0, maxReplicas: 1, standby: {replicas: 2}}\n", (0, 2)),
        (
            "  scaling: {maxReplicas: 2, schedules: [{name: day, start: '08:00', end: '18:00', maxReplicas: 6}]}\n",
            (1, 6),
        ),
    ],
)
def test_cores_are_shared_by_all_workers_that_may_run_at_once(
    tmp_path: Path, spec: str, expected: tuple[int, int]
) -> None:
    (item,) = load(tmp_path, spec)

    assert (first_replicas(item.service), most_replicas(item.service)) == expected
    assert num_engines([item.service, item.service]) == 2 * expected[1]


def test_what_one_machine_lacks_for_scaling_is_warned_of_by_field(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "  accelerator: {type: Nvidia}\n  scaling:\n    minReplicas: 0\n    maxReplicas: 4\n    provider: Keda\n    standby: {}\n",
    )

    warnings = [line.replace(f"{tmp_path}/", "") for line in scaling_warnings(loaded, cores=8, num_devices=2)]
    others = scaling_warnings(load(tmp_path, "  scaling: {maxReplicas: 3}\n"), cores=2, num_devices=0)

    assert warnings == [
        "warning: a.yaml:10: spec.scaling.provider: there is no KEDA here; the built-in autoscaler does it, by the same rules",
        "warning: a.yaml:9: spec.scaling.maxReplicas: 4 workers need 4 Nvidia devices, this machine has 2; more wait until one ends",
    ]
    assert [line.partition("maxReplicas: ")[2] for line in others] == [
        "3 workers on 2 cores take turns: more of them do not answer more"
    ]


async def test_those_that_do_not_serve_leave_first_then_the_least_loaded_then_the_newest(
    make_pod: Callable[[int, PodState], Pod],
) -> None:
    states = [PodState.READY, PodState.READY, PodState.STARTING, PodState.READY, PodState.RESTARTING]
    pods = [make_pod(number, state) for number, state in enumerate(states)]

    order = victims(pods, 5, {"a-0": 3, "a-1": 1, "a-2": 9, "a-3": 1})

    assert [pod.plan.name for pod in order] == ["a-4", "a-2", "a-3", "a-1", "a-0"]
    assert victims(pods, -1, {}) == []


async def test_those_that_serve_are_awake_then_those_that_sleep_then_those_that_start(
    make_pod: Callable[[int, PodState], Pod],
) -> None:
    states = [PodState.STARTING, PodState.ASLEEP, PodState.READY, PodState.READY, PodState.RESTARTING]
    pods = [make_pod(number, state) for number, state in enumerate(states)]

    order = most_awake(pods, 5, {"a-3": 2})

    assert [pod.plan.name for pod in order] == ["a-3", "a-2", "a-1", "a-0", "a-4"]
    assert most_awake(pods, 1, {}) == [pods[2]]
    assert most_awake(pods, 0, {}) == []


def test_a_worker_waits_for_a_device_and_gets_the_one_that_another_gives_back(
    quire: Callable[..., Any], manifest: Callable[..., Path], tmp_path: Path
) -> None:
    file = manifest("replicas: 2\naccelerator: {type: Nvidia}")
    command = quire("up", str(file), "--port", "0", CUDA_VISIBLE_DEVICES="4,7")
    command.wait_for(r"ready: (http://\S+)/v1 ")
    text = file.read_text()

    put(file, text.replace("replicas: 2", "replicas: 3"))
    command.wait_for(r"demo: 2 -> 3 workers \(the file says so\); 1 of them wait for Nvidia devices")
    put(file, text.replace("replicas: 2", "replicas: 1"))
    command.wait_for(r"demo: 3 -> 1 worker \(the file says so\)\n")
    command.wait_for(r"demo-worker-\w+-1: stopped")
    put(file, text)
    command.wait_for(r"demo-worker-\w+-1: ready")
    (folder,) = (tmp_path / "tmp").glob("quire-up-*")
    endpoints = json.loads((folder / "router" / "router.json").read_text())["endpoints"]

    assert len(endpoints) == 2
    assert command.output.count("starting (pid") == 4, "a router, two workers, and one that came back"


def test_a_service_at_zero_whose_worker_cannot_start_says_why_and_the_run_goes_on(
    quire: Callable[..., Any], manifest: Callable[..., Path]
) -> None:
    file = manifest("replicas: 0", exit=2, say="model.safetensors: is cut short")
    command = quire("up", str(file), "--port", "0")
    command.wait_for(r"ready: (http://\S+)/v1 \(demo; 0 workers\)")

    put(file, file.read_text().replace("replicas: 0", "replicas: 1"))
    command.wait_for(r"restarting \(exit code 2: model.safetensors: is cut short; starts again in 30 s\)")
    command.process.send_signal(2)

    assert command.end() == 0
