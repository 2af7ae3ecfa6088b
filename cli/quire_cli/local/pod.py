"""One pod kept running as a local process: start, probe, restart with backoff, stop. The kubelet's part.

This module must not know other pods, or what is shown to the user: it reports through `PodListener`.
"""

import asyncio
import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import aiohttp

from quire_cli.local.child import Child, log_tail
from quire_cli.local.pod_plan import PodPlan, Probe
from quire_cli.local.rest import Rest

EXIT_CONFIGURATION = 2
"""With this code a program says that it cannot start as it is: a wrong flag, or a model that cannot be loaded."""
_STARTING_PERIOD_S = 0.2


@dataclass(frozen=True, kw_only=True)
class RestartPolicy:
    """When a process that ended is started again."""

    first_delay_s: float = 0.5
    """Wait before the first restart; each further one in a row waits twice as long."""
    max_delay_s: float = 30.0
    """Longest wait."""
    reset_after_s: float = 60.0
    """A pod that was ready for so long begins with the first delay again."""
    max_starts_unready: int = 5
    """A pod that ends so often without ever having been ready never will be."""
    gives_up: bool = True
    """Whether such a pod ends the run. Without, it is started again as rarely as may be: others may serve well beside it."""

    def delay_s(self, num_failures: int) -> float:
        """Wait before the restart after `num_failures` ends in a row, at least 1."""
        doublings = min(num_failures - 1, 32)
        return min(self.max_delay_s, self.first_delay_s * 2.0**doublings)


class PodState(StrEnum):
    """Where a pod is in its life."""

    STARTING = "starting"
    READY = "ready"
    NOT_READY = "not ready"
    ASLEEP = "asleep"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


class PodListener(Protocol):
    """Is told about changes, at once, from the event loop."""

    def pod_changed(self, pod: "Pod", state: PodState, detail: str) -> None:
        """`detail` is for a person."""


