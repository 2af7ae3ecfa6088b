"""The workers of one service: as many as are wanted now, started and drained one by one. A Deployment's part.

With a standby there are more of them at times: those beyond `wanted` sleep, and are woken before others are started.

A worker that leaves is drained: the router hears of it at once, the process gets SIGTERM and its grace period, and what it had of the
machine is given back when it has ended. This module must not know why how many are wanted.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire_cli.local.pod import Pod, PodState
from quire_cli.local.pod_plan import WORKER_PORTS, PodPlan, WorkerKind
from quire_cli.local.supplies import Share, Supplies


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """By what a set makes processes; the supervisor's."""

    plan: Callable[[WorkerKind, int, Share], PodPlan]
    pod: Callable[[PodPlan], Pod]
    spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
    """Runs it for as long as it takes; what it raises ends the run."""
    on_room: Callable[[], None]
    """Called when a worker has ended and what it had is free."""


class WorkerSet:
    """One for each service."""

    def __init__(self, kind: WorkerKind, supplies: Supplies, launcher: Launcher) -> None:
        self.kind = kind
        self.wanted = 0
        """Workers that there should be, awake."""
        self.standby = 0
        """So many there are at least, asleep if they are not wanted."""
        self._in_flight: Mapping[str, int] = {}
        self._supplies = supplies
        self._launcher = launcher
        self._pods: dict[int, Pod] = {}

    @property
    def pods(self) -> list[Pod]:
        """All, those that leave included."""
        return [pod for _, pod in sorted(self._pods.items())]

    @property
    def staying(self) -> list[Pod]:
        """Those that were not told to end."""
        return [pod for pod in self.pods if not pod.is_leaving]

    @property
    def num_ready(self) -> int:
        """Workers that serve."""
        return sum(pod.state is PodState.READY for pod in self.staying)

    @property
    def num_asleep(self) -> int:
        """Workers that sleep, or are about to."""
        return sum(pod.state is PodState.ASLEEP for pod in self.staying)

    @property
    def num_pending(self) -> int:
        """Workers that wait for devices of the machine."""
        return max(0, max(self.wanted, self.standby) - len(self.staying))

    def scale(self, wanted: int, in_flight: Mapping[str, int]) -> None:
        """From now on `wanted`. `in_flight`: requests by pod, as far as they are known; the least loaded leave first."""
        self.wanted, self._in_flight = wanted, in_flight
        for pod in victims(self.staying, len(self.staying) - max(wanted, self.standby), in_flight):
            pod.leave()
            self._launcher.spawn(pod.stop())
        self.fill()

    def settle(self) -> None:
        """So many as are wanted are awake, the others sleep."""
        awake = most_awake(self.staying, self.wanted, self._in_flight)
        for pod in self.staying:
            pod.set_resting(pod not in awake)

    def fill(self) -> None:
        """Start what is missing, as far as the machine has room."""
        for _ in range(self.num_pending):
            share = self._supplies.take(num_ports=WORKER_PORTS, num_devices=self.kind.num_devices)
            if share is None:
                break
            self._start(share)
        self.settle()

    def _start(self, share: Share) -> None:
        index = next(index for index in range(len(self._pods) + 1) if index not in self._pods)
        pod = self._launcher.pod(self._launcher.plan(self.kind, index, share))
        self._pods[index] = pod
        self._launcher.spawn(self._live(index, pod, share))

    async def _live(self, index: int, pod: Pod, share: Share) -> None:
        try:
            await pod.run()
        finally:
            del self._pods[index]
            self._supplies.give_back(share)
        self._launcher.on_room()


def victims(pods: Sequence[Pod], number: int, in_flight: Mapping[str, int]) -> list[Pod]:
    """Who leaves: those that do not serve yet, then the least loaded, of equals the newest."""

    def rank(index: int) -> tuple[bool, int, int]:
        pod = pods[index]
        return pod.state is PodState.READY, in_flight.get(pod.plan.name, 0), -index

    return [pods[index] for index in sorted(range(len(pods)), key=rank)[: max(0, number)]]


def most_awake(pods: Sequence[Pod], number: int, in_flight: Mapping[str, int]) -> list[Pod]:
    """Who is to be awake: those that serve, the most loaded first, then those that sleep and wake at once, then those that still start."""

    def rank(index: int) -> tuple[int, int, int]:
        pod = pods[index]
        is_up = (pod.state is PodState.READY) - (pod.state not in (PodState.READY, PodState.ASLEEP))
        return -is_up, -in_flight.get(pod.plan.name, 0), index

    return [pods[index] for index in sorted(range(len(pods)), key=rank)[:number]]
