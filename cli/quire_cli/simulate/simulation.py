"""The simulation: events in the order of time.

    arrival -> router's choice, or held -> worker's steps -> first token, end -> room for who is held
    every interval, and when a queue begins: the autoscaler -> replicas load, serve, drain

Deterministic: the same load, settings and seed give the same outcome.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Generic, Protocol

from quire_cli.simulate.fleet import ColdStart, Fleet, Phase, W
from quire_cli.simulate.job import Told
from quire_cli.simulate.outcome import Point, Record
from quire_cli.simulate.request import Request
from quire_cli.simulate.scaler import Scaler, Scaling
from quire_contract.demand_report import EDGE_MIN_S
from quire_contract.router_settings import AdmissionSettings


class Router(Protocol[W]):
    """What the simulation needs of a router, fast or exact."""

    @property
    def workers(self) -> Sequence[W]: ...

    def join(self, worker: W, now_s: float) -> None: ...

    def leave(self, worker: W) -> None: ...

    def changed(self, worker: W, now_s: float) -> None: ...

    def refresh(self) -> None: ...

    def room_of(self, worker: W, now_s: float) -> int: ...

    def has_room(self, now_s: float) -> bool: ...

    def pick(self, request: Request, now_s: float) -> W: ...


class Parts(Protocol[W]):
    """Workers and the router of one fidelity."""

    now_s: float
    """Set before anything else hears of an event."""

    @property
    def told(self) -> Told: ...

    @property
    def router(self) -> Router[W]: ...

    def make(self, number: int) -> W: ...


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is simulated, beside the load."""

    rules: AdmissionSettings
    scaling: Scaling
    cold_start: ColdStart
    replicas: int
    """At the beginning."""
    request_s: float
    """What a request costs outside the engine: added to its time to first token."""
    max_num_seqs: int
    point_s: float
    """Between two points of the course."""
    seed: int = 0


