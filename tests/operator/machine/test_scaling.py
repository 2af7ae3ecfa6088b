"""The operator scales services by what routers say, on a real API server: from zero, up, and back."""

import asyncio

import aiohttp
import pytest

from quire_contract import names
from quire_contract.demand_report import WorkerDemand
from quire_contract.kube import resources
from quire_operator import pod_state
from tests.operator.machine.scaling_world import (
    FAST,
    Kubelet,
    Router,
    deployed,
    real_router,
    replicas_of,
    scaling_status,
)

SERVICE = resources.INFERENCE_SERVICE


def scale_writes(counter) -> list[int]:
    """Answers to writes of /scale."""
    return [status for method, kind, status in counter.writes if (method, kind) == ("PUT", "InferenceService")]


def becomes(expected, what, *arguments):
    async def check():
        return await what(*arguments) == expected

    return check


async def reason(cluster, kind: str = "ScalingReady") -> str:
    return (await cluster.condition(SERVICE, "demo", kind)).get("reason", "")


async def test_burst_to_a_service_at_zero_wakes_it_and_two_decisions_bring_what_is_asked(cluster, counter) -> None:
    async with Router(cluster).running() as router, cluster.operator(counter):
        await cluster.service(replicas=0, scaling={**FAST, "pollingIntervalSeconds": 600})
        await cluster.until(becomes([0], deployed, cluster))

        router.ask(held=9)
        await cluster.until(becomes([5], deployed, cluster))

        async def history() -> list[tuple[int, str]]:
            shown = (await scaling_status(cluster)).get("history", ())
            return [(one["replicas"], one["reason"].partition(":")[0]) for one in shown]

        async def told() -> set[str]:
            events, _ = await cluster.client.list(resources.EVENT, cluster.namespace)
            return {event["message"].partition(";")[0] for event in events if event["reason"] == "ScaledUp"}

        # Status and Events are written beside the Deployment, not before it.
        await cluster.until(becomes([(5, "AboveTarget"), (1, "Activated")], history))
        await cluster.until(becomes({"from 0 to 1 replicas", "from 1 to 5 replicas"}, told))
        assert scale_writes(counter).count(200) == 2


async def test_service_without_demand_goes_to_zero_after_its_cooldown_and_costs_nothing_then(cluster, counter) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running():
        router.ask(running=3)
        async with cluster.operator(counter):
            await cluster.service(replicas=2, scaling=FAST)
            await cluster.until(becomes("Ready", reason, cluster))
            await cluster.until(becomes("AllReady", reason, cluster, "WorkloadReady"))

            router.ask()
            await cluster.until(becomes([0], deployed, cluster))
            await cluster.until(becomes("ScaledToZero", reason, cluster, "Ready"))
            await cluster.settled()
            writes = len(counter.writes)
            await cluster.settled()

            assert len(counter.writes) == writes
            status = await scaling_status(cluster)
            assert (status["provider"], status["desired"], status["demand"]) == ("BuiltIn", 0, 0)
            assert status["lastReason"].startswith("ScaledToZero")


async def test_replicas_set_by_hand_are_kept_while_nothing_asks_for_others(cluster) -> None:
    async with Router(cluster).running() as router, cluster.operator():
        router.ask(running=4)
        await cluster.service(replicas=2, scaling={**FAST, "behavior": {"scaleDown": {"selectPolicy": "Disabled"}}})
        await cluster.until(becomes("Ready", reason, cluster))

        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", {"spec": {"replicas": 3}})
        await cluster.until(becomes([3], deployed, cluster))
        await cluster.settled()

        assert await replicas_of(cluster) == 3


async def test_least_loaded_worker_is_drained_and_goes_and_no_stream_is_cut(cluster) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running() as kubelet:
        router.ask(running=6)
        async with cluster.operator():
            await cluster.service(replicas=3, scaling=FAST)
            await cluster.until(becomes("AllReady", reason, cluster, "WorkloadReady"))
            busy, idle, other = list(kubelet.workers.values())
            busy.num_requests = idle.num_requests = other.num_requests = 1
            router.workers = {w.pod: WorkerDemand(in_flight=1 if w is idle else 3) for w in (busy, idle, other)}

            router.ask(running=4)
            await cluster.until(becomes(2, replicas_of, cluster))

            async def is_drained():
                return idle.is_draining

            await cluster.until(is_drained)
            await cluster.settled()
            assert await deployed(cluster) == [3]
            assert (busy.calls, other.calls, kubelet.ended) == ([], [], [])
            idle.num_requests = 0

            async def has_gone():
                return kubelet.ended

            await cluster.until(has_gone)
            assert kubelet.ended == [idle.pod]
            assert await deployed(cluster) == [2]
            secret = await cluster.get(resources.SECRET, names.TRUST_SECRET)
            assert secret is not None
            assert len(idle.tokens) == 1
            assert None not in idle.tokens


async def test_demand_that_comes_back_takes_the_draining_worker_back(cluster) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running() as kubelet:
        router.ask(running=6)
        async with cluster.operator():
            await cluster.service(replicas=3, scaling=FAST)
            await cluster.until(becomes("AllReady", reason, cluster, "WorkloadReady"))
            for worker in kubelet.workers.values():
                worker.num_requests = 1
            router.ask(running=4)

            async def one_drains():
                return [worker for worker in kubelet.workers.values() if worker.is_draining]

            (victim,) = await cluster.until(one_drains)
            router.ask(running=6)

            async def is_back():
                pod = await cluster.get(resources.POD, victim.pod)
                return not pod_state.is_victim(pod) and pod_state.is_ready(pod)

            await cluster.until(is_back)
            assert victim.calls[-1] == "DELETE"
            assert kubelet.ended == []
            assert names.ANNOTATION_DELETION_COST not in (await cluster.get(resources.POD, victim.pod))["metadata"].get(
                "annotations", {}
            )


