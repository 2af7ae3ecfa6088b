"""Wherever the operator dies, the next one brings about what an undisturbed one would have."""

import asyncio
import difflib

import pytest
import yaml

from quire_contract.kube import resources
from quire_contract.router_config import decode_config

SERVICE = resources.INFERENCE_SERVICE
SHARD_NAME = "quire-router-config-0"
MAX_WRITES = 40
AT_ONCE = 4


async def create(cluster) -> None:
    await cluster.service()


async def update(cluster) -> None:
    await cluster.client.merge_patch(
        SERVICE, cluster.namespace, "demo", {"spec": {"engine": {"maxNumSeqs": 7}, "model": {"aliases": ["more"]}}}
    )


async def delete(cluster) -> None:
    await cluster.client.delete(SERVICE, cluster.namespace, "demo")


async def prepare(cluster, before, counter) -> None:
    """Carry out `before` undisturbed."""
    for step in before:
        async with cluster.operator(counter):
            await step(cluster)
            await acted(cluster, counter)


async def acted(cluster, counter) -> dict:
    """The objects after the operator has reacted."""

    async def has_come_to_rest() -> bool:
        return bool(counter.writes) and is_at_rest(await cluster.objects())

    await cluster.until(has_come_to_rest)
    return await cluster.settled()


def is_at_rest(objects) -> bool:
    """Whether what a step leads to is there: the last of it waits for the controller manager and the scheduler, which may be busy."""
    services = [item for (kind, _), item in objects.items() if kind == SERVICE.kind]
    shard = objects.get((resources.CONFIG_MAP.kind, SHARD_NAME))
    if shard is None or not (services or {kind for kind, _ in objects} == {"ConfigMap", "Secret"}):
        return False
    told = {model.name for model in decode_config(shard["data"]["router.json"].encode()).models}
    wanted = {name for item in services for name in ("demo", *item["spec"]["model"].get("aliases", ()))}
    return told == wanted and all(map(has_only_its_newest_pods, services))


def has_only_its_newest_pods(service) -> bool:
    """And the scheduler has looked at them: there is no node."""
    status = service.get("status", {})
    reasons = {condition["type"]: condition["reason"] for condition in status.get("conditions", ())}
    return (
        status.get("observedGeneration") == service["metadata"]["generation"]
        and status["replicas"] == status["updatedReplicas"] == service["spec"]["replicas"]
        and reasons["Progressing"] == "Unschedulable"
    )


async def becomes(cluster, expected) -> None:
    async def is_equal():
        return await cluster.objects() == expected

    try:
        await cluster.until(is_equal)
    except AssertionError:
        texts = [
            yaml.safe_dump({"/".join(key): item for key, item in objects.items()}).splitlines()
            for objects in (expected, await cluster.objects())
        ]
        pytest.fail("\n".join(difflib.unified_diff(*texts, "undisturbed", "restarted", lineterm="")), pytrace=False)


async def ended(cluster, task, expected) -> None:
    """The operator has died, or has done its work and writes nothing more."""

    async def is_over() -> bool:
        return task.done() or await cluster.objects() == expected

    await cluster.until(is_over)
    await cluster.settled()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "step"), [((), create), ((create,), update), ((create,), delete)], ids=["create", "update", "delete"]
)
async def test_killed_after_each_write_the_next_operator_comes_to_the_same_objects(
    clusters, killer, before, step
) -> None:
    undisturbed, counter = await clusters(), killer()
    await prepare(undisturbed, before, killer())
    async with undisturbed.operator(counter):
        await step(undisturbed)
        expected = await acted(undisturbed, counter)
    num_writes = len(counter.writes)
    assert 0 < num_writes <= MAX_WRITES
    slots = asyncio.Semaphore(AT_ONCE)

    async def killed_after(count: int) -> None:
        async with slots:
            cluster, crashing = await clusters(), killer(count)
            await prepare(cluster, before, killer())
            async with cluster.operator(crashing) as task:
                await step(cluster)
                await ended(cluster, task, expected)
            if crashing.is_dead:
                async with cluster.operator():
                    await becomes(cluster, expected)
            else:  # this run needed fewer writes
                await becomes(cluster, expected)

    async with asyncio.TaskGroup() as group:
        for count in range(1, num_writes + 1):
            group.create_task(killed_after(count))
