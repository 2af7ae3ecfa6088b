"""Runs all pods of `quire up` until the user stops them: the router's endpoint file, readiness as a whole, an orderly end.

Owns every process of the run; when `run` returns or raises, none is left. Workers come and go while it runs (`scale`). This module must
not know manifests, or why workers come and go.
"""

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from quire_cli.local.endpoints import EndpointFile
from quire_cli.local.pod import Pod, PodState, RestartPolicy
from quire_cli.local.pod_plan import PodPlan, WorkerKind
from quire_cli.local.progress import Progress
from quire_cli.local.rest import Rest
from quire_cli.local.supplies import Share, Supplies
from quire_cli.local.worker_set import Launcher, WorkerSet

_ROUTER_PERIOD_S = 0.1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the processes of a run write, and where they run."""

    logs: Path
    cwd: Path
    token: str = field(default="", repr=False)
    """Of the run's trust folder: with it workers obey."""


class Supervisor:
    """Starts the router and the workers that are wanted, and keeps them running."""

    def __init__(
        self,
        *,
        workers: Sequence[tuple[WorkerKind, int]],
        plan: Callable[[WorkerKind, int, Share], PodPlan],
        supplies: Supplies,
        router: PodPlan,
        endpoints: EndpointFile,
        places: Places,
        progress: Progress,
        on_ready: Callable[[], None],
    ) -> None:
        """`workers`: of each service what they are made of, and how many there are at first. `plan` makes one of them."""
        self._first = {kind.id: number for kind, number in workers}
        self._router_plan = router
        self._endpoints = endpoints
        self._places = places
        self._progress = progress
        self._on_ready = on_ready
        launcher = Launcher(plan=plan, pod=self._pod, spawn=self._spawn, on_room=self._fill)
        self.sets: Mapping[str, WorkerSet] = {kind.id: WorkerSet(kind, supplies, launcher) for kind, _ in workers}
        """By "namespace/name"."""
        self._http: aiohttp.ClientSession
        self._router: Pod
        self._broken: asyncio.Future[None]
        self._tasks: set[asyncio.Task[None]] = set()
        self._router_ready = asyncio.Event()
        self._all_ready = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._is_announced = self._ends = False

    @property
    def num_ready(self) -> int:
        """Workers that serve, over all services."""
        return sum(workers.num_ready for workers in self.sets.values())

    async def run(self, *beside: Coroutine[Any, Any, None]) -> None:
        """Returns when the user asked for the end and every process has ended. `beside` runs as long as the pods do. Raises PodFailedError
        if a pod is hopeless before all were ready."""
        loop = asyncio.get_running_loop()
        self._broken = loop.create_future()
        for stop in STOP_SIGNALS:
            if stop is not signal.SIGHUP or signal.getsignal(stop) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(stop, self._on_signal)
        async with aiohttp.ClientSession(trust_env=False) as self._http:
            self._router = self._pod(self._router_plan)
            self._progress.begin(sum(self._first.values()))
            others: list[asyncio.Task[None]] = []
            try:
                self._spawn(self._router.run())
                for service, number in self._first.items():
                    self.scale(service, number)
                others = [self._spawn(one) for one in (*beside, self._announce())]
                await self._until_asked_or_broken()
            finally:
                self._ends = True
                for task in others:
                    task.cancel()
                self._progress.close()
                await self._stop_all()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def scale(self, service: str, replicas: int, in_flight: Mapping[str, int] | None = None) -> None:
        """From now on so many workers of "namespace/name". `in_flight`: requests by pod, as far as they are known."""
        if not self._ends:
            self.sets[service].scale(replicas, in_flight or {})
            self._look_whether_ready()

    async def until_router_is_ready(self) -> None:
        """Until it has answered once."""
        await self._router_ready.wait()

    def pod_changed(self, pod: Pod, state: PodState, detail: str) -> None:
        """A pod's endpoint is in the router's file exactly while the pod is ready."""
        if pod.plan.endpoint is not None:
            if state is PodState.READY and not pod.is_leaving:
                self._endpoints.add(pod.plan.endpoint)
            else:
                self._endpoints.remove(pod.plan.endpoint.id)
        elif state is PodState.READY:
            self._router_ready.set()
        self._progress.pod_changed(pod, state, detail)
        if state is PodState.RESTARTING and not self._ends:
            for workers in self.sets.values():
                workers.settle()  # who sleeps may serve in its place
        self._look_whether_ready()

    def _look_whether_ready(self) -> None:
        is_whole = all(workers.num_ready == workers.wanted for workers in self.sets.values())
        if is_whole and self._router.state is PodState.READY:
            self._all_ready.set()

    def _pods(self) -> Iterator[Pod]:
        yield self._router
        for workers in self.sets.values():
            yield from workers.pods

    def _pod(self, plan: PodPlan) -> Pod:
        """One that is hopeless ends the run only as long as nobody is served."""
        log, policy = self._places.logs / f"{plan.name}.log", RestartPolicy(gives_up=not self._is_announced)
        rest = None if plan.endpoint is None else Rest(plan.endpoint.url, self._places.token, self._http)
        return Pod(plan, log=log, cwd=self._places.cwd, http=self._http, listener=self, policy=policy, rest=rest)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _fill(self) -> None:
        """A worker has ended: whoever waits for what it had is next."""
        if not self._ends:
            for workers in self.sets.values():
                workers.fill()

    def _on_signal(self) -> None:
        """The first signal ends in order, the second at once."""
        if self._stop_asked.is_set():
            for pod in self._pods():
                pod.kill()
        self._stop_asked.set()

    async def _until_asked_or_broken(self) -> None:
        asked = asyncio.create_task(self._stop_asked.wait())
        try:
            asked.add_done_callback(lambda _: self._broken.cancel())
            await asyncio.wait([self._broken])
            if not self._broken.cancelled():
                self._broken.result()
        finally:
            asked.cancel()
            self._broken.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    async def _announce(self) -> None:
        """Tells the user once all pods are ready and the router has seen the workers."""
        await self._all_ready.wait()
        while True:
            seen = await self._endpoints_seen()
            if seen >= self.num_ready:
                break
            await asyncio.sleep(_ROUTER_PERIOD_S)
        self._is_announced = True
        self._progress.all_ready()
        self._on_ready()

    async def _endpoints_seen(self) -> int:
        """Workers that the router has found ready itself; -1 while it does not answer."""
        probe = self._router_plan.readiness
        try:
            async with self._http.get(probe.url, timeout=aiohttp.ClientTimeout(total=probe.timeout_s)) as answer:
                seen: int = (await answer.json())["ready_endpoints"] if answer.status == 200 else -1
                return seen
        except (aiohttp.ClientError, TimeoutError, OSError):
            return -1

    async def _stop_all(self) -> None:
        """The router first, so that streams in flight can finish, then the workers together."""
        await self._router.stop()
        await asyncio.gather(*(pod.stop() for workers in self.sets.values() for pod in workers.staying))
