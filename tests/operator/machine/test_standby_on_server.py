"""Standby and starts on a real API server, with a real worker behind the pod's address: the test is the kubelet."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from quire_contract import names
from quire_contract.kube import resources
from quire_contract.startup_report import decode_startup
from quire_operator.pod_state import ANNOTATION_STANDBY, STANDBY_WOKEN
from quire_operator.timestamps import format_time
from tests.operator.machine.scaling_world import some_address

DEMO = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
SERVICE = resources.INFERENCE_SERVICE
SCALING = {"minReplicas": 0, "maxReplicas": 3, "standby": {"replicas": 1}}
GOES_ON = 20
"""Events more than could be on their way from a stream that has been cut."""


@pytest.fixture
def worker_process(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A worker with a fake engine, at an address of its own: the port is the pods', and an engine outlives its worker a little."""
    address = some_address()
    command = [sys.executable, "-m", "quire_worker", "--fake", "--model", str(DEMO), "--served-model-name", "demo"]
    command += ["--fake-decode-s-per-step", "0.05"]
    with (tmp_path / "worker.log").open("w") as log:
        process = subprocess.Popen([*command, "--host", address, "--port", str(names.PORT_HTTP)], stderr=log)
    yield address, process
    process.kill()
    process.wait()


@pytest.fixture
def worker(worker_process: tuple[str, subprocess.Popen[bytes]]) -> str:
    """The worker's address."""
    return worker_process[0]


async def startup_of(address: str) -> Any:
    url = f"http://{address}:{names.PORT_HTTP}{names.PATH_STARTUP}"
    async with aiohttp.ClientSession() as session:
        try:
            async with session.get(url) as answer:
                return decode_startup(await answer.read())
        except aiohttp.ClientError:
            return None


async def pod_of(cluster: Any) -> Any:
    items, _ = await cluster.client.list(resources.POD, cluster.namespace)
    return items[0] if items else None


async def report(cluster: Any, pod: Any, address: str, *, ready: bool) -> None:
    """What a kubelet says of the pod."""
    times = {"lastTransitionTime": pod["metadata"]["creationTimestamp"]}
    now = format_time(datetime.now(UTC))
    status = {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": "PodScheduled", "status": "True", **times},
            {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": now},
        ],
        "containerStatuses": [
            {
                "name": "worker",
                "image": "x",
                "imageID": "x",
                "ready": ready,
                "restartCount": 0,
                "state": {"running": {"startedAt": pod["metadata"]["creationTimestamp"]}},
            }
        ],
    }
    name = pod["metadata"]["name"]
    await cluster.client.merge_patch(resources.POD, cluster.namespace, name, {"status": status}, subresource="status")


async def test_a_standby_sleeps_at_zero_and_is_woken_in_place_of_a_new_pod(cluster: Any, worker: str) -> None:
    async def status() -> Any:
        return ((await cluster.get(SERVICE, "demo")) or {}).get("status") or {}

    async def is_up() -> bool:
        told = await startup_of(worker)
        return told is not None and told.phase == "ready"

    async def is_asleep() -> bool:
        told = await startup_of(worker)
        return told is not None and told.sleep == "asleep"

    async def is_awake() -> bool:
        told = await startup_of(worker)
        return told is not None and told.sleep == "awake" and told.num_wakes == 1

    async def counts_standby() -> bool:
        return (await status()).get("scaling", {}).get("standby") == 1

    async def is_told() -> Any:
        start = (await status()).get("lastStart")
        return start if start and start["kind"] == "Standby" else None

    async with cluster.operator():
        await cluster.service(replicas=0, scaling=SCALING)
        pod = await cluster.until(lambda: pod_of(cluster))
        await cluster.until(is_up)
        await report(cluster, pod, worker, ready=True)
        await cluster.until(is_asleep)
        await report(cluster, pod, worker, ready=False)
        await cluster.until(counts_standby)
        at_zero = await status()

        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", {"spec": {"replicas": 1}})
        await cluster.until(is_awake)
        await report(cluster, pod, worker, ready=True)
        start = await cluster.until(is_told)
        pods, _ = await cluster.client.list(resources.POD, cluster.namespace)

    assert (at_zero["replicas"], at_zero["readyReplicas"]) == (0, 0)
    assert [one["metadata"]["name"] for one in pods] == [pod["metadata"]["name"]]
    assert start["pod"] == pod["metadata"]["name"]
    assert [phase["name"] for phase in start["phases"]] == ["Engine"]