@dataclass
class PodFailedError(Exception):
    """The pod will never become ready."""

    pod: str
    reason: str
    log: Path
    tail: list[str]


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Pod:
    """Keeps one process running until it is told to stop."""

    def __init__(
        self,
        plan: PodPlan,
        *,
        log: Path,
        cwd: Path,
        http: aiohttp.ClientSession,
        listener: PodListener,
        policy: RestartPolicy = RestartPolicy(),
        rest: Rest | None = None,
    ) -> None:
        """`rest` asks its process to sleep and to wake; None: it never sleeps."""
        self.plan = plan
        self._rest = rest
        self._policy = policy
        self.log = log
        self.state = PodState.STARTING
        self.num_restarts = 0
        self.pid: int | None = None
        self._cwd = cwd
        self._http = http
        self._listener = listener
        self._child: Child | None = None
        self._stopping = asyncio.Event()
        self._was_ready = False
        self._ready_since: float | None = None
        self._log_start = 0

    async def run(self) -> None:
        """Returns after `stop`. Raises PodFailedError if restarting cannot help."""
        failures = 0
        while not self._stopping.is_set():
            code = await self._live_once()
            if self._stopping.is_set():
                break
            failures = 1 if self._served_long() else failures + 1
            self._give_up_if_hopeless(code, failures)
            is_hopeless = self._is_hopeless(code, failures)
            delay_s = self._policy.max_delay_s if is_hopeless else self._policy.delay_s(failures)
            last = log_tail(self.log, self._log_start, num_lines=1) if is_hopeless else []
            self.num_restarts += 1
            ended = ": ".join([describe_exit(code), *last])
            self._report(PodState.RESTARTING, f"{ended}; starts again in {delay_s:g} s")
            await self._pause(delay_s)
        self._report(PodState.STOPPED, "")

    def leave(self) -> None:
        """From now on it is told to end; `stop` does it."""
        self._stopping.set()

    @property
    def is_meant_to_sleep(self) -> bool:
        """Whether it sleeps, or will as soon as it is up."""
        return self._rest is not None and self._rest.is_wanted

    def set_resting(self, is_resting: bool) -> None:
        """From now on its process sleeps, or is awake. Nothing reaches one that is meant to sleep; what it works on it ends first."""
        if self._rest is not None and self._rest.is_wanted != is_resting:
            self._rest.want(is_resting)
            if is_resting and self.state is PodState.READY:
                self._report(PodState.ASLEEP, "")

    async def stop(self) -> None:
        """Asks for the end, waits for the grace period, then forces it. `run` returns soon after."""
        self.leave()
        child = self._child
        if child is not None:
            self._report(PodState.STOPPING, "")
            await child.stop(self.plan.grace_s)

    def kill(self) -> None:
        """Ends the process at once, for a user who does not want to wait."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _live_once(self) -> int:
        """One process from start to end. Its exit code."""
        self._ready_since = None
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._child = child = await Child.start(self.plan.argv, self.plan.environ, self.log, self._cwd)
        self.pid = child.pid
        if self._stopping.is_set():  # asked for while the process was being made
            child.kill()
        self._report(PodState.STARTING, f"pid {child.pid}")
        end = asyncio.create_task(child.wait())
        watch = asyncio.create_task(self._watch(child))
        try:
            await asyncio.wait({end, watch}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()  # it has killed the child, or failed itself
            return await end
        finally:
            watch.cancel()
            child.kill()
            await asyncio.gather(end, watch, return_exceptions=True)
            self.pid = self._child = None

    async def _watch(self, child: Child) -> None:
        """Startup, then readiness and liveness, as the manifest's probes say."""
        start = time.monotonic()
        while not await self._asks(self.plan.readiness):
            if time.monotonic() - start > self.plan.start_timeout_s:
                self._report(PodState.NOT_READY, f"not ready after {self.plan.start_timeout_s:g} s; killed")
                child.kill()
                return
            await asyncio.sleep(_STARTING_PERIOD_S)
        self._was_ready = True
        self._ready_since = time.monotonic()
        self._report(
            PodState.ASLEEP if self.is_meant_to_sleep else PodState.READY, f"after {time.monotonic() - start:.1f} s"
        )
        await asyncio.gather(self._watch_readiness(), self._watch_liveness(child), self._watch_rest(child))

    async def _watch_readiness(self) -> None:
        failures, probe = 0, self.plan.readiness
        while True:
            await asyncio.sleep(probe.period_s)
            if self.state is PodState.ASLEEP:
                failures = 0
            elif await self._asks(probe):
                failures = 0
                if self.state is PodState.NOT_READY:
                    self._report(PodState.ASLEEP if self.is_meant_to_sleep else PodState.READY, "again")
            else:
                failures += 1
                if failures == probe.max_failures and self.state is PodState.READY:
                    self._report(PodState.NOT_READY, f"{probe.url} fails")

    async def _watch_rest(self, child: Child) -> None:
        """A process that begins is awake. One that does not wake begins anew."""
        if self._rest is None:
            return
        while True:
            await self._rest.until_asleep()
            await self._rest.until_wanted(False)
            started = time.monotonic()
            is_awake = await self._rest.wake()
            if self.is_leaving:
                return
            if not is_awake:
                self._report(PodState.NOT_READY, "does not wake; killed")
                child.kill()
                return
            if not self.is_meant_to_sleep:
                self._report(PodState.READY, f"woken in {time.monotonic() - started:.2f} s")

    async def _watch_liveness(self, child: Child) -> None:
        failures, probe = 0, self.plan.liveness
        while failures < probe.max_failures:
            await asyncio.sleep(probe.period_s)
            if self._stopping.is_set():
                return  # it closes its port before its last streams end; only the grace period counts now, as for the kubelet
            failures = 0 if await self._asks(probe) else failures + 1
        self._report(PodState.NOT_READY, f"{probe.url} failed {failures} times; killed")
        child.kill()

    async def _asks(self, probe: Probe) -> bool:
        """Whether the probe succeeds."""
        try:
            async with self._http.get(probe.url, timeout=aiohttp.ClientTimeout(total=probe.timeout_s)) as answer:
                return 200 <= answer.status < 400
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def _pause(self, delay_s: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        except TimeoutError:
            return

    def _served_long(self) -> bool:
        return self._ready_since is not None and time.monotonic() - self._ready_since >= self._policy.reset_after_s

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to end."""
        return self._stopping.is_set()

    def _is_hopeless(self, code: int, failures: int) -> bool:
        is_wrong = code == EXIT_CONFIGURATION or failures >= self._policy.max_starts_unready
        return is_wrong and not self._was_ready

    def _give_up_if_hopeless(self, code: int, failures: int) -> None:
        if self._policy.gives_up and self._is_hopeless(code, failures):
            reason = describe_exit(code) if failures == 1 else f"{describe_exit(code)}, {failures} times in a row"
            raise PodFailedError(self.plan.name, reason, self.log, log_tail(self.log, self._log_start))

    def _report(self, state: PodState, detail: str) -> None:
        self.state = state
        self._listener.pod_changed(self, state, detail)
