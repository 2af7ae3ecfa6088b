"""Two operator processes: one acts, the other takes over, and nothing is written by both."""

import asyncio
import signal

from quire_contract.kube import resources

LEASE_NAME, SHARD_NAME = "quire-operator", "quire-router-config-0"


async def holder(cluster) -> str:
    lease = await cluster.get(resources.LEASE, LEASE_NAME)
    return ((lease or {}).get("spec") or {}).get("holderIdentity") or ""


async def generations(cluster) -> dict:
    return {key: item["metadata"].get("generation") for key, item in (await cluster.objects()).items()}


async def made(cluster) -> bool:
    return (await cluster.condition(resources.INFERENCE_SERVICE, "demo", "Ready")).get("reason") == "Unschedulable"


async def test_exactly_one_leads_and_the_other_takes_over_when_it_is_killed(cluster, start_operator) -> None:
    operators = {identity: start_operator(identity) for identity in ("first", "second")}
    leader = await cluster.until(lambda: holder(cluster))
    await cluster.service()
    await cluster.until(lambda: made(cluster))
    await cluster.until(lambda: cluster.get(resources.CONFIG_MAP, SHARD_NAME))
    await cluster.settled()
    before = await generations(cluster)

    operators[leader].process.send_signal(signal.SIGKILL)
    other = ({"first", "second"} - {leader}).pop()

    async def is_taken_over():
        return await holder(cluster) == other and "event=watching" in operators[other].log()

    await cluster.until(is_taken_over)
    await cluster.settled()
    assert "became leader" in operators[leader].log()
    assert await generations(cluster) == before
    patch = {"spec": {"replicas": 2}}
    await cluster.client.merge_patch(resources.INFERENCE_SERVICE, cluster.namespace, "demo", patch)

    async def is_scaled():
        items, _ = await cluster.client.list(resources.DEPLOYMENT, cluster.namespace)
        return [item["spec"]["replicas"] for item in items] == [2]

    await cluster.until(is_scaled)


async def test_told_to_stop_it_gives_the_lease_back_so_that_the_next_begins_at_once(cluster, start_operator) -> None:
    first = start_operator("first")
    await cluster.until(lambda: holder(cluster))
    second = start_operator("second")

    first.process.terminate()
    assert await asyncio.to_thread(first.process.wait, 60) == 0
    # Given back: nobody has to wait until it has run out.
    assert await holder(cluster) in ("", "second")

    async def is_taken_over():
        return await holder(cluster) == "second"

    await cluster.until(is_taken_over)
    second.process.terminate()
    assert await asyncio.to_thread(second.process.wait, 60) == 0


async def test_an_operator_whose_lease_was_taken_exits_at_once(cluster, start_operator) -> None:
    operator = start_operator("first")
    await cluster.until(lambda: holder(cluster))
    lease = await cluster.get(resources.LEASE, LEASE_NAME)
    lease["spec"]["holderIdentity"] = "somebody-else"
    lease["metadata"].pop("resourceVersion")

    await cluster.client.merge_patch(resources.LEASE, cluster.namespace, LEASE_NAME, {"spec": lease["spec"]})

    assert await asyncio.to_thread(operator.process.wait, 60) == 1
    assert "leadership lost" in operator.log()