async def test_next_operator_goes_on_with_the_drain_of_one_that_died(cluster, killer) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running() as kubelet:
        router.ask(running=4)
        async with cluster.operator() as task:
            await cluster.service(replicas=2, scaling=FAST)
            await cluster.until(becomes("AllReady", reason, cluster, "WorkloadReady"))
            for worker in kubelet.workers.values():
                worker.num_requests = 1
            router.ask(running=2)

            async def one_drains():
                return [worker for worker in kubelet.workers.values() if worker.is_draining]

            (victim,) = await cluster.until(one_drains)
            task.cancel()
            await asyncio.wait([task])
        victim.num_requests = 0

        async with cluster.operator():
            await cluster.until(becomes([1], deployed, cluster))

            async def has_gone():
                return kubelet.ended

            await cluster.until(has_gone)
            assert kubelet.ended == [victim.pod]


async def test_routers_that_are_gone_make_demand_unknown_and_nothing_goes(cluster) -> None:
    async with Kubelet(cluster).running(), Router(cluster).running() as router, cluster.operator():
        router.ask(running=4)
        await cluster.service(replicas=2, scaling=FAST)
        await cluster.until(becomes("Ready", reason, cluster))
        await router.fall_silent()

        await cluster.until(becomes("DemandUnknown", reason, cluster))

        condition = await cluster.condition(SERVICE, "demo", "ScalingReady")
        assert condition["message"].startswith("no answer from router-0: ")
        assert condition["message"].endswith("; no replica goes")
        assert await replicas_of(cluster) == 2


async def test_service_whose_name_an_older_one_takes_keeps_its_pods_until_it_has_the_name_back(
    cluster, counter
) -> None:
    async with Router(cluster).running() as router, Kubelet(cluster).running() as kubelet, cluster.operator(counter):
        await cluster.second_after(await cluster.service("older"))
        router.ask(running=4)
        await cluster.service(replicas=2, scaling=FAST)
        await cluster.until(becomes("AllReady", reason, cluster, "WorkloadReady"))
        await cluster.until(becomes("Ready", reason, cluster))
        slow = {"spec": {"scaling": {"pollingIntervalSeconds": 600}}}
        await cluster.client.merge_patch(SERVICE, cluster.namespace, "demo", slow)

        await cluster.client.merge_patch(
            SERVICE, cluster.namespace, "older", {"spec": {"model": {"aliases": ["demo"]}}}
        )
        await cluster.until(becomes("NameConflict", reason, cluster))
        condition, status = await cluster.condition(SERVICE, "demo", "ScalingReady"), await scaling_status(cluster)
        router.ask(held=9)
        await cluster.settled()
        ended = [name for name in kubelet.ended if name.startswith("demo-")]
        kept = (await deployed(cluster), ended, scale_writes(counter))
        await cluster.client.merge_patch(SERVICE, cluster.namespace, "older", {"spec": {"model": {"aliases": []}}})
        await cluster.until(becomes(5, replicas_of, cluster))

        rival = f"'demo' is served by InferenceService {cluster.namespace}/older already"
        assert condition["message"].startswith(f"the replicas stay as they are: spec.model.name: {rival}")
        assert status["lastReason"].startswith(f"NameConflict: spec.model.name: {rival}")
        assert kept == ([2, 1], [], [])
        await cluster.until(becomes("Ready", reason, cluster))


async def test_provider_that_is_not_there_is_named_and_nobody_scales_in_its_place(cluster, counter) -> None:
    async with Router(cluster).running() as router, cluster.operator(counter):
        await cluster.service(replicas=0, scaling={**FAST, "provider": "Keda"})
        await cluster.until(becomes("KEDANotInstalled", reason, cluster))

        router.ask(held=3)
        await cluster.settled()

        assert await replicas_of(cluster) == 0
        assert scale_writes(counter) == []
        assert (await scaling_status(cluster))["provider"] == "Keda"


@pytest.mark.slow
async def test_request_to_a_real_router_wakes_the_service(cluster, control_plane, tmp_path) -> None:
    async with cluster.operator():
        await cluster.service(replicas=0, scaling=FAST)
        async with real_router(cluster, control_plane, tmp_path) as url, aiohttp.ClientSession() as session:

            async def is_known():
                async with session.get(f"{url}/v1/models") as answer:
                    return "demo" in await answer.text()

            await cluster.until(is_known)
            await cluster.until(becomes("Ready", reason, cluster))
            body = {"model": "demo", "prompt": "hello", "max_tokens": 1}
            request = asyncio.create_task(session.post(f"{url}/v1/completions", json=body))

            async def is_awake():
                return sum(await deployed(cluster)) >= 1

            async def first_reason() -> str:
                shown = (await scaling_status(cluster)).get("history") or [{"reason": ""}]
                return shown[-1]["reason"]

            await cluster.until(is_awake)

            assert not request.done()
            assert (await cluster.until(first_reason)).startswith("Activated: demand 1 is above 0")
            request.cancel()
            await asyncio.wait([request])
