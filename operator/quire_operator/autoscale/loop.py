"""Scales services: one look per service every polling interval, and at once when a queue begins.

It reads demand, lets `decide` choose, and has the change made by the service's ScaleTarget. This module must not know clusters, processes
or HTTP: the operator, and `quire up`, each bring their targets.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from quire_contract.telemetry import Trouble, log_event
from quire_operator.autoscale.aggregate import Reading, ScaleState
from quire_operator.autoscale.course import Course, Decide, Memory, View
from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.policy import Policy

logger = logging.getLogger(__name__)

_RETRY_S = 0.5
"""How soon a change is tried again that could not be made; doubles up to the polling interval."""


class ScaleError(Exception):
    """The number could not be written now (the server is away, somebody else wrote it meanwhile): decide again later."""


class ScaleTarget(Protocol):
    """One service. Another object for the same key is another service: what is remembered of the last one goes."""

    @property
    def polling_interval_s(self) -> float:
        """Between two looks."""

    @property
    def is_writer(self) -> bool:
        """Whether verdicts are carried out; False: somebody else (KEDA, an HPA) does, and the service is only watched."""

    def state(self) -> ScaleState | None:
        """Replicas as they are now; None: there is nothing to be scaled (gone, paused, not accepted)."""

    def policy(self, capacity: int | None) -> Policy:
        """By what to decide; `capacity` is what engines say that one replica runs at once."""

    def memory(self) -> Memory:
        """What an earlier process left."""

    async def scale(self, view: View) -> None:
        """Make it `view.verdict.replicas`. ScaleError if that is not possible now."""


@dataclass(kw_only=True)
class _Service:
    target: ScaleTarget
    course: Course
    task: asyncio.Task[None] | None = None
    woken: asyncio.Event = field(default_factory=asyncio.Event)
    view: View | None = None
    retry_s: float | None = None
    trouble: Trouble = field(default_factory=Trouble)


class Autoscaler:
    """One for the process. `put` and `drop` may be called at any time; looks are taken while `run` runs."""

    def __init__(
        self,
        *,
        read: Callable[[str], Reading],
        wall_clock: Callable[[], float],
        on_view: Callable[[str, View], None] = lambda service, view: None,
        decide: Decide = decide,
    ) -> None:
        """`read` gives the demand of "namespace/name" now; `wall_clock` is Unix time in seconds; `on_view` is told after each look."""
        self._read = read
        self._wall_clock = wall_clock
        self._on_view = on_view
        self._decide = decide
        self._services: dict[str, _Service] = {}
        self._group: asyncio.TaskGroup | None = None

    def put(self, service: str, target: ScaleTarget) -> None:
        """Begin with a service, or go on with it: the same target changes nothing."""
        known = self._services.get(service)
        if known is not None and known.target is target:
            return
        self.drop(service)
        self._services[service] = _Service(target=target, course=Course(decide=self._decide))
        self._start(service)

    def drop(self, service: str) -> None:
        """End with a service; what is remembered of it goes."""
        known = self._services.pop(service, None)
        if known is not None and known.task is not None:
            known.task.cancel()

    def wake(self, service: str) -> None:
        """Look at once: a queue has begun, or the service was changed. A look under way is followed by one more."""
        known = self._services.get(service)
        if known is not None:
            known.woken.set()

    def view(self, service: str) -> View | None:
        """How the service stood at the last look; None before the first."""
        known = self._services.get(service)
        return None if known is None else known.view

    def services(self) -> tuple[str, ...]:
        """All that are looked at."""
        return tuple(self._services)

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as self._group:
                for service in self._services:
                    self._start(service)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None
            for known in self._services.values():
                known.task = None

    async def look(self, service: str) -> View | None:
        """One look: read, decide, have it made. None if there is nothing to be scaled."""
        known = self._services[service]
        state, target, course = known.target.state(), known.target, known.course
        if state is None:
            known.view, known.course = None, Course(decide=self._decide)
            return None
        reading, now_s = self._read(service), self._wall_clock()
        policy = target.policy(None if reading.demand is None else reading.demand.capacity)
        course.begin(state, target.memory(), now_s)
        before = course.history
        assert before is not None
        view = course.step(reading, state, policy, now_s)
        known.retry_s = None if view.verdict.replicas == state.replicas else known.retry_s
        if target.is_writer and view.verdict.replicas != state.replicas:
            try:
                await target.scale(view)
            except ScaleError as error:
                course.refused(before)
                self._note_refused(service, known, view, error)
                view = replace(view, refusal=str(error))
            else:
                known.retry_s = None
                course.written(view.verdict, now_s)
                view = replace(view, scalings=course.scalings)
        known.view = view
        self._on_view(service, view)
        return view

    def _start(self, service: str) -> None:
        known = self._services[service]
        if self._group is not None and known.task is None:
            known.task = self._group.create_task(self._follow(service, known))

    async def _follow(self, service: str, known: _Service) -> None:
        while True:
            known.woken.clear()
            try:
                await self.look(service)
            except Exception:  # a loop that must live: what is wrong with one service stops no other
                logger.exception("a look at %s failed; it is taken again", service)
            wait_s = known.target.polling_interval_s
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s if known.retry_s is None else min(known.retry_s, wait_s)):
                    await known.woken.wait()

    def _note_refused(self, service: str, known: _Service, view: View, error: ScaleError) -> None:
        known.retry_s = _RETRY_S if known.retry_s is None else 2 * known.retry_s
        if known.trouble.is_news(str(error)):
            log_event(
                logger,
                logging.WARNING,
                "replicas were not written",
                service=service,
                wanted=view.verdict.replicas,
                reason=str(error),
            )
