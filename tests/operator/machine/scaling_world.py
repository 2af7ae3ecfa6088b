"""What an autoscaler meets on a cluster, without nodes: routers and workers that speak real HTTP, and one who says that pods run.

Each has an address of its own in 127.0.0.0/8, so that the ports are those of a cluster.
"""

import asyncio
import base64
import random
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from quire_contract import names
from quire_contract.demand_report import DemandReport, ServiceDemand, WorkerDemand, encode_demand
from quire_contract.kube import resources
from quire_contract.kube.client import KubeError

POLL_S = 0.05
FAST = {
    "minReplicas": 0,
    "maxReplicas": 5,
    "demandPerReplica": 2,
    "pollingIntervalSeconds": 1,
    "cooldownSeconds": 1,
    "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
}
"""spec.scaling that does at once what it does."""
_RNG = random.SystemRandom()


def some_address() -> str:
    """Of this machine, and nobody else's."""
    return f"127.{_RNG.randint(1, 254)}.{_RNG.randint(0, 255)}.{_RNG.randint(1, 254)}"


@asynccontextmanager
async def served(app: web.Application, address: str, port: int) -> AsyncIterator[None]:
    """The application on a real socket."""
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
        yield
    finally:
        await runner.cleanup()


class Router:
    """A router as far as demand goes: what the test says is asked of one service."""

    def __init__(self, cluster: Any, service: str = "demo", name: str = "router-0") -> None:
        self._cluster, self.name = cluster, name
        self._service = f"{cluster.namespace}/{service}"
        self.address = some_address()
        self.workers: dict[str, WorkerDemand] = {}
        self.demand: dict[str, float] = {}
        self._edge = 0
        self._news = asyncio.Event()
        self._is_silent = False

    async def fall_silent(self) -> None:
        """It runs, and answers nothing any more."""
        self._is_silent = True
        self._news.set()

    def ask(self, **demand: float) -> None:
        """What is asked from now on; an edge if requests are held."""
        self.demand = demand
        if demand.get("held"):
            self._edge += 1
            self._news.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Router"]:
        """It answers, and its pod says so."""
        app = web.Application()
        app.router.add_get(names.PATH_DEMAND, self._answer)
        async with served(app, self.address, names.PORT_ROUTER):
            await add_router_pod(self._cluster, self.name, self.address)
            yield self

    async def _answer(self, request: web.Request) -> web.Response:
        self._news.clear()
        if request.query.get("since") == str(self._edge):
            try:
                async with asyncio.timeout(float(request.query.get("wait", "0"))):
                    await self._news.wait()
            except TimeoutError:
                pass
        if self._is_silent:
            return web.Response(status=503)
        plain = {"held": 0, "queued": 0, "running": 0, "unreported": 0, "arrivals": 0, "endpoints": 0}
        zeros = {"held_oldest_s": 0.0, "held_without_worker": 0, "arrivals_per_s": 0.0, "ready_endpoints": 0}
        demand = ServiceDemand(**{**plain, **zeros, **self.demand}, workers=dict(self.workers))  # type: ignore[arg-type]
        report = DemandReport(
            router=self.name, boot="b", sequence=1, edge=self._edge, ts=0.0, services={self._service: demand}
        )
        return web.Response(body=encode_demand(report))


async def add_router_pod(cluster: Any, name: str, address: str) -> None:
    """A pod of the release's router that runs at `address`."""
    labels = {names.LABEL_ROLE: names.ROLE_ROUTER, names.LABEL_INSTANCE: cluster.platform.release}
    container = {"name": "router", "image": "none"}
    spec = {"containers": [container], "schedulerName": "nobody", "automountServiceAccountToken": False}

    async def is_made() -> bool:
        try:
            await cluster.create(resources.POD, name, spec, labels=labels)
        except KubeError as error:
            assert "service account" in error.message, error  # a new namespace's comes a moment later
            return False
        return True

    await cluster.until(is_made)
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
    await cluster.client.merge_patch(resources.POD, cluster.namespace, name, {"status": status}, subresource="status")


class Worker:
    """A worker as far as drains go."""

    def __init__(self, pod: str) -> None:
        self.pod, self.address = pod, some_address()
        self.num_requests = 0
        self.is_draining = False
        self.tokens: set[str | None] = set()
        self.calls: list[str] = []

    def app(self) -> web.Application:
        """POST and DELETE of the drain."""
        app = web.Application()
        app.router.add_post(names.PATH_DRAIN, self._drain)
        app.router.add_delete(names.PATH_DRAIN, self._drain)
        return app

    async def _drain(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get(names.HEADER_TOKEN))
        self.calls.append(request.method)
        self.is_draining = request.method == "POST"
        return web.json_response({"draining": self.is_draining, "num_requests": self.num_requests})


