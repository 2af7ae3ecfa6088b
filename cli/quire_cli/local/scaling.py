"""Workers that follow demand: the operator's autoscaler, told by the local router, with the supervisor as its hands.

What was decided is told to the user line by line, and stands in a file of the run's folder. This module must not know processes.
"""

import asyncio
import datetime
import json
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quire_cli.local.progress import plural
from quire_cli.local.supervisor import Supervisor
from quire_operator.api.inference_service import InferenceService
from quire_operator.autoscale.aggregate import ScaleState, reading_of
from quire_operator.autoscale.course import Memory, View
from quire_operator.autoscale.listener import DemandListener, RouterAddress
from quire_operator.autoscale.loop import Autoscaler
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.policy_of import policy_of

MAX_HISTORY = 100
"""Decisions of each service that are kept."""


@dataclass(frozen=True, kw_only=True)
class LocalRouter:
    """Whom to ask for demand."""

    name: str
    url: str
    token: str
    """Of the run's trust folder."""


class LocalTarget:
    """One service, for the autoscaler. A changed `spec.scaling` holds from its next look on; what it remembers stays."""

    def __init__(self, service: InferenceService, supervisor: Supervisor, note: Callable[[str], None]) -> None:
        self.service = service
        self.history: deque[dict[str, Any]] = deque(maxlen=MAX_HISTORY)
        """Newest first."""
        self._id = service_id(service)
        self._supervisor = supervisor
        self._note = note
        self._created_s = time.time()

    @property
    def polling_interval_s(self) -> float:
        """Between two looks."""
        assert self.service.spec.scaling is not None, "only services that scale are put"
        return float(self.service.spec.scaling.polling_interval_seconds)

    @property
    def is_writer(self) -> bool:
        """Nobody else scales here, whatever the provider."""
        return True

    def state(self) -> ScaleState:
        """Workers as they are. One that crashed and starts again, and one that waits for a device, is capacity to come."""
        workers = self._supervisor.sets[self._id]
        ready = workers.num_ready
        return ScaleState(
            replicas=workers.wanted,
            ready=ready,
            loading=max(0, workers.wanted - ready),
            created_s=self._created_s,
        )

    @property
    def num_asleep(self) -> int:
        """Workers that sleep and can be woken."""
        return self._supervisor.sets[self._id].num_asleep

    def policy(self, capacity: int | None) -> Policy:
        """By what to decide."""
        return policy_of(self.service, capacity)

    def memory(self) -> Memory:
        """None: a run begins anew."""
        return Memory()

    async def scale(self, view: View) -> None:
        """Start or drain workers; the least loaded go first."""
        verdict = view.verdict
        line = f"{view.replicas} -> {plural(verdict.replicas)} ({verdict.reason}: {verdict.message})"
        self._note(f"{self.service.metadata.name}: {line}")
        self.history.appendleft(
            {
                "at": _iso(view.at_s),
                "from": view.replicas,
                "to": verdict.replicas,
                "reason": verdict.reason,
                "message": verdict.message,
            }
        )
        loads = {} if view.demand is None else view.demand.workers
        self._supervisor.scale(self._id, verdict.replicas, {pod: load.in_flight for pod, load in loads.items()})