class Simulation(Generic[W]):
    """One run."""

    def __init__(self, setting: Setting, parts: Parts[W], requests: Iterable[Request]) -> None:
        self._setting, self._parts = setting, parts
        self._router, self.told = parts.router, parts.told
        self._arrivals = iter(requests)
        self._events: list[tuple[float, int, W]] = []
        """(due_s, number, worker); one that is no longer due then is passed over."""
        self._held: deque[tuple[float, Request]] = deque()
        """(since when, who), oldest first."""
        self.record = Record()
        self.told.first, self.told.done = self._on_first, self._on_done
        self.fleet = Fleet(parts.make, setting.cold_start, setting.seed, self._on_ready, self._on_leave)
        self.scaler = Scaler(setting.scaling, self.fleet, self.told, setting.max_num_seqs)
        self._next_decision_s = setting.scaling.interval_s if setting.scaling.policy is not None else inf
        self._next_edge_s = 0.0
        self._turned_s = 0.0
        """When there was a worker again, or none any more."""
        self._next_point_s = setting.point_s
        self._point_arrivals = 0
        self._point_firsts: list[float] = []

    def run(self) -> None:
        """Until the last request has its answer, or gave up."""
        self.fleet.begin(self._setting.replicas, 0.0)
        arrival = next(self._arrivals, None)
        events = self._events
        now_s = 0.0
        while True:
            arrival_s = inf if arrival is None else arrival.at_s
            event_s = events[0][0] if events else inf
            other_s = min(self._next_decision_s, self._next_point_s, self.fleet.next_ready_s)
            if arrival is None and event_s == inf and not self._held:
                break
            now_s = self._parts.now_s = min(arrival_s, event_s, other_s)
            if other_s <= now_s:
                self._other(now_s)
            elif event_s <= now_s:
                self._advance(now_s)
            else:
                assert arrival is not None
                self._arrive(arrival, now_s)
                arrival = next(self._arrivals, None)
        self.fleet.close(now_s)
        self._point(now_s)

    # ---- requests

    def _arrive(self, request: Request, now_s: float) -> None:
        self.record.arrive(now_s)
        self.record.num_prompt += request.prompt
        self._point_arrivals += 1
        if not self._held and self._router.workers and self._router.has_room(now_s):
            self.scaler.waits.add(now_s, 0.0)
            self._send(request, now_s)
            return
        self._expire(now_s)
        if len(self._held) >= self._setting.rules.max_queued_requests:
            self.record.num_dropped += 1
            return
        self._held.append((now_s, request))
        self.record.num_held += 1
        self.record.held_most = max(self.record.held_most, len(self._held))
        if len(self._held) == 1 and self._setting.scaling.on_edge:
            self._next_decision_s = min(self._next_decision_s, max(now_s, self._next_edge_s))
            self._next_edge_s = self._next_decision_s + EDGE_MIN_S

    def _send(self, request: Request, now_s: float) -> None:
        worker = self._router.pick(request, now_s)
        was_s = worker.due_s
        worker.add(request, now_s)
        self._router.changed(worker, now_s)
        if worker.due_s != was_s:
            heapq.heappush(self._events, (worker.due_s, worker.number, worker))

    def _advance(self, now_s: float) -> None:
        _, _, worker = heapq.heappop(self._events)
        if worker.due_s != now_s:
            return
        worker.advance(now_s)
        self._router.changed(worker, now_s)
        if worker.due_s < inf:
            heapq.heappush(self._events, (worker.due_s, worker.number, worker))
        elif worker.load == 0:
            self.fleet.settle(worker, now_s)
        if self._held:
            self._start_some(worker, now_s)

    def _start_some(self, worker: W, now_s: float) -> None:
        """Who is held goes on, as far as this worker makes room."""
        room = self._router.room_of(worker, now_s)
        while room > 0 and self._held and self._router.workers:
            self._expire(now_s)
            if self._held:
                since_s, request = self._held.popleft()
                self.scaler.waits.add(now_s, now_s - since_s)
                self._send(request, now_s)
            room = min(room - 1, self._router.room_of(worker, now_s))

    def _expire(self, now_s: float) -> None:
        """Who waited too long gives up. The two limits follow each other as in the router's `time_limit`: who waited for the first worker
        may then wait for room."""
        rules = self._setting.rules
        longest_s = rules.queue_timeout_s if self._router.workers else rules.no_endpoint_timeout_s
        most_s = rules.queue_timeout_s + rules.no_endpoint_timeout_s
        while self._held:
            joined_s = self._held[0][0]
            if min(max(joined_s, self._turned_s) + longest_s, joined_s + most_s) >= now_s:
                return
            since_s, _ = self._held.popleft()
            self.record.num_dropped += 1
            self.scaler.waits.add(now_s, now_s - since_s)

    def _on_first(self, request: Request, now_s: float) -> None:
        ttft_s = now_s - request.at_s + self._setting.request_s
        self.record.ttft[request.number] = ttft_s
        self.scaler.first_tokens.add(now_s, ttft_s)
        self._point_firsts.append(ttft_s)

    def _on_done(self, request: Request, now_s: float) -> None:
        record, number = self.record, request.number
        record.done[number] = 1
        record.num_output += request.output
        if request.output > 1:
            since_s = request.at_s + record.ttft[number] - self._setting.request_s
            record.itl[number] = (now_s - since_s) / (request.output - 1)

    # ---- replicas

    def _on_leave(self, worker: W) -> None:
        self._router.leave(worker)
        if not self._router.workers:
            self._turned_s = self._parts.now_s

    def _on_ready(self, worker: W, now_s: float) -> None:
        if not self._router.workers:
            self._turned_s = now_s
        self._router.join(worker, now_s)
        if self._held:
            self._start_some(worker, now_s)

    def _other(self, now_s: float) -> None:
        if self.fleet.next_ready_s <= now_s:
            self.fleet.start_due(now_s)
        if self._next_decision_s <= now_s:
            self._expire(now_s)
            self._router.refresh()
            since_s = self._held[0][0] if self._held else None
            self.scaler.decide(len(self._held), since_s, len(self.record.arrived), now_s)
            self._next_decision_s = now_s + self._setting.scaling.interval_s
        if self._next_point_s <= now_s:
            self._expire(now_s)
            self._router.refresh()
            self._point(now_s)
            self._next_point_s = now_s + self._setting.point_s

    def _point(self, now_s: float) -> None:
        workers = [r.worker for r in self.fleet.replicas if r.phase is not Phase.LOADING]
        firsts = sorted(self._point_firsts)
        point = Point(
            at_s=now_s,
            wanted=self.fleet.wanted,
            ready=self.fleet.num(Phase.READY),
            existing=len(self.fleet.replicas),
            held=len(self._held),
            queued=sum(worker.num_waiting for worker in workers),
            running=sum(worker.num_running for worker in workers),
            arrivals=self._point_arrivals,
            ttft_p95_s=firsts[int(0.95 * (len(firsts) - 1))] if firsts else None,
        )
        self.record.points.append(point)
        self._point_arrivals, self._point_firsts = 0, []
