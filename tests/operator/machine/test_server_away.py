"""The API server goes away and comes back: nothing is lost, and work goes on by itself."""

import asyncio

import pytest

from quire_contract.kube import resources


@pytest.mark.slow
async def test_while_the_server_is_away_the_operator_waits_and_then_goes_on(cluster, control_plane, counter) -> None:
    if not control_plane.can_stop_api_server:
        pytest.skip("this API server is not ours to stop")
    async with cluster.operator(counter, kopf=True) as task:
        await cluster.service()

        async def deployments():
            items, _ = await cluster.client.list(resources.DEPLOYMENT, cluster.namespace)
            return [item["spec"]["replicas"] for item in items]

        await cluster.until(deployments)
        control_plane.stop_api_server()
        try:

            async def has_noticed():
                return sum(status == 0 for _, _, status in counter.requests) >= 30

            await cluster.until(has_noticed)
            assert not task.done()
        finally:
            await asyncio.to_thread(control_plane.start_api_server)
        patch = {"spec": {"replicas": 2}}
        await cluster.client.merge_patch(resources.INFERENCE_SERVICE, cluster.namespace, "demo", patch)

        async def is_scaled():
            return await deployments() == [2]

        await cluster.until(is_scaled)
