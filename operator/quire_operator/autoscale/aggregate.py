"""From what each router says to what is asked of one service. Pure; this module must not know HTTP, time or clusters.

The rules are those of `quire_contract.demand_report`: what only one router knows is summed, what workers told every router counts once
(of the router that knows most), a latency is the largest. Where a router of the set is silent, late or has just begun, the rest is a
lower bound: good enough to add a replica, never to take one away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quire_contract.demand_report import DemandReport, ServiceDemand
from quire_operator.autoscale.policy import Metric
from quire_operator.autoscale.signal import Demand, Signal, WorkerLoad

STALE_S = 5.0
"""A report that is older than this, in seconds, says nothing any more. Listeners ask every second."""
SETTLE_S = 3.0
"""So long, in seconds, a router that has just begun may not have heard of all its workers (quire_contract.load_report.LOST_AFTER_S)."""
MAX_NAMED = 3
_LATENCIES: Mapping[Metric, str] = {
    "QueueWait": "queue_wait_p95_s",
    "TimeToFirstToken": "ttft_p95_s",
    "InterTokenLatency": "inter_token_p95_s",
}


@dataclass(frozen=True, kw_only=True)
class RouterState:
    """What is known of one router of the set."""

    name: str
    """Of its pod or process."""
    report: DemandReport | None = None
    """Its last report; None: none came yet."""
    age_s: float = float("inf")
    """How long ago the report came."""
    boot_age_s: float = 0.0
    """How long this start of the router is known; without a report, how long it is asked."""
    trouble: str = ""
    """Why the last question got no answer; empty: it got one, or has not ended."""
    is_leaving: bool = False
    """It was told to end: that it falls silent is no reason to wait for it."""

    @property
    def is_fresh(self) -> bool:
        """Its report says how things are now."""
        return self.report is not None and self.age_s <= STALE_S

    @property
    def is_settled(self) -> bool:
        """It has been up for long enough to know its workers."""
        return self.boot_age_s >= SETTLE_S


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Demand of one service at one moment."""

    demand: Demand | None
    """Of the routers that answer; None: none that knows the service does."""
    is_known: bool
    """All routers are in it. False: `demand` is what there is at least."""
    is_settling: bool = False
    """It is not known only because routers have just begun: no failure, it will pass."""
    age_s: float = float("inf")
    """Of the oldest report, in seconds."""
    trouble: str = ""
    """For a person: why it is not known."""


@dataclass(frozen=True, kw_only=True)
class ScaleState:
    """A service's replicas as they are."""

    replicas: int
    """What /scale says."""
    ready: int
    """Those that serve, those that drain excluded."""
    loading: int = 0
    """Those that exist or are asked for, and do not serve yet; those that are about to be lost included."""
    created_s: float = 0.0
    """When the service was made; Unix time in seconds."""
    is_forced_active: bool = False
    """Somebody asked that it counts as called."""


def reading_of(service: str, routers: Sequence[RouterState]) -> Reading:
    """What is asked of `service` ("namespace/name") at all routers together."""
    counted = [state for state in routers if state.is_fresh or not state.is_leaving]
    if not counted:
        return Reading(demand=None, is_known=False, trouble="the release has no router that runs")
    heard = [
        (state, told)
        for state in counted
        if state.is_fresh and state.report is not None and (told := state.report.services.get(service)) is not None
    ]
    age_s = max((state.age_s for state in counted), default=float("inf"))
    demand = _sum(heard) if heard else None
    late = [state for state in counted if not state.is_fresh]
    new = [state for state in counted if not state.is_settled and not state.is_leaving]
    if new and not any(state.is_settled for state in late):
        return Reading(
            demand=demand, is_known=False, is_settling=True, age_s=age_s, trouble=f"{_named(new)} began just now"
        )
    if late:
        return Reading(demand=demand, is_known=False, age_s=age_s, trouble=_why(late))
    if demand is None:
        trouble = "no router knows the service yet (its name may be another's, or routers refuse their configuration)"
        return Reading(demand=None, is_known=False, age_s=age_s, trouble=trouble)
    return Reading(demand=demand, is_known=True, age_s=age_s)