class LocalScaling:
    """One for the run. Services without `spec.scaling` have as many workers as they say."""

    def __init__(
        self,
        services: Sequence[InferenceService],
        *,
        supervisor: Supervisor,
        router: LocalRouter,
        note: Callable[[str], None],
        file: Path,
    ) -> None:
        """`note` says a line to the user; `file` is where it stands how things are, as JSON."""
        self._supervisor = supervisor
        self._router = router
        self._note = note
        self._file = file
        self._targets: dict[str, LocalTarget] = {}
        self._views: dict[str, View] = {}
        self._autoscaler = Autoscaler(
            read=lambda service: reading_of(service, self._listener.states()),
            wall_clock=time.time,
            on_view=self._show,
        )
        self._listener = DemandListener(
            token=lambda: router.token,
            on_edge=self._autoscaler.wake,
            clock=time.monotonic,
            rng=random.Random(),  # noqa: S311  (it spreads retries)
        )
        self._services: dict[str, InferenceService] = {}
        for service in services:
            self._services[service_id(service)] = service
            if service.spec.scaling is not None:
                self._put(service)

    async def run(self) -> None:
        """From the router's first readiness until cancelled."""
        self._write()
        await self._supervisor.until_router_is_ready()
        self._listener.set_routers({self._router.name: RouterAddress(url=self._router.url)})
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listener.run())
            group.create_task(self._autoscaler.run())

    def follow(self, services: Sequence[InferenceService]) -> None:
        """What the files say now of replicas and scaling."""
        for service in services:
            key, spec = service_id(service), service.spec
            before, self._services[key] = self._services[key].spec, service
            if (before.replicas, before.scaling) == (spec.replicas, spec.scaling):
                continue
            if spec.scaling is None:
                self._fix(key, service)
            elif key in self._targets:
                self._targets[key].service = service
                self._keep_standby(key, service)
                self._supervisor.scale(key, self._supervisor.sets[key].wanted)
                self._autoscaler.wake(key)
                self._note(f"{service.metadata.name}: {_bounds(service)}")
            else:
                self._put(service)
                self._note(f"{service.metadata.name}: {_bounds(service)}")
        self._write()

    def _put(self, service: InferenceService) -> None:
        key = service_id(service)
        self._keep_standby(key, service)
        self._targets[key] = LocalTarget(service, self._supervisor, self._note)
        self._autoscaler.put(key, self._targets[key])

    def _keep_standby(self, key: str, service: InferenceService) -> None:
        """From the next change of the number on."""
        scaling = service.spec.scaling
        self._supervisor.sets[key].standby = scaling.standby.replicas if scaling and scaling.standby else 0

    def _fix(self, key: str, service: InferenceService) -> None:
        """As many as the file says, and nobody else decides."""
        self._autoscaler.drop(key)
        self._targets.pop(key, None)
        self._views.pop(key, None)
        self._keep_standby(key, service)
        before = self._supervisor.sets[key].wanted
        self._supervisor.scale(key, service.spec.replicas)
        waiting = self._supervisor.sets[key].num_pending
        rest = f"; {waiting} of them wait for Nvidia devices" if waiting else ""
        name = service.metadata.name
        self._note(f"{name}: {before} -> {plural(service.spec.replicas)} (the file says so){rest}")

    def _show(self, service: str, view: View) -> None:
        self._views[service] = view
        self._write()

    def _write(self) -> None:
        """Replaced as a whole: a reader sees the old file or the new one."""
        services = {key: _shown(target, self._views.get(key)) for key, target in self._targets.items()}
        beside = self._file.with_name(f".{self._file.name}.tmp")
        beside.write_text(json.dumps({"services": services}, indent=2) + "\n", encoding="utf-8")
        beside.replace(self._file)


def service_id(service: InferenceService) -> str:
    """As routers know it, "namespace/name"."""
    return f"{service.metadata.namespace or 'default'}/{service.metadata.name}"


def _bounds(service: InferenceService) -> str:
    scaling = service.spec.scaling
    assert scaling is not None, "it has bounds"
    return f"{scaling.min_replicas} to {plural(scaling.max_replicas)}, as demand is"


def _shown(target: LocalTarget, view: View | None) -> Mapping[str, Any]:
    """How one service stands, for programs."""
    state, scaling = target.state(), target.service.spec.scaling
    assert scaling is not None, "it is a target"
    shown: dict[str, Any] = {
        "minReplicas": scaling.min_replicas,
        "maxReplicas": scaling.max_replicas,
        "replicas": state.replicas,
        "readyReplicas": state.ready,
        "history": list(target.history),
    }
    if scaling.standby is not None:
        shown["asleep"] = target.num_asleep
    if view is not None:
        demand = view.demand
        shown |= {
            "at": _iso(view.at_s),
            "demand": None
            if demand is None
            else {"held": demand.held, "queued": demand.queued, "running": demand.running},
            "isKnown": view.is_known,
            "trouble": view.trouble,
            "reason": view.verdict.reason,
            "message": view.verdict.message,
        }
    return shown


def _iso(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
