"""What is asked of each service, told to whoever scales it: in numbers when it asks, and at once when a queue begins.

Reads the pool and the waiting room; changes neither. It must not know HTTP.
"""

import asyncio
from collections.abc import Callable

from quire_contract.demand_report import EDGE_MIN_S, DemandReport, ServiceDemand
from quire_contract.load_report import LOST_AFTER_S
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.line import Line
from quire_router.waiting_room import WaitingRoom


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

    def _report(self) -> DemandReport:
        now_s = self._clock()
        self._sequence += 1
        endpoints: dict[str, list[Endpoint]] = {}
        for endpoint in self._pool:
            endpoints.setdefault(endpoint.entry.service, []).append(endpoint)
        lines = {line.service: line for line in self._room.lines if line.service}
        self._edge_s = {service: edge_s for service, edge_s in self._edge_s.items() if service in lines}
        services = {
            service: demand_of(line, endpoints.get(service, []), self._room, now_s) for service, line in lines.items()
        }
        return DemandReport(
            router=self._router,
            boot=self._boot,
            sequence=self._sequence,
            edge=self._edge,
            ts=self._wall_clock(),
            services=services,
        )


def demand_of(line: Line, endpoints: list[Endpoint], room: WaitingRoom, now_s: float) -> ServiceDemand:
    """Of one service."""
    held = [waiter for waiter in line.waiters if next(iter(waiter.places)) is line]
    queued = running = unreported = 0
    for endpoint in endpoints:
        report = endpoint.report
        if report is None or now_s - endpoint.report_s > LOST_AFTER_S:
            unreported += endpoint.num_in_flight
        else:
            queued += report.waiting
            running += report.running
            unreported += endpoint.load()[0] - report.waiting - report.running
    return ServiceDemand(
        held=len(held) + line.granted,
        held_oldest_s=max((now_s - waiter.joined_s for waiter in held), default=0.0),
        held_without_worker=sum(room.is_held(waiter) for waiter in held),
        queued=queued,
        running=running,
        unreported=unreported,
        arrivals=line.arrivals.total,
        arrivals_per_s=line.arrivals.per_s(now_s),
        endpoints=len(endpoints),
        ready_endpoints=sum(endpoint.is_usable for endpoint in endpoints),
    )
