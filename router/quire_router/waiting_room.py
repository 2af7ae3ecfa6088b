"""Requests that wait until a worker has room for them, or until there is a worker at all: who may start, who may wait, who must leave.

    pass_at_once    room, and nobody waits for it: the request goes on without any of what is below
    join -> wait    otherwise, in the line of each service that may answer it; it starts from whichever has room first
    changed, apply  a worker or the configuration changed: as many as there is room start, in the order of `fair_queue`

Nothing is polled: each change that may make room calls `changed`, and the lines concerned are looked at before the event loop goes on.
It must not know HTTP: `admission` is the layer around it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from quire_contract import names
from quire_contract.openai.errors import CODE_QUEUE_TIMEOUT, ApiError, model_not_found
from quire_contract.router_config import RouterConfig
from quire_contract.router_settings import AdmissionSettings, LimitSettings
from quire_router import refusals
from quire_router.admission_metrics import CLIENT_LEFT, DISPLACED, AdmissionMetrics
from quire_router.call import Call
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.fair_queue import Ticket
from quire_router.holding import Holding
from quire_router.line import Limit, Line, State, Waiter, large_victim, new_waiter, time_limit
from quire_router.lines import Lines
from quire_router.passing import Passing
from quire_router.reach import Reach

MIN_RECHECK_S = 1.0
"""Who waits looks anew whether its limit is another one by now, at most so often."""


class WaitingRoom:
    """One for the process. Used from the event loop only; times are seconds of `clock`, which is monotonic."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        metrics: AdmissionMetrics,
        uncached: Callable[[Call], int],
        clock: Callable[[], float],
        parts: Any = None,
    ) -> None:
        """`uncached`: the tokens of a call's prompt that even the best worker would have to compute. `parts`: the extension module
        (`native`), if it is to be used."""
        self._pool = pool
        self._reach = Reach(pool)
        self._metrics = metrics
        self._uncached = uncached
        self._clock = clock
        self._rules = AdmissionSettings()
        self._output_tokens = LimitSettings().default_output_tokens
        self._lines = Lines()
        self._passing = Passing(self._lines, self._reach, clock, parts)
        self.pass_at_once = self._passing.target_of
        self._waiting: dict[Line, None] = {}
        """Lines that somebody waits in; the one that was served last comes last."""
        self._due: dict[Line, None] = {}
        """Lines to look at before the event loop goes on."""
        self.holding = Holding()
        self._num_tickets = 0
        self._ends = False
        self.on_held: Callable[[Line], None] = lambda _: None
        """Called with a line that gets its first waiting request, or is missed for the first time."""
        self.held_test = self._reach.held_test
        """Tells, of this moment, which of them wait for a first worker."""
        metrics.show(self.waiters, self.held_test)

    # Passing

    @property
    def comment_s(self) -> float:
        """How often a stream that waits hears of it; 0: never."""
        return self._rules.comment_s

    @contextlib.contextmanager
    def elsewhere(self, call: Call, target: str) -> Iterator[None]:
        """While a route's `call` is answered by `target`: if it was meant for a model without a ready worker, that is missed as long."""
        meant = target if call.route is None else call.route.meant or target
        line = self._lines.of(meant)
        if line is self._lines.of(target) or self._reach.is_usable(meant):
            yield
            return
        line.diverted += 1
        if line.diverted == 1 and not line.queue:
            self.on_held(line)
        try:
            yield
        finally:
            line.diverted -= 1

    def may_hold(self, call: Call) -> bool:
        """Whether `call` may wait at all: requests for models without a worker only if there is time for one to come."""
        return any(
            self._lines.of(target).hold_timeout_s > 0 or self._reach.is_usable(target) for target in call.targets
        )

    def is_asleep(self, call: Call) -> bool:
        """Whether no worker could answer `call` now."""
        return not any(map(self._reach.is_usable, call.targets))

    # Waiting

    def join(self, call: Call, *, is_back: bool = False) -> Waiter:
        """Begin to wait; to be ended by `started` or `leave`. ApiError if there is no place. `is_back`: it had started already, and there
        may be room by now."""
        now_s = self._clock()
        self._num_tickets += 1
        waiter = new_waiter(
            call, now_s, number=self._num_tickets, tokens=self._uncached(call), output_tokens=self._output_tokens
        )
        places: dict[Line, list[str]] = {}
        for target in call.targets:
            places.setdefault(self._lines.of(target), []).append(target)
        self._make_room(waiter, places, now_s)
        self.holding.add(waiter, list(places))
        for line, targets in places.items():
            self._enter(line, waiter, tuple(targets), now_s)
            if is_back:
                line.looks_everywhere = True
                self._look_soon(line)
        return waiter

    async def wait(self, waiter: Waiter, until_s: float | None = None) -> str | None:
        """The target at which it may start: call `started` when it does. None: `until_s` has come. ApiError if it must give up."""
        loop = asyncio.get_running_loop()
        while waiter.state is State.WAITING:
            now_s = self._clock()
            limit_s, kind = time_limit(waiter)
            if kind is Limit.NO_ENDPOINT and self._ends:
                self._refuse(waiter, refusals.router_ends(waiter.call.model), names.REASON_DRAINING)
                break
            if now_s >= limit_s:
                self._time_out(waiter, kind, now_s)
                break
            if until_s is not None and now_s >= until_s:
                return None
            wake_s = min(limit_s, now_s + self._recheck_s(), limit_s if until_s is None else until_s)
            waiter.future = loop.create_future()
            timer = loop.call_later(wake_s - now_s, waiter.wake)
            try:
                await waiter.future
            finally:
                timer.cancel()
                waiter.future = None
        if waiter.error is not None:
            raise waiter.error
        assert waiter.target is not None, "who was granted a start has a target"
        return waiter.target

    def started(self, waiter: Waiter) -> float:
        """It starts now, before anything else is awaited. How long it waited, in s."""
        line = self._take_back_grant(waiter)
        waiter.state, now_s = State.STARTED, self._clock()
        waited_s = now_s - waiter.joined_s
        if not waiter.is_light:
            line.waits.note(waited_s, now_s)
        self._metrics.note_wait(waiter.call.model, waited_s)
        return waited_s

    def leave(self, waiter: Waiter) -> None:
        """Nobody waits for its answer any more. Does nothing to one that has started or was refused."""
        if waiter.state is State.WAITING:
            self._remove(waiter)
        elif waiter.state is State.GRANTED:
            self._take_back_grant(waiter)
        else:
            return
        waiter.state = State.GONE
        self._metrics.dropped.labels(CLIENT_LEFT).inc()

    # Changes

    def changed(self, endpoint: Endpoint) -> None:
        """A worker may have more room, or less."""
        for line in self._waiting:
            if endpoint.id in line.watch:
                line.dirty.add(endpoint.id)
                self._look_soon(line)

    def apply(self, config: RouterConfig) -> None:
        """The pool has a new configuration."""
        settings = config.settings
        self._rules = AdmissionSettings() if settings is None else settings.admission
        self._output_tokens = (LimitSettings() if settings is None else settings.limits).default_output_tokens
        self.holding.apply(self._rules, config)
        self._lines.apply(config, self._rules, self._waiting)
        self._passing.apply(self._rules, self._pool, [model.name for model in config.models])
        self._metrics.declare(self._pool.models)
        for line in list(self._waiting):
            for waiter in line.waiters:
                self._reconsider(waiter)
            line.watch = self._reach.ids(line.models)
            line.looks_everywhere = True
            self._look_soon(line)

    def close(self) -> None:
        """The router ends: who has no worker to wait for is refused, the others may still start."""
        self._ends = True
        for waiter in self.waiters():
            waiter.wake()

    # What is shown

    @property
    def lines(self) -> Iterator[Line]:
        """All lines."""
        return iter(self._lines)

    def waiters(self) -> list[Waiter]:
        """All that wait, each once."""
        return list({waiter: None for line in self._waiting for waiter in line.waiters})

    # Places

    def _make_room(self, waiter: Waiter, places: dict[Line, list[str]], now_s: float) -> None:
        """Take lines without a place for `waiter` out of `places`, or somebody else out of them. ApiError, and nothing changed, if all are
        full or the body cannot be kept."""
        ticket, model = waiter.ticket, waiter.call.model
        if not self.holding.tenant_has_share(waiter):
            raise refusals.tenants_share_is_full(model, self._no_place(places, now_s))
        victims: dict[Line, Waiter] = {}
        for line in list(places):
            has_share = self.holding.has_share(line, waiter)
            if has_share and len(line.queue) < line.max_queued_requests:
                continue
            victim = line.queue.victim_for(ticket, "tickets") if has_share else None
            if victim is None:
                del places[line]
            else:
                victims[line] = victim.owner
        if not places:
            lines = {self._lines.of(target) for target in waiter.call.targets}
            raise refusals.queue_is_full(model, self._no_place(lines, now_s))
        too_many = self.holding.too_many_bytes(waiter)
        if too_many > 0:
            large = large_victim(self._waiting, ticket, too_many)
            if large is None:
                raise refusals.memory_is_full(model, self._no_place(places, now_s))
            self._displace(large, now_s)
        for line, owner in victims.items():
            if line in owner.places and len(line.queue) >= line.max_queued_requests:
                self._displace_from(line, owner, now_s)

    def _no_place(self, lines: Iterable[Line], now_s: float) -> int:
        """A newcomer is refused. When to come back, in s."""
        self._metrics.dropped.labels(names.REASON_QUEUE_FULL).inc()
        return refusals.soonest(self._retry_s(line, now_s) for line in lines)

    def _displace(self, waiter: Waiter, now_s: float) -> None:
        retry_s = refusals.soonest(self._retry_s(line, now_s) for line in waiter.places)
        self._refuse(waiter, refusals.displaced(waiter.call.model, retry_s), DISPLACED)

    def _displace_from(self, line: Line, waiter: Waiter, now_s: float) -> None:
        if len(waiter.places) == 1:
            self._displace(waiter, now_s)
        else:
            line.forget(waiter, is_queued=True)
            self.holding.leave(waiter, line)

    def _enter(self, line: Line, waiter: Waiter, targets: tuple[str, ...], now_s: float) -> None:
        is_first = not line.queue
        is_new_model = any(target not in line.models for target in targets)
        line.enter(waiter, targets)
        self._waiting[line] = None
        if is_new_model:
            line.watch = self._reach.ids(line.models)
            self._note_readiness(line, now_s)
        line.drain.note(now_s, started=0, is_busy=True)
        if line.granted or waiter.is_light:
            line.looks_everywhere = True
            self._look_soon(line)
        if is_first:
            self.on_held(line)

    def _remove(self, waiter: Waiter, popped_from: Line | None = None) -> None:
        now_s = self._clock()
        self.holding.remove(waiter, list(waiter.places))
        for line in list(waiter.places):
            line.forget(waiter, is_queued=line is not popped_from)
            if not line.queue:
                self._waiting.pop(line, None)
                line.drain.note(now_s, started=0, is_busy=False)

    def _refuse(self, waiter: Waiter, error: ApiError, reason: str) -> None:
        self._remove(waiter)
        waiter.state, waiter.error = State.GONE, error
        self._metrics.dropped.labels(reason).inc()
        waiter.wake()

    def _time_out(self, waiter: Waiter, kind: Limit, now_s: float) -> None:
        model, waited_s = waiter.call.model, now_s - waiter.joined_s
        if kind is Limit.DEADLINE:
            self._refuse(waiter, refusals.out_of_time(now_s - waiter.call.arrived_s), names.REASON_DEADLINE)
        elif kind is Limit.NO_ENDPOINT:
            self._refuse(waiter, refusals.no_endpoint(model, waited_s), names.REASON_NO_ENDPOINT)
        else:
            retry_s = refusals.soonest(self._retry_s(line, now_s) for line in waiter.places)
            self._refuse(waiter, refusals.waited_too_long(model, waited_s, retry_s), CODE_QUEUE_TIMEOUT)

    def _reconsider(self, waiter: Waiter) -> None:
        """Its models may be gone from the configuration, its limits others."""
        if all(self._pool.serving(target) is None for target in waiter.call.targets):
            model = waiter.call.model
            self._refuse(waiter, model_not_found(model, sorted(self._pool.models)), names.REASON_NO_ENDPOINT)
        else:
            waiter.wake()

    # Room

    def _note_readiness(self, line: Line, now_s: float) -> None:
        has_changed = False
        for model in line.models:
            is_ready = self._reach.is_usable(model)
            known = line.readiness.get(model)
            if known is None or known[0] != is_ready:
                line.readiness[model] = (is_ready, now_s)
                has_changed = has_changed or known is not None
        if has_changed and line.shortest_timeout_s < MIN_RECHECK_S:
            for waiter in line.waiters:
                waiter.wake()

    def _recheck_s(self) -> float:
        """A limit that begins while somebody sleeps ends no sooner than this, or wakes it: see `_note_readiness`."""
        return max(MIN_RECHECK_S, min(line.shortest_timeout_s for line in self._waiting))

    def _look_soon(self, line: Line) -> None:
        if not self._due:
            asyncio.get_running_loop().call_soon(self._look)
        self._due[line] = None

    def _look(self) -> None:
        due, self._due = self._due, {}
        for line in due:
            if line.queue:
                self._start_some(line)

    def _start_some(self, line: Line) -> None:
        """As many as there is room, in their order."""
        now_s = self._clock()
        self._note_readiness(line, now_s)
        left = self._reach.room_in(line, self._rules, now_s)

        def target_of(ticket: Ticket[Waiter]) -> str | None:
            waiter = ticket.owner
            here = waiter.places[line]
            can = (
                self._reach.is_usable if waiter.is_light else lambda target: left[target][0] > 0 and left[target][1] > 0
            )
            return next((t for t in self._reach.eligible(waiter.call) if t in here and can(t)), None)

        num_started = 0
        while line.num_light or any(requests > 0 and tokens > 0 for requests, tokens in left.values()):
            ticket = line.queue.pop(lambda ticket: target_of(ticket) is not None)
            if ticket is None:
                break
            waiter = ticket.owner
            waiter.target = target_of(ticket)
            if not waiter.is_light:
                left = {model: (number - 1, tokens - waiter.tokens) for model, (number, tokens) in left.items()}
            self._grant(waiter, line)
            num_started += 1
        if num_started:
            line.drain.note(now_s, started=num_started, is_busy=bool(line.queue))
            if line in self._waiting:  # others that share its workers come first next time
                del self._waiting[line]
                self._waiting[line] = None

    def _grant(self, waiter: Waiter, line: Line) -> None:
        self._remove(waiter, popped_from=line)
        waiter.state, waiter.line = State.GRANTED, line
        line.granted += 1
        waiter.wake()

    def _take_back_grant(self, waiter: Waiter) -> Line:
        """It is counted at its worker from now on, or has gone. The line that granted it."""
        line, waiter.line = waiter.line, None
        assert line is not None, "it was granted a start"
        line.granted -= 1
        if line.granted == 0 and line.queue:
            line.looks_everywhere = True
            self._look_soon(line)
        return line

    def _retry_s(self, line: Line, now_s: float) -> int:
        return refusals.retry_after_s(len(line.queue), line.drain.per_s(now_s), line.queue_timeout_s)
