"""A worker killed, the operator killed, the API server gone while a service scales each way: every request is answered whole."""

import asyncio
from contextlib import AsyncExitStack

import aiohttp
import pytest

from quire_contract import names
from quire_contract.kube import resources
from tests.operator.machine.real_workers import WorkerProcesses
from tests.operator.machine.scaling_world import FAST, deployed, real_router, replicas_of

SERVICE = resources.INFERENCE_SERVICE
UP = {"policies": [{"type": "Pods", "value": 2, "periodSeconds": 1}]}
SCALING = {**FAST, "maxReplicas": 2, "behavior": {**FAST["behavior"], "scaleUp": UP}}
"""With limits of its own, so that a burst keeps no replica for longer."""
SHORT, LONG = 40, 240
"""Tokens of a request; a token takes 50 ms."""
RECOVERS_S = 120.0


class Faults:
    """What goes wrong, and is set right where that is not the product's own business."""

    def __init__(self, cluster, control_plane, stack: AsyncExitStack, workers: WorkerProcesses) -> None:
        self._cluster, self._control_plane, self._stack, self._workers = cluster, control_plane, stack, workers
        self._operator: asyncio.Task | None = None

    async def start_operator(self) -> None:
        self._operator = await self._stack.enter_async_context(self._cluster.operator())

    async def operator(self) -> None:
        assert self._operator is not None
        self._operator.cancel()
        await asyncio.wait([self._operator])
        await self.start_operator()

    async def server(self) -> None:
        assert self._operator is not None
        self._control_plane.stop_api_server()
        try:
            await asyncio.wait([self._operator], timeout=3)
            assert not self._operator.done()
        finally:
            await asyncio.to_thread(self._control_plane.start_api_server)

    async def worker(self) -> None:
        """The one that has the most to do."""
        busiest = await self._cluster.until(self._busiest)
        self._workers.kill(busiest)

    async def _busiest(self) -> str | None:
        loads = {}
        async with aiohttp.ClientSession() as session:
            for name, address in list(self._workers.addresses.items()):
                try:
                    async with session.get(f"http://{address}:{names.PORT_HTTP}{names.PATH_METRICS}") as answer:
                        text = await answer.text()
                except aiohttp.ClientError:
                    continue
                lines = [line for line in text.splitlines() if line.startswith(names.VLLM_NUM_REQUESTS_RUNNING)]
                loads[name] = sum(float(line.rpartition(" ")[2]) for line in lines)
        name = max(loads, key=lambda one: loads[one], default=None)
        return name if name is not None and loads[name] else None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["worker", "operator", "server"])
async def test_no_request_is_lost_and_replicas_are_right_soon_after(cluster, control_plane, tmp_path, fault) -> None:
    if fault == "server" and not control_plane.can_stop_api_server:
        pytest.skip("this API server is not ours to stop")

    async def ask(session: aiohttp.ClientSession, tokens: int) -> tuple[int, int]:
        body = {"model": "demo", "prompt": "x", "max_tokens": tokens, "ignore_eos": True}
        async with session.post("/v1/completions", json=body) as answer:
            told = await answer.json()
            return answer.status, told.get("usage", {}).get("completion_tokens", 0)

    async def keep_asking(session: aiohttp.ClientSession, tokens: int, enough: asyncio.Event) -> list[tuple[int, int]]:
        """One request after the other, so that demand stays while a fault lasts."""
        answers = [await ask(session, tokens)]
        while not enough.is_set():
            answers.append(await ask(session, tokens))
        return answers

    async def is_at(replicas: int) -> bool:
        return await replicas_of(cluster) == replicas and await deployed(cluster) == [replicas]

    async def grows() -> bool:
        return sum(await deployed(cluster)) > 0

    async def shrinks() -> bool:
        return await replicas_of(cluster) == 1

    async with AsyncExitStack() as stack:
        workers = await stack.enter_async_context(WorkerProcesses(cluster, tmp_path).running())
        faults = Faults(cluster, control_plane, stack, workers)
        await faults.start_operator()
        await cluster.service(replicas=0, scaling=SCALING)
        url = await stack.enter_async_context(real_router(cluster, control_plane, tmp_path))
        session = await stack.enter_async_context(aiohttp.ClientSession(url))

        async def is_known() -> bool:
            async with session.get("/v1/models") as answer:
                return "demo" in await answer.text()

        await cluster.until(is_known)
        grown, shrunk = asyncio.Event(), asyncio.Event()
        burst = [asyncio.create_task(keep_asking(session, SHORT, grown)) for _ in range(4)]
        await cluster.until(grows)
        await getattr(faults, fault)()
        await cluster.until(lambda: is_at(2), RECOVERS_S)
        grown.set()
        short = [answer for answers in await asyncio.gather(*burst) for answer in answers]

        asking = asyncio.create_task(keep_asking(session, LONG, shrunk))
        await cluster.until(shrinks)
        await getattr(faults, fault)()
        shrunk.set()
        long = await asking
        await cluster.until(lambda: is_at(0), RECOVERS_S)

    assert len(short) >= 4
    assert set(short) == {(200, SHORT)}
    assert set(long) == {(200, LONG)}
