"""What is asked of each service, told to whoever scales it: in numbers when it asks, and at once when a queue begins.

Reads the pool and the waiting room; changes neither. It must not know HTTP.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence

from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_contract import names
from quire_contract.demand_report import EDGE_MIN_S, DemandReport, ServiceDemand, WorkerDemand
from quire_contract.load_report import LoadReport
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.latency import StreamLatency
from quire_router.line import Line, Waiter
from quire_router.waiting_room import WaitingRoom

TOLD_SHARE = 0.95
MAX_TOLD_WORKERS = 4096
"""Of one service: more than anybody runs; the sums are over all."""


class Demand:
    """One for the process. `clock` is monotonic, `wall_clock` only dates reports; both in seconds."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        room: WaitingRoom,
        router: str,
        boot: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._room = room
        self._router = router
        self._boot = boot
        self._clock = clock
        self._wall_clock = wall_clock
        self._sequence = 0
        self._edge = 0
        self._edge_s: dict[str, float] = {}
        """Service -> when its last edge was told."""
        self._late: dict[str, asyncio.TimerHandle] = {}
        """Edges that are told a little later, by service."""
        self._asking: set[asyncio.Future[None]] = set()
        self._ends = False

    def note_held(self, line: Line) -> None:
        """A line has its first waiting request."""
        service = line.service
        if not service or service in self._late:
            return
        now_s = self._clock()
        due_s = self._edge_s.get(service, now_s) + EDGE_MIN_S
        if service not in self._edge_s or due_s <= now_s:
            self._tell(service)
        else:
            self._late[service] = asyncio.get_running_loop().call_later(due_s - now_s, self._tell, service)

    async def report(self, since: int | None = None, wait_s: float = 0.0) -> DemandReport:
        """Demand as it is once there was an edge after number `since`, or after `wait_s`. None: at once."""
        if since == self._edge and wait_s > 0 and not self._ends:
            told = asyncio.get_running_loop().create_future()
            self._asking.add(told)
            try:
                async with asyncio.timeout(wait_s):
                    await told
            except TimeoutError:
                pass
            finally:
                self._asking.discard(told)
        return self._report()

    def close(self) -> None:
        """Answer everybody who waits, and nobody waits from now on."""
        self._ends = True
        for timer in self._late.values():
            timer.cancel()
        self._late.clear()
        self._wake()

    def _tell(self, service: str) -> None:
        self._late.pop(service, None)
        self._edge_s[service] = self._clock()
        self._edge += 1
        self._wake()

    def _wake(self) -> None:
        for told in self._asking:
            if not told.done():
                told.set_result(None)

    def sums(self) -> Iterator[tuple[str, int, int]]:
        """Of each service: its id, what is this router's own, what its workers told everybody."""
        now_s = self._clock()
        endpoints = self._endpoints()
        for service, line in self._lines().items():
            queued, running, unreported = requests_at(endpoints.get(service, ()), now_s)
            yield service, len(held_in(line)) + line.granted + line.diverted + unreported, queued + running

    def _lines(self) -> dict[str, Line]:
        return {line.service: line for line in self._room.lines if line.service}

    def _endpoints(self) -> dict[str, list[Endpoint]]:
        """By service."""
        found: dict[str, list[Endpoint]] = {}
        for endpoint in self._pool:
            found.setdefault(endpoint.entry.service, []).append(endpoint)
        return found

    def _report(self) -> DemandReport:
        now_s, lines, endpoints = self._clock(), self._lines(), self._endpoints()
        self._sequence += 1
        self._edge_s = {service: edge_s for service, edge_s in self._edge_s.items() if service in lines}
        is_held = self._room.held_test()
        return DemandReport(
            router=self._router,
            boot=self._boot,
            sequence=self._sequence,
            edge=self._edge,
            ts=self._wall_clock(),
            services={
                service: demand_of(line, endpoints.get(service, ()), self._pool.latency(service), is_held, now_s)
                for service, line in lines.items()
            },
        )


