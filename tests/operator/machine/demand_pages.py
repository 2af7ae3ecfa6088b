"""Routers as far as an autoscaler sees them: pods of the release, and the page where they tell demand, as a test wants it."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from quire_contract import names
from quire_contract.demand_report import DemandReport, ServiceDemand, encode_demand
from quire_contract.kube import resources
from quire_contract.kube.client import KubeClient, KubeError
from quire_operator.platform import Platform

POLL_S = 0.05
MAX_POLLS = 2400


class DemandPage:
    """One router. `say` changes what it tells; a question that waits is answered at once when a queue begins."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = f"127.{secrets.randbelow(200) + 20}.{secrets.randbelow(250)}.{secrets.randbelow(250) + 1}"
        self._services: dict[str, ServiceDemand] = {}
        self._edge = 0
        self._news = asyncio.Event()
        self._sequence = 0
        self.is_away = False

    def say(self, service: str, *, held: int = 0, running: int = 0) -> None:
        """What it tells from now on."""
        before = self._services.get(service)
        self._services[service] = ServiceDemand(
            held=held,
            held_oldest_s=0.0,
            held_without_worker=held,
            queued=0,
            running=running,
            unreported=0,
            arrivals=(before.arrivals if before else 0) + held,
            arrivals_per_s=0.0,
            endpoints=0,
            ready_endpoints=0,
        )
        if held and not (before and before.held):
            self._edge += 1
            self._news.set()
            self._news = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        """GET PATH_DEMAND."""
        if self.is_away:
            return web.Response(status=503)
        since, wait_s = request.query.get("since"), float(request.query.get("wait", "0"))
        if since == str(self._edge):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, 0.2)):
                    await self._news.wait()
        self._sequence += 1
        report = DemandReport(
            router=self.name,
            boot="one",
            sequence=self._sequence,
            edge=self._edge,
            ts=0.0,
            services=dict(self._services),
        )
        return web.Response(body=encode_demand(report))


@asynccontextmanager
async def demand_pages(client: KubeClient, namespace: str, number: int = 2) -> AsyncIterator[list[DemandPage]]:
    """Routers of the namespace's release: running pods whose addresses are the loopback's, each with its page."""
    async with contextlib.AsyncExitStack() as stack:
        pages = [DemandPage(f"router-{index}") for index in range(number)]
        for page in pages:
            app = web.Application()
            app.router.add_get(names.PATH_DEMAND, page.answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, page.address, names.PORT_ROUTER).start()
            await _pod(client, namespace, page)
        yield pages


async def _pod(client: KubeClient, namespace: str, page: DemandPage) -> None:
    labels = {names.LABEL_ROLE: names.ROLE_ROUTER, names.LABEL_INSTANCE: Platform().release}
    containers = [{"name": "router", "image": "none"}]
    spec: dict[str, Any] = {"containers": containers, "automountServiceAccountToken": False}
    body = {"metadata": {"name": page.name, "labels": labels}, "spec": spec}
    for _ in range(MAX_POLLS):
        try:
            await client.create(resources.POD, namespace, body)
            break
        except KubeError as error:  # a new namespace's account takes a moment
            if error.status not in (403, 500):
                raise
        await asyncio.sleep(POLL_S)
    status = {"phase": "Running", "podIP": page.address, "podIPs": [{"ip": page.address}]}
    await client.merge_patch(resources.POD, namespace, page.name, {"status": status}, subresource="status")
