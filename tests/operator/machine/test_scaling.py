"""The operator scales services by what routers say, on a real API server: from zero, up, and back."""

import asyncio
import time

from quire_contract.kube import resources
from tests.operator.machine.scaling_world import Kubelet, Router, deployed, scaling_status

SERVICE = resources.INFERENCE_SERVICE
FAST = {
    "minReplicas": 0,
    "maxReplicas": 5,
    "demandPerReplica": 2,
    "pollingIntervalSeconds": 1,
    "cooldownSeconds": 2,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
}


def is_(expected, what, *arguments):
    async def check():
        return await what(*arguments) == expected

    return check


async def test_burst_to_a_service_at_zero_wakes_it_and_grows_to_what_is_asked(cluster, counter) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running(), cluster.operator(counter):
        await cluster.service(replicas=0, scaling=FAST)
        await cluster.until(is_([0], deployed, cluster))
        began_s = time.monotonic()

        router.ask(held=9)

        async def w():
            return (await deployed(cluster))[0]

        await cluster.until(w)
        print("woken after", time.monotonic() - began_s)
        await cluster.until(is_([5], deployed, cluster))
        scaled = [entry for entry in counter.writes if entry[0] == "PUT" and entry[1] == "InferenceService"]
        print(scaled, time.monotonic() - began_s)

        router.ask(running=9)
        print(await scaling_status(cluster), await cluster.condition(SERVICE, "demo", "ScalingReady"))
        await asyncio.sleep(3)
        print(await scaling_status(cluster), await cluster.condition(SERVICE, "demo", "ScalingReady"))
        n = len(counter.writes)
        await asyncio.sleep(5)
        print("writes at rest", counter.writes[n:])
        router.ask()
        await cluster.until(is_([0], deployed, cluster))
        print(await scaling_status(cluster), await cluster.condition(SERVICE, "demo", "ScalingReady"))
