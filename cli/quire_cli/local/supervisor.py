"""Runs all pods of `quire up` until the user stops them: the router's endpoint file, readiness as a whole, an orderly end.

Owns every process of the run; when `run` returns or raises, none is left. This module must not know manifests.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from quire_cli.local.endpoints import EndpointFile
from quire_cli.local.pod import Pod, PodState
from quire_cli.local.pod_plan import PodPlan
from quire_cli.local.progress import Progress

_ROUTER_PERIOD_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Supervisor:
    """Starts every plan's pod and keeps it running."""

    def __init__(
        self,
        *,
        workers: Sequence[PodPlan],
        router: PodPlan,
        endpoints: EndpointFile,
        logs: Path,
        cwd: Path,
        progress: Progress,
        on_ready: Callable[[], None],
        beside: Callable[[], Coroutine[Any, Any, None]],
    ) -> None:
        """`beside` runs as long as the pods do."""
        self._worker_plans = workers
        self._router_plan = router
        self._endpoints = endpoints
        self._logs = logs
        self._cwd = cwd
        self._progress = progress
        self._on_ready = on_ready
        self._beside = beside
        self._workers: list[Pod] = []
        self._routers: list[Pod] = []
        self._all_ready = asyncio.Event()
        self._stop_asked = asyncio.Event()

    async def run(self) -> None:
        """Returns when the user asked for the end and every process has ended. Raises PodFailedError if a pod is hopeless."""
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._on_signal)
        async with aiohttp.ClientSession(trust_env=False) as http:
            self._routers = [self._pod(self._router_plan, http)]
            self._workers = [self._pod(plan, http) for plan in self._worker_plans]
            self._progress.begin(self._pods)
            tasks = [asyncio.create_task(pod.run()) for pod in self._pods]
            beside = asyncio.create_task(self._beside())
            try:
                await self._supervise([*tasks, beside], http)
            finally:
                beside.cancel()
                self._progress.close()
                await self._stop_all()
                await asyncio.gather(*tasks, beside, return_exceptions=True)

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """A pod's endpoint is in the router's file exactly while the pod is ready."""
        if pod.plan.endpoint is not None:
            if state is PodState.READY:
                self._endpoints.add(pod.plan.endpoint)
            else:
                self._endpoints.remove(pod.plan.endpoint.id)
        self._progress.pod_changed(pod, state, detail)
        if all(other.state is PodState.READY for other in self._pods):
            self._all_ready.set()

    @property
    def _pods(self) -> list[Pod]:
        return [*self._routers, *self._workers]

    def _pod(self, plan: PodPlan, http: aiohttp.ClientSession) -> Pod:
        return Pod(plan, log=self._logs / f"{plan.name}.log", cwd=self._cwd, http=http, listener=self)

    def _on_signal(self) -> None:
        """The first signal ends in order, the second at once."""
        if self._stop_asked.is_set():
            for pod in self._pods:
                pod.kill()
        self._stop_asked.set()

    async def _supervise(self, tasks: list[asyncio.Task[None]], http: aiohttp.ClientSession) -> None:
        """Until the user asks for the end or a pod fails for good."""
        stop = asyncio.create_task(self._stop_asked.wait())
        announce = asyncio.create_task(self._announce(http))
        try:
            done, _ = await asyncio.wait([*tasks, stop, announce], return_when=asyncio.FIRST_COMPLETED)
            if announce in done and stop not in done:
                announce.result()
                done, _ = await asyncio.wait([*tasks, stop], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (stop, announce):
                task.cancel()
            await asyncio.gather(stop, announce, return_exceptions=True)

    async def _announce(self, http: aiohttp.ClientSession) -> None:
        """Tells the user once all pods are ready and the router has seen the workers."""
        await self._all_ready.wait()
        while True:
            seen = await self._endpoints_seen(http)
            if seen >= len(self._worker_plans):
                break
            await asyncio.sleep(_ROUTER_PERIOD_S)
        self._progress.all_ready()
        self._on_ready()

    async def _endpoints_seen(self, http: aiohttp.ClientSession) -> int:
        """Workers that the router has found ready itself; -1 while it does not answer."""
        probe = self._router_plan.readiness
        try:
            async with http.get(probe.url, timeout=aiohttp.ClientTimeout(total=probe.timeout_s)) as answer:
                seen: int = (await answer.json())["ready_endpoints"] if answer.status == 200 else -1
                return seen
        except (aiohttp.ClientError, TimeoutError, OSError):
            return -1

    async def _stop_all(self) -> None:
        """The router first, so that streams in flight can finish, then the workers together."""
        for group in (self._routers, self._workers):
            await asyncio.gather(*(pod.stop() for pod in group))
