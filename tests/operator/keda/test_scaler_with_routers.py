"""KEDA's client, our scaler, two real routers and a worker that comes only when it is asked for: from none to some and back."""

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from cluster.processes import free_ports

from quire_contract.router_config import EndpointEntry, ModelEntry, RouterConfig, ServiceEntry, write_config
from quire_contract.trust import Trust
from quire_operator.autoscale.aggregate import reading_of
from quire_operator.autoscale.listener import DemandListener, RouterAddress
from quire_operator.keda.demand import EdgeHub
from quire_operator.keda.scaler import ExternalScaler
from quire_operator.keda.server import serve_scaler

from .wire import KedaClient
from .world import SERVICE, ref

MODEL = Path(__file__).parents[3] / "examples" / "models" / "quire-demo"
POLL_S = 0.05
TIMEOUT_S = 240.0


class Release:
    """Processes of one release, without a cluster."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self.trust = Trust.generate()
        self.trust.write(folder / "trust")
        *self.routers, self._worker, events, replay = free_ports(5)
        self._entry = EndpointEntry(
            id="worker-0",
            url=f"http://127.0.0.1:{self._worker}",
            models=["chat"],
            service=SERVICE,
            events=f"tcp://127.0.0.1:{events}",
            replay=f"tcp://127.0.0.1:{replay}",
        )
        config = RouterConfig(
            models=[ModelEntry(name="chat", service=SERVICE)],
            services=[ServiceEntry(id=SERVICE)],
            endpoints=[self._entry],
        )
        write_config(folder / "router.json", config)
        for port in self.routers:
            self._start("quire_router", "--config", str(folder / "router.json"), "--port", str(port))

    def start_worker(self) -> None:
        entry = self._entry
        flags = ["--fake", "--model", str(MODEL), "--served-model-name", "chat", "--pod-name", entry.id]
        flags += [
            "--port",
            str(self._worker),
            "--kv-events-endpoint",
            entry.events,
            "--kv-replay-endpoint",
            entry.replay,
        ]
        self._start("quire_worker", *flags)

    def _start(self, module: str, *flags: str) -> None:
        command = [sys.executable, "-m", module, *flags, "--trust-dir", str(self._folder / "trust")]
        with (self._folder / f"{module}.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._stack.callback(process.wait, 120)
        self._stack.callback(process.terminate)


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    with contextlib.ExitStack() as stack:
        yield Release(tmp_path, stack)


@pytest.fixture
async def keda_of(release: Release) -> AsyncIterator[KedaClient]:
    """A client of a scaler that listens to the release's routers."""
    listener = DemandListener(
        token=lambda: release.trust.token,
        on_edge=lambda service: hub.tell(service),  # noqa: PLW0108 - the hub is made of the listener
        clock=time.monotonic,
        rng=random.Random(1),
    )
    hub = EdgeHub(lambda service: reading_of(service, listener.states()))
    listener.set_routers(
        {f"router-{index}": RouterAddress(url=f"http://127.0.0.1:{port}") for index, port in enumerate(release.routers)}
    )
    task = asyncio.create_task(listener.run())
    try:
        handler = ExternalScaler(hub).handler()
        async with (
            serve_scaler(handler, host="127.0.0.1", port=0, tls=None) as port,
            KedaClient(f"127.0.0.1:{port}") as client,
        ):
            yield client
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(check: Callable[[], Awaitable[Any]], wanted: Any) -> None:
    """Ask until the answer is `wanted`; what cannot be told yet is asked again."""
    deadline_s, last = time.monotonic() + TIMEOUT_S, None
    while last != wanted:
        assert time.monotonic() < deadline_s, f"{last} and not {wanted} after {TIMEOUT_S:g} s"
        try:
            last = await check()
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.sleep(POLL_S)


async def ask(session: aiohttp.ClientSession, port: int) -> int:
    """One answer to its end."""
    body = {"model": "chat", "prompt": "The pages of a quire", "max_tokens": 4}
    async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
        await answer.read()
        return answer.status


@pytest.mark.slow
async def test_requests_to_a_sleeping_service_reach_keda_and_their_end_does_too(
    release: Release, keda_of: KedaClient
) -> None:
    async def demand() -> float:
        return (await keda_of.metrics(ref(), "demand"))[0]["metricValueFloat"]

    await until(lambda: keda_of.is_active(ref()), False)
    stream = keda_of.stream(ref())
    pushed = asyncio.ensure_future(stream.read())
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
        first, second = release.routers
        answers = [asyncio.ensure_future(ask(session, port)) for port in (first, first, second)]

        assert await pushed == {"result": True}
        await until(demand, 3.0)
        await until(lambda: keda_of.is_active(ref()), True)

        release.start_worker()  # what KEDA has the operator do

        assert await asyncio.gather(*answers) == [200, 200, 200]
    await until(demand, 0.0)
    await until(lambda: keda_of.is_active(ref()), False)
    stream.cancel()