class Kubelet:
    """Runs the workers' pods of one namespace: each gets an address and a worker, and is ready unless it drains."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.workers: dict[str, Worker] = {}
        self.ended: list[str] = []
        """Pods in the order in which they went."""
        self.has_nodes = False
        """Whether each pod is put on a node of its own, of the pod's name."""
        self.starts = True
        """Whether new pods' workers start; else their pods wait."""
        self.nodes: list[str] = []
        self._stops: dict[str, asyncio.Event] = {}
        self._servers: dict[str, asyncio.Task[None]] = {}
        self._shown: dict[str, bool] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Kubelet"]:
        """While it works."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait([task])
            for stop in self._stops.values():
                stop.set()
            await asyncio.gather(*self._servers.values())
            for node in self.nodes:
                await self._cluster.client.delete(resources.NODE, None, node)
            if not task.cancelled():
                task.result()

    async def _run(self) -> None:
        while True:
            try:
                selector = f"{names.LABEL_ROLE}={names.ROLE_WORKER}"
                pods, _ = await self._cluster.client.list(resources.POD, self._cluster.namespace, selector)
                for pod in pods:
                    await self._keep(pod)
                self._forget({pod["metadata"]["name"] for pod in pods})
            except KubeError as error:
                if error.status not in (0, 404, 409):
                    raise
            await asyncio.sleep(POLL_S)

    async def _keep(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if pod["metadata"].get("deletionTimestamp"):
            path = resources.POD.path(self._cluster.namespace, name)
            body = {"gracePeriodSeconds": 0}
            await self._cluster.client._request("DELETE", path, resources.POD, body=body)
            return
        if self.has_nodes and not pod["spec"].get("nodeName"):
            await self._place(name)
        if name not in self.workers:
            if not self.starts:
                return
            self.workers[name] = worker = Worker(name)
            self._stops[name] = asyncio.Event()
            self._servers[name] = asyncio.create_task(self._serve(worker, self._stops[name]))
            await asyncio.sleep(0)
        worker = self.workers[name]
        if self._shown.get(name) != (not worker.is_draining):
            await self._show(worker)

    async def _place(self, name: str) -> None:
        """A node without room, so that the scheduler puts nothing on it."""
        client = self._cluster.client
        self.nodes.append(name)
        await client.create(resources.NODE, None, {"metadata": {"name": name}})
        path = resources.POD.path(self._cluster.namespace, name, "binding")
        target = {"apiVersion": "v1", "kind": "Node", "name": name}
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        await client._request("POST", path, resources.POD, body=body)

    async def _show(self, worker: Worker) -> None:
        is_ready = not worker.is_draining
        status = {
            "phase": "Running",
            "podIP": worker.address,
            "podIPs": [{"ip": worker.address}],
            "conditions": [{"type": "Ready", "status": "True" if is_ready else "False"}],
        }
        await self._cluster.client.merge_patch(
            resources.POD, self._cluster.namespace, worker.pod, {"status": status}, subresource="status"
        )
        self._shown[worker.pod] = is_ready

    def _forget(self, present: set[str]) -> None:
        for name in [name for name in self.workers if name not in present]:
            self.workers.pop(name)
            self.ended.append(name)
            self._stops.pop(name).set()

    async def _serve(self, worker: Worker, stop: asyncio.Event) -> None:
        async with served(worker.app(), worker.address, names.PORT_HTTP):
            await stop.wait()


@asynccontextmanager
async def real_router(cluster: Any, control_plane: Any, folder: Path) -> AsyncIterator[str]:
    """A router process that follows the cluster; its URL."""

    async def trusts() -> dict[str, Any]:
        return (await cluster.get(resources.SECRET, names.TRUST_SECRET)) or {}

    secret = await cluster.until(trusts)
    trust = folder / "trust"
    trust.mkdir()
    for key, text in secret["data"].items():
        (trust / key).write_bytes(base64.b64decode(text))
        (trust / key).chmod(0o600)
    address = some_address()
    command = [sys.executable, "-m", "quire_router", "--kubeconfig", control_plane.kubeconfig, "--trust-dir", trust]
    command += ["--release", cluster.platform.release, "--release-namespace", cluster.namespace]
    command += ["--watch-namespace", cluster.namespace, "--host", address, "--port", str(names.PORT_ROUTER)]
    with (folder / "router.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*map(str, command), stdout=log, stderr=log)
    url = f"http://{address}:{names.PORT_ROUTER}"
    try:
        async with aiohttp.ClientSession() as session:

            async def is_up() -> bool:
                assert process.returncode is None, (folder / "router.log").read_text()
                try:
                    async with session.get(url + names.PATH_HEALTH) as answer:
                        return answer.status == 200
                except aiohttp.ClientError:
                    return False

            await cluster.until(is_up)
        await add_router_pod(cluster, "router-0", address)
        yield url
    finally:
        process.kill()
        await process.wait()


async def replicas_of(cluster: Any, name: str = "demo") -> int:
    """What /scale says."""
    return int((await cluster.get(resources.INFERENCE_SERVICE, name))["spec"]["replicas"])


async def deployed(cluster: Any) -> list[int]:
    """What the Deployments are told."""
    items, _ = await cluster.client.list(resources.DEPLOYMENT, cluster.namespace)
    return [item["spec"]["replicas"] for item in items]


async def scaling_status(cluster: Any, name: str = "demo") -> dict[str, Any]:
    """status.scaling."""
    document = await cluster.get(resources.INFERENCE_SERVICE, name)
    found: dict[str, Any] = (document.get("status") or {}).get("scaling") or {}
    return found
