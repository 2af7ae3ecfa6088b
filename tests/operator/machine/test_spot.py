"""A node that is about to be lost: its workers drain at once, and others are there before they go."""

import pytest

from quire_contract.kube import resources
from tests.operator.machine.scaling_world import Kubelet, deployed

SERVICE = resources.INFERENCE_SERVICE
TAINT = {"key": "aws-node-termination-handler/spot-itn", "value": "event", "effect": "NoSchedule"}


@pytest.fixture
async def kubelet(cluster):
    kubelet = Kubelet(cluster)
    kubelet.has_nodes = True
    async with kubelet.running():
        yield kubelet


async def all_ready(cluster):
    return (await cluster.condition(SERVICE, "demo", "WorkloadReady")).get("reason") == "AllReady"


async def taint(cluster, node: str, *taints) -> None:
    await cluster.client.merge_patch(resources.NODE, None, node, {"spec": {"taints": list(taints)}})


async def test_worker_on_a_node_that_is_interrupted_drains_and_goes_when_its_replacement_serves(
    cluster, kubelet
) -> None:
    async with cluster.operator():
        await cluster.service(replicas=2)
        await cluster.until(lambda: all_ready(cluster))
        lost, kept = kubelet.workers.values()
        lost.num_requests = 1

        await taint(cluster, lost.pod, TAINT)

        async def is_replaced():
            return lost.is_draining and len(kubelet.workers) == 3

        await cluster.until(is_replaced)
        await cluster.settled()
        assert (await deployed(cluster), kubelet.ended) == ([3], [])
        lost.num_requests = 0

        async def has_gone():
            return kubelet.ended

        await cluster.until(has_gone)
        assert kubelet.ended == [lost.pod]
        assert await deployed(cluster) == [2]
        assert kept.calls == []
        events, _ = await cluster.client.list(resources.EVENT, cluster.namespace)
        (told,) = [event["message"] for event in events if event["reason"] == "ReplicaDoomed"]
        assert told.endswith(f"node {lost.pod} has taint {TAINT['key']}")


async def test_interruption_that_is_taken_back_takes_the_worker_back(cluster, kubelet) -> None:
    async with cluster.operator():
        await cluster.service(replicas=1)
        await cluster.until(lambda: all_ready(cluster))
        (worker,) = kubelet.workers.values()
        worker.num_requests = 1
        kubelet.starts = False  # once its replacement serves, the worker that drains already is the one to go
        await taint(cluster, worker.pod, TAINT)

        async def drains():
            return worker.is_draining

        await cluster.until(drains)
        await taint(cluster, worker.pod)

        async def is_back():
            return not worker.is_draining and await deployed(cluster) == [1]

        await cluster.until(is_back)


async def test_node_that_is_only_cordoned_keeps_its_workers(cluster, kubelet) -> None:
    async with cluster.operator():
        await cluster.service(replicas=1)
        await cluster.until(lambda: all_ready(cluster))
        (worker,) = kubelet.workers.values()

        await cluster.client.merge_patch(resources.NODE, None, worker.pod, {"spec": {"unschedulable": True}})
        await cluster.settled()

        assert (await deployed(cluster), worker.calls) == ([1], [])