async def test_a_sleeper_that_does_not_wake_is_replaced_by_a_fresh_pod(
    cluster: Any, worker_process: tuple[str, subprocess.Popen[bytes]]
) -> None:
    address, process = worker_process
    ahead = timedelta()

    async def is_up() -> bool:
        told = await startup_of(address)
        return told is not None and told.phase == "ready"

    async def is_asleep() -> bool:
        told = await startup_of(address)
        return told is not None and told.sleep == "asleep"

    async def is_another() -> Any:
        nonlocal ahead
        ahead += timedelta(seconds=0.25)  # the operator's clock runs faster than ours
        found = await pod_of(cluster)
        return found if found and found["metadata"]["uid"] != pod["metadata"]["uid"] else None

    async with cluster.operator(now=lambda: datetime.now(UTC) + ahead):
        await cluster.service(replicas=0, scaling=SCALING)
        pod = await cluster.until(lambda: pod_of(cluster))
        await cluster.until(is_up)
        await report(cluster, pod, address, ready=True)
        await cluster.until(is_asleep)
        await report(cluster, pod, address, ready=False)
        process.kill()
        process.wait()

        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", {"spec": {"replicas": 1}})
        fresh = await cluster.until(is_another)
        pods, _ = await cluster.client.list(resources.POD, cluster.namespace)
        events, _ = await cluster.client.list(resources.EVENT, cluster.namespace)

    told = [event["message"] for event in events if event["reason"] == "PodReplaced"]
    assert [one["metadata"]["uid"] for one in pods] == [fresh["metadata"]["uid"]]
    assert ANNOTATION_STANDBY not in (fresh["metadata"].get("annotations") or {})
    assert told[0].startswith(
        f"a fresh pod takes the place of {pod['metadata']['name']}: it sleeps and does not wake, told"
    )


async def test_a_worker_that_sleeps_is_left_alone_until_its_kubelet_has_noticed(
    cluster: Any, worker: str, counter: Any
) -> None:
    async def is_asleep() -> bool:
        told = await startup_of(worker)
        return told is not None and told.sleep == "asleep"

    async def is_up() -> bool:
        return (await startup_of(worker)) is not None

    async with cluster.operator(counter):
        await cluster.service(replicas=0, scaling=SCALING)
        pod = await cluster.until(lambda: pod_of(cluster))
        await cluster.until(is_up)
        await report(cluster, pod, worker, ready=True)
        await cluster.until(is_asleep)

        await cluster.settled()

    assert [(method, kind) for method, kind, _ in counter.writes if kind == "Pod"] == [("PATCH", "Pod")]


async def test_a_wake_ends_a_sleep_that_waits_and_the_request_inside_goes_on(cluster: Any, worker: str) -> None:
    body = {"model": "demo", "prompt": "x", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    url = f"http://{worker}:{names.PORT_HTTP}{names.PATH_COMPLETIONS}"

    async def is_up() -> bool:
        found = await startup_of(worker)
        return found is not None and found.phase == "ready"

    async def read() -> int:
        """Counts the events of a stream that outlasts the test, however slow that is; its status."""
        nonlocal num_events
        async with session.post(url, json=body) as answer:
            async for line in answer.content:
                num_events += line.startswith(b"data: {")
            return answer.status

    async def has_come(number: int) -> bool:
        assert not reading.done(), await reading
        return num_events >= number

    async def is_falling_asleep() -> bool:
        told = await startup_of(worker)
        return told is not None and told.sleep == "falling_asleep"

    async def is_marked() -> bool:
        marks = (await pod_of(cluster))["metadata"].get("annotations") or {}
        return marks.get(ANNOTATION_STANDBY, "").startswith(STANDBY_WOKEN)

    num_events = 0
    async with cluster.operator(), aiohttp.ClientSession() as session:
        await cluster.service(replicas=0, scaling=SCALING)
        pod = await cluster.until(lambda: pod_of(cluster))
        await cluster.until(is_up)
        reading = asyncio.create_task(read())
        await cluster.until(lambda: has_come(1))
        await report(cluster, pod, worker, ready=True)
        await cluster.until(is_falling_asleep)
        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", {"spec": {"replicas": 1}})
        await cluster.until(is_marked)
        told, seen = await startup_of(worker), num_events
        await cluster.until(lambda: has_come(seen + GOES_ON))
        reading.cancel()
        await asyncio.wait([reading])

    assert (told.sleep, told.num_wakes) == ("awake", 0)


async def test_a_start_is_told_with_the_workers_own_phases(cluster: Any, worker: str) -> None:
    async def told() -> Any:
        start = (((await cluster.get(SERVICE, "demo")) or {}).get("status") or {}).get("lastStart")
        return start if start and any(phase["name"] == "Engine" for phase in start["phases"]) else None

    async with cluster.operator():
        await cluster.service(replicas=1)
        pod = await cluster.until(lambda: pod_of(cluster))

        async def is_up() -> bool:
            found = await startup_of(worker)
            return found is not None and found.phase == "ready"

        await cluster.until(is_up)
        await report(cluster, pod, worker, ready=True)
        start = await cluster.until(told)

    assert (start["pod"], start["kind"]) == (pod["metadata"]["name"], "Warm")
    assert [phase["name"] for phase in start["phases"]] == ["Schedule", "Image", "Process", "Weights", "Engine"]