def signal_of(demand: Demand | None, state: ScaleState, num_failures: int) -> Signal:
    """One reading, for `decide`. Without a demand nothing is known; at zero replicas there is no use of KV to know."""
    if demand is None:
        return Signal(
            readings={},
            num_failures=num_failures,
            replicas=state.replicas,
            ready=state.ready,
            loading=state.loading,
            is_forced_active=state.is_forced_active,
        )
    no_kv: frozenset[Metric] = frozenset({"KvUse"} if state.ready == 0 and "KvUse" not in demand.readings else ())
    return Signal(
        readings=demand.readings,
        idle=demand.idle | no_kv,
        num_failures=num_failures,
        replicas=state.replicas,
        ready=state.ready,
        loading=state.loading,
        capacity=demand.capacity,
        kv_used_tokens=demand.kv_used_tokens,
        kv_tokens_per_replica=demand.kv_tokens_per_replica,
        arrivals_per_s=demand.arrivals_per_s,
        is_forced_active=state.is_forced_active,
    )


def has_new_arrivals(before: Demand | None, now: Demand | None) -> bool:
    """Whether a request came between two readings, as far as the same starts of the same routers tell."""
    if before is None or now is None:
        return False
    return any(count > before.arrivals.get(key, count) for key, count in now.arrivals.items())


def _sum(heard: Sequence[tuple[RouterState, ServiceDemand]]) -> Demand:
    told = [demand for _, demand in heard]
    workers = max(told, key=lambda one: one.queued + one.running)
    most = max(told, key=lambda one: (one.reporting, one.kv_used_tokens))
    held = sum(one.held for one in told)
    running = workers.running + sum(one.unreported for one in told)
    readings: dict[Metric, float] = {
        "Demand": float(held + workers.queued + running),
        "QueueLength": float(held + workers.queued),
    }
    idle = set[Metric]()
    for metric, field in _LATENCIES.items():
        values = [value for one in told if (value := getattr(one, field)) is not None]
        if values:
            readings[metric] = max(values)
        else:
            idle.add(metric)
    has_kv = most.reporting > 0 and most.kv_total_tokens > 0
    if has_kv:
        readings["KvUse"] = most.kv_used_tokens / most.kv_total_tokens
    elif most.endpoints == 0:
        idle.add("KvUse")
    return Demand(
        held=held,
        queued=workers.queued,
        running=running,
        held_oldest_s=max(one.held_oldest_s for one in told),
        arrivals_per_s=sum(one.arrivals_per_s for one in told),
        readings=readings,
        idle=frozenset(idle),
        capacity=max(1, most.max_num_seqs // most.reporting) if most.reporting and most.max_num_seqs else None,
        kv_used_tokens=most.kv_used_tokens if has_kv else None,
        kv_tokens_per_replica=most.kv_total_tokens // most.reporting if has_kv else None,
        workers=_workers(told),
        arrivals={
            (state.name, state.report.boot): demand.arrivals for state, demand in heard if state.report is not None
        },
    )


def _workers(told: Iterable[ServiceDemand]) -> dict[str, WorkerLoad]:
    """By pod; of what several routers say of one, the most."""
    merged: dict[str, WorkerLoad] = {}
    for demand in told:
        for pod, one in demand.workers.items():
            known = merged.get(pod, WorkerLoad(in_flight=0))
            merged[pod] = WorkerLoad(
                in_flight=max(known.in_flight, one.in_flight),
                kv_used_tokens=max(known.kv_used_tokens, one.kv_used_tokens),
                is_draining=known.is_draining or one.draining,
            )
    return merged


def _why(late: Sequence[RouterState]) -> str:
    told = [f"{state.name}: {state.trouble}" if state.trouble else state.name for state in late[:MAX_NAMED]]
    more = f" and {len(late) - MAX_NAMED} more" if len(late) > MAX_NAMED else ""
    return f"no answer from {'; '.join(told)}{more}"


def _named(routers: Sequence[RouterState]) -> str:
    more = f" and {len(routers) - MAX_NAMED} more" if len(routers) > MAX_NAMED else ""
    return ", ".join(state.name for state in routers[:MAX_NAMED]) + more