def held_in(line: Line) -> list[Waiter]:
    """Those that wait there, each in one line only."""
    return [waiter for waiter in line.waiters if next(iter(waiter.places)) is line]


def demand_of(
    line: Line,
    endpoints: Sequence[Endpoint],
    latency: StreamLatency | None,
    is_held: Callable[[Waiter], bool],
    now_s: float,
) -> ServiceDemand:
    """Of one service. `is_held` tells whether a request waits for a first worker."""
    held = held_in(line)
    queued, running, unreported = requests_at(endpoints, now_s)
    reports = [report for endpoint in endpoints if (report := endpoint.fresh_report(now_s)) is not None]
    return ServiceDemand(
        held=len(held) + line.granted + line.diverted,
        held_oldest_s=max((now_s - waiter.joined_s for waiter in held), default=0.0),
        held_without_worker=sum(map(is_held, held)) + line.diverted,
        queued=queued,
        running=running,
        unreported=unreported,
        arrivals=line.arrivals.total,
        arrivals_per_s=line.arrivals.per_s(now_s),
        endpoints=len(endpoints),
        ready_endpoints=sum(endpoint.is_usable for endpoint in endpoints),
        queue_wait_p95_s=line.waits.percentile(TOLD_SHARE, now_s),
        ttft_p95_s=None if latency is None else latency.ttft.percentile(TOLD_SHARE, now_s),
        inter_token_p95_s=None if latency is None else latency.inter_token.percentile(TOLD_SHARE, now_s),
        kv_used_tokens=sum(map(kv_used_tokens, reports)),
        kv_total_tokens=sum(report.total_blocks * report.block_size for report in reports),
        max_num_seqs=sum(report.max_num_seqs for report in reports),
        reporting=len(reports),
        workers={e.entry.pod_name: worker_demand(e, now_s) for e in endpoints[:MAX_TOLD_WORKERS]},
    )


def requests_at(endpoints: Sequence[Endpoint], now_s: float) -> tuple[int, int, int]:
    """(queued, running, unreported) at the workers: what they reported, and what they cannot have reported yet."""
    queued = running = unreported = 0
    for endpoint in endpoints:
        report = endpoint.fresh_report(now_s)
        if report is None:
            unreported += endpoint.num_in_flight
        else:
            queued += report.waiting
            running += report.running
            unreported += endpoint.load()[0] - report.waiting - report.running
    return queued, running, unreported


def kv_used_tokens(report: LoadReport) -> int:
    """What requests hold; cached blocks that nobody uses can be had."""
    return max(0, report.total_blocks - report.free_blocks) * report.block_size


def worker_demand(endpoint: Endpoint, now_s: float) -> WorkerDemand:
    """Of one worker."""
    report = endpoint.fresh_report(now_s)
    return WorkerDemand(
        in_flight=endpoint.num_in_flight if report is None else endpoint.load()[0],
        kv_used_tokens=0 if report is None else kv_used_tokens(report),
        draining=endpoint.draining,
        ready=endpoint.is_usable,
    )


class DemandMetrics(Collector):
    """The same for Prometheus, at each scrape. Labels are bounded by the configuration's services."""

    def __init__(self, demand: Demand) -> None:
        self._demand = demand

    def collect(self) -> Iterator[Metric]:
        """The samples now."""
        own = GaugeMetricFamily(
            names.QUIRE_ROUTER_DEMAND_OWN,
            "Requests that only this router knows of: held, or sent and not yet reported. Sum it over routers.",
            labels=["service"],
        )
        workers = GaugeMetricFamily(
            names.QUIRE_ROUTER_DEMAND_WORKERS,
            "Requests in the queues and batches of the workers, as these told every router. Take the largest over routers.",
            labels=["service"],
        )
        for service, by_us, by_workers in self._demand.sums():
            own.add_metric([service], by_us)
            workers.add_metric([service], by_workers)
        yield from (own, workers)
