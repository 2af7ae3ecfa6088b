"""The autoscaler in simulated time: what routers would report, and the operator's own course of decisions on it."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from quire_cli.simulate.fleet import Fleet, Phase, W
from quire_cli.simulate.job import Told
from quire_cli.simulate.samples import Histogram, percentile
from quire_contract.demand_report import DemandReport, ServiceDemand
from quire_operator.autoscale.aggregate import RouterState, ScaleState, reading_of
from quire_operator.autoscale.course import Course, Memory
from quire_operator.autoscale.policy import Policy

SERVICE = "simulated/service"
BEGINNING_S = 1_767_571_200.0
"""Unix time at which simulations begin, for schedules: Monday, 2026-01-05, 00:00 UTC."""
WINDOW_S = 60.0
"""Latencies are percentiles over so long, as routers report them."""
ARRIVALS_S = 30.0
"""Arrivals per second are over so long."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How a service is scaled."""

    name: str
    policy: Callable[[int | None], Policy] | None
    """Makes the policy from what an engine says that it runs at once. None: the number stays."""
    interval_s: float = 5.0
    """Between two decisions."""
    on_edge: bool = True
    """Decides at once, too, when a queue begins in the router; False: as HPA, by its interval alone."""


class Recent:
    """Observations of the last minute."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque()

    def add(self, at_s: float, value: float) -> None:
        """One."""
        self._seen.append((at_s, value))

    def p95(self, now_s: float) -> float | None:
        """None: there was nothing to see."""
        seen = self._seen
        while seen and seen[0][0] <= now_s - WINDOW_S:
            seen.popleft()
        return percentile(sorted(value for _, value in seen), 0.95) if seen else None


class RecentGaps:
    """The same of gaps between tokens, which are too many to keep: two half windows in turn."""

    def __init__(self, told: Told) -> None:
        self._told = told
        self._before = Histogram()
        self._since_s = 0.0

    def p95(self, now_s: float) -> float | None:
        """None: there was nothing to see."""
        if now_s - self._since_s >= WINDOW_S / 2:
            self._before, self._told.recent_gaps, self._since_s = self._told.recent_gaps, Histogram(), now_s
        seen = self._told.recent_gaps if self._told.recent_gaps.num > self._before.num else self._before
        return seen.percentile(0.95) if seen.num else None


class RecentArrivals:
    """How fast requests came over the last half minute, as routers report it."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque([(0.0, 0)])

    def per_s(self, arrivals: int, now_s: float) -> float:
        """`arrivals` counts those of the whole simulation."""
        seen = self._seen
        seen.append((now_s, arrivals))
        while seen[1][0] <= now_s - ARRIVALS_S and len(seen) > 2:
            seen.popleft()
        since_s, before = seen[0]
        return (arrivals - before) / max(now_s - since_s, 1.0)


class Scaler:
    """Of one simulation."""

    def __init__(self, scaling: Scaling, fleet: Fleet[W], told: Told, max_num_seqs: int) -> None:
        self._scaling, self._fleet = scaling, fleet
        self._max_num_seqs = max_num_seqs
        self._course = Course()
        self._gaps = RecentGaps(told)
        self._arrivals = RecentArrivals()
        self.first_tokens, self.waits = Recent(), Recent()
        """Times to first token, and waits in the router, in seconds."""
        self._sequence = 0
        self.num_changes = 0
        self.reasons: dict[str, int] = {}
        """Of changes."""

    def decide(self, held: int, held_since_s: float | None, arrivals: int, now_s: float) -> None:
        """Look once, and have the fleet made as large as decided."""
        if self._scaling.policy is None:
            return
        demand = self._demand(held, held_since_s, arrivals, now_s)
        self._sequence += 1
        report = DemandReport(
            router="simulated", boot="simulated", sequence=self._sequence, edge=0, ts=now_s, services={SERVICE: demand}
        )
        reading = reading_of(SERVICE, [RouterState(name="simulated", report=report, age_s=0.0, boot_age_s=1e9)])
        fleet = self._fleet
        state = ScaleState(
            replicas=fleet.wanted, ready=fleet.num(Phase.READY), loading=fleet.num(Phase.LOADING), created_s=BEGINNING_S
        )
        policy = self._scaling.policy(None if reading.demand is None else reading.demand.capacity)
        self._course.begin(state, Memory(), BEGINNING_S + now_s)
        view = self._course.step(reading, state, policy, BEGINNING_S + now_s)
        if view.verdict.replicas != fleet.wanted:
            self.num_changes += 1
            self.reasons[view.verdict.reason] = self.reasons.get(view.verdict.reason, 0) + 1
            fleet.scale(view.verdict.replicas, now_s)

    def _demand(self, held: int, held_since_s: float | None, arrivals: int, now_s: float) -> ServiceDemand:
        """What the router would tell."""
        workers = [replica.worker for replica in self._fleet.replicas if replica.phase is not Phase.LOADING]
        ready = self._fleet.num(Phase.READY)
        return ServiceDemand(
            held=held,
            held_oldest_s=0.0 if held_since_s is None else now_s - held_since_s,
            held_without_worker=0 if ready else held,
            queued=sum(worker.num_waiting for worker in workers),
            running=sum(worker.num_running for worker in workers),
            unreported=0,
            arrivals=arrivals,
            arrivals_per_s=self._arrivals.per_s(arrivals, now_s),
            endpoints=len(workers),
            ready_endpoints=ready,
            queue_wait_p95_s=self.waits.p95(now_s),
            ttft_p95_s=self.first_tokens.p95(now_s),
            inter_token_p95_s=self._gaps.p95(now_s),
            kv_used_tokens=sum(worker.kv_used for worker in workers),
            kv_total_tokens=sum(worker.kv_tokens for worker in workers),
            max_num_seqs=self._max_num_seqs * len(workers),
            reporting=len(workers),
        )
