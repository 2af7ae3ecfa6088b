"""Operators that die, servers that are away and a second operator: replicas are right in the end, and nothing goes wrongly."""

import asyncio

import pytest

from quire_contract.kube import resources
from tests.operator.machine.scaling_world import FAST, Kubelet, Router, deployed, replicas_of, scaling_status

SERVICE = resources.INFERENCE_SERVICE
AT_ONCE = 4


async def is_scaled_to(cluster, replicas: int) -> bool:
    return await replicas_of(cluster) == replicas and await deployed(cluster) == [replicas]


async def ready(cluster) -> bool:
    return (await cluster.condition(SERVICE, "demo", "ScalingReady")).get("reason") == "Ready"


async def prepare(cluster, router, replicas: int) -> None:
    """A service at rest with so many replicas."""
    router.ask(running=2 * replicas)
    async with cluster.operator():
        await cluster.service(replicas=replicas, scaling={**FAST, "cooldownSeconds": 600 if replicas else 1})
        await cluster.until(lambda: ready(cluster))
        await cluster.until(lambda: is_scaled_to(cluster, replicas))


async def ended(cluster, task, replicas: int) -> None:
    """The operator has died, or has done its work and writes nothing more."""

    async def is_over() -> bool:
        return task.done() or await is_scaled_to(cluster, replicas)

    await cluster.until(is_over)
    await cluster.settled()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "asked", "after"), [(0, 9, 5), (4, 2, 1)], ids=["up", "down"])
async def test_killed_after_each_write_the_next_operator_brings_the_right_number(
    clusters, killer, before, asked, after
) -> None:
    slots = asyncio.Semaphore(AT_ONCE)
    outcomes: dict[int, tuple[bool, int]] = {}

    async def killed_after(count: int) -> None:
        cluster, crashing = await clusters(), killer(count)
        async with slots, Router(cluster).running() as router, Kubelet(cluster).running():
            await prepare(cluster, router, before)
            async with cluster.operator(crashing) as task:
                router.ask(**({"held": asked} if before == 0 else {"running": asked}))
                await ended(cluster, task, after)
            async with cluster.operator():
                await cluster.until(lambda: is_scaled_to(cluster, after))
                await cluster.settled()
            outcomes[count] = (crashing.is_dead, await replicas_of(cluster))

    async with asyncio.TaskGroup() as group:
        for count in range(1, 7):
            group.create_task(killed_after(count))

    assert {replicas for _, replicas in outcomes.values()} == {after}
    assert sum(died for died, _ in outcomes.values()) >= 4


async def test_restarted_operator_takes_nothing_while_its_routers_have_not_answered(cluster, counter) -> None:
    router = Router(cluster)
    async with router.running(), Kubelet(cluster).running():
        await prepare(cluster, router, 3)
        await router.fall_silent()

        async with cluster.operator(counter):

            async def is_unknown():
                return (await cluster.condition(SERVICE, "demo", "ScalingReady")).get("reason") == "DemandUnknown"

            await cluster.until(is_unknown)

        assert await is_scaled_to(cluster, 3)
        assert [kind for method, kind, _ in counter.writes if method == "PUT"] == []


@pytest.mark.slow
async def test_demand_that_came_while_the_server_was_away_is_followed_when_it_is_back(cluster, control_plane) -> None:
    if not control_plane.can_stop_api_server:
        pytest.skip("this API server is not ours to stop")
    async with Router(cluster).running() as router:
        await prepare(cluster, router, 0)
        async with cluster.operator() as task:
            await cluster.until(lambda: ready(cluster))
            control_plane.stop_api_server()
            try:
                router.ask(held=9)
                await asyncio.wait([task], timeout=3)
                assert not task.done()
            finally:
                await asyncio.to_thread(control_plane.start_api_server)

            await cluster.until(lambda: is_scaled_to(cluster, 5))

            async def is_told() -> bool:
                history = (await scaling_status(cluster)).get("history", ())
                return [one["reason"].partition(":")[0] for one in history][-2:] == ["AboveTarget", "Activated"]

            await cluster.until(is_told)


async def test_of_two_operators_only_the_leader_scales(cluster, control_plane, start_operator) -> None:
    async with Router(cluster).running() as router:
        operators = {identity: start_operator(identity) for identity in ("first", "second")}
        await cluster.service(replicas=0, scaling=FAST)
        await cluster.until(lambda: ready(cluster))

        router.ask(held=9)
        await cluster.until(lambda: is_scaled_to(cluster, 5))

        def scaled() -> list[int]:
            return sorted(operator.log().count("event=scaled") for operator in operators.values())

        async def is_logged() -> bool:  # what it scaled may be seen before it has said so
            return sum(scaled()) >= 2

        await cluster.until(is_logged)
        assert scaled() == [0, 2]
