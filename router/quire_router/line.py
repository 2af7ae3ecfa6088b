"""The requests that wait for the workers of one service, and each of them. State and pure decisions; no sockets, no clock.

How long a request may wait depends on what it waits for, and follows a change of that: while no worker of its models is ready, the limit
for a first worker counts, from when it came or the last worker went; as soon as one is ready, the limit for full workers, from then on.
"""

import asyncio
import math
from collections.abc import Iterable
from enum import Enum

from quire_contract import names
from quire_contract.openai.errors import ApiError
from quire_contract.router_config import ServiceEntry
from quire_contract.router_settings import AdmissionSettings
from quire_router.call import Call
from quire_router.fair_queue import FairQueue, Ticket
from quire_router.latency import SlidingHistogram
from quire_router.meters import Arrivals, DrainRate

LIGHT_PATHS = frozenset({names.PATH_TOKENIZE, names.PATH_DETOKENIZE, names.PATH_COUNT_TOKENS})
"""Calls that a full worker answers as well as any other: they wait for a worker, never for room."""
LIGHT_FLOW = "\0light\0"
"""Before the tenant in the name of a flow of such calls, so that they need not stand behind its others."""
ANONYMOUS = ""
"""The flow of everybody without a tenant: keys that nobody checks would make a client as many tenants as it likes."""


class State(Enum):
    """Of a request that could not start at once."""

    WAITING = "waiting"
    GRANTED = "granted"
    """It may start; whoever waits for it has not noticed yet."""
    STARTED = "started"
    GONE = "gone"
    """It left, or was refused: see `Waiter.error`."""


class Waiter:
    """One request, and what it waits for."""

    __slots__ = (
        "call",
        "error",
        "future",
        "is_light",
        "joined_s",
        "line",
        "places",
        "queue_timeout_s",
        "state",
        "target",
        "ticket",
        "tokens",
    )

    def __init__(self, call: Call, now_s: float, *, tokens: int, is_light: bool) -> None:
        self.call = call
        self.joined_s = now_s
        self.tokens = tokens
        """Uncached tokens of its prompt."""
        self.is_light = is_light
        """It needs a worker, but no room there."""
        self.queue_timeout_s = math.inf if call.fields is None else _positive(call.fields.queue_timeout_s)
        """The client's own limit."""
        self.ticket: Ticket[Waiter]
        self.places: dict[Line, tuple[str, ...]] = {}
        """Where it waits, and for which of its targets there."""
        self.state = State.WAITING
        self.target: str | None = None
        self.line: Line | None = None
        """Where it was granted its start."""
        self.error: ApiError | None = None
        self.future: asyncio.Future[None] | None = None
        """Set while somebody sleeps until something happens to it."""

    def wake(self) -> None:
        """Something happened to it."""
        if self.future is not None and not self.future.done():
            self.future.set_result(None)


def new_waiter(call: Call, now_s: float, *, number: int, tokens: int, output_tokens: int) -> Waiter:
    """One that begins to wait. `tokens`: of its prompt, those to compute. `output_tokens`: what an answer is reckoned at."""
    waiter = Waiter(call, now_s, tokens=tokens, is_light=call.path in LIGHT_PATHS)
    tenant = None if call.tenant is None else call.tenant.entry
    flow = ANONYMOUS if tenant is None else tenant.id
    waiter.ticket = Ticket(
        waiter,
        number=number,
        priority=call.priority,
        flow=LIGHT_FLOW + flow if waiter.is_light else flow,
        weight=1 if tenant is None else tenant.weight,
        cost=tokens + _output(call, output_tokens),
        size_bytes=len(call.body),
    )
    return waiter


def _output(call: Call, usual_tokens: int) -> int:
    """Tokens of the answer, as far as they are to be reckoned with: one that names a great maximum may still end after a word."""
    fields = call.fields
    if fields is None:
        return 1
    return max(1, min(fields.max_completion_tokens or fields.max_tokens or usual_tokens, usual_tokens))


class Line:
    """One for a service; for a model that belongs to none, one for itself."""

    __slots__ = (
        "arrivals",
        "dirty",
        "diverted",
        "drain",
        "granted",
        "hint",
        "hold_timeout_s",
        "key",
        "looks_everywhere",
        "max_queued_requests",
        "models",
        "num_light",
        "queue",
        "queue_timeout_s",
        "readiness",
        "service",
        "waits",
        "watch",
    )

    def __init__(self, key: str, service: str) -> None:
        self.key = key
        self.service = service
        """The service's id; empty: there is none."""
        self.queue: FairQueue[Waiter] = FairQueue()
        self.models: dict[str, int] = {}
        """Model -> how many wait for it."""
        self.num_light = 0
        self.readiness: dict[str, tuple[bool, float]] = {}
        """Model that somebody waits for -> whether a worker of it is ready, and since when."""
        self.granted = 0
        """Requests that may start and have not yet reached their worker's count."""
        self.diverted = 0
        """Requests that are being answered by another service only because no worker of this one is ready."""
        self.drain = DrainRate()
        self.arrivals = Arrivals()
        self.waits = SlidingHistogram()
        """How long those waited that started; who need not wait counts, with 0."""
        self.watch: frozenset[str] = frozenset()
        """Ids of the workers that those who wait may go to."""
        self.dirty: set[str] = set()
        """Those of them that changed since somebody last looked for room."""
        self.hint = 0
        """Which of a model's workers had room when somebody last looked."""
        self.looks_everywhere = False
        """Whether to look for room at all of them next time."""
        self.max_queued_requests = 0
        self.queue_timeout_s = 0.0
        self.hold_timeout_s = 0.0
        """Longest wait for a first ready worker."""

    def limit(self, rules: AdmissionSettings, own: ServiceEntry | None) -> None:
        """What the service says of itself holds, else what the settings say."""
        own = own or ServiceEntry(id=self.service)
        limit, queue_s, hold_s = own.max_queued_requests, own.queue_timeout_s, own.hold_timeout_s
        self.max_queued_requests = rules.max_queued_requests if limit is None else limit
        self.queue_timeout_s = rules.queue_timeout_s if queue_s is None else queue_s
        self.hold_timeout_s = rules.no_endpoint_timeout_s if hold_s is None else hold_s

    def enter(self, waiter: Waiter, targets: tuple[str, ...]) -> None:
        """`waiter` waits here for `targets`."""
        waiter.places[self] = targets
        self.queue.join(waiter.ticket)
        self.num_light += waiter.is_light
        for target in targets:
            self.models[target] = self.models.get(target, 0) + 1

    def forget(self, waiter: Waiter, *, is_queued: bool) -> None:
        """It waits here no longer. `is_queued`: whether its ticket is still in the queue."""
        if is_queued:
            self.queue.leave(waiter.ticket)
        self.num_light -= waiter.is_light
        for target in waiter.places.pop(self):
            self.models[target] -= 1
            if not self.models[target]:
                del self.models[target]
                self.readiness.pop(target, None)

    @property
    def shortest_timeout_s(self) -> float:
        """The shortest wait after which somebody here may have to give up."""
        return min(self.queue_timeout_s, self.hold_timeout_s)

    @property
    def waiters(self) -> list[Waiter]:
        """All that wait here."""
        return [ticket.owner for ticket in self.queue]


def large_victim(lines: Iterable[Line], ticket: Ticket[Waiter], too_many_bytes: int) -> Waiter | None:
    """Who leaves one of `lines` for `ticket`, and is itself at least `too_many_bytes`. None: nobody."""
    for line in lines:
        victim = line.queue.victim_for(ticket, "bytes")
        if victim is not None and victim.size_bytes >= too_many_bytes:
            return victim.owner
    return None


class Limit(Enum):
    """Which of a waiting request's limits ends first."""

    CAPACITY = "capacity"
    NO_ENDPOINT = "no_endpoint"
    DEADLINE = "deadline"


def time_limit(waiter: Waiter) -> tuple[float, Limit]:
    """When `waiter` must stop waiting, as things are, and what for."""
    states = [line.readiness[target] for line, targets in waiter.places.items() for target in targets]
    ready_s = [since_s for is_ready, since_s in states if is_ready]
    queue_timeout_s = max((line.queue_timeout_s for line in waiter.places), default=0.0)
    hold_timeout_s = max((line.hold_timeout_s for line in waiter.places), default=0.0)
    if ready_s:
        limit_s, kind = max(waiter.joined_s, min(ready_s)) + queue_timeout_s, Limit.CAPACITY
    else:
        gone_s = max((since_s for _, since_s in states), default=waiter.joined_s)
        limit_s, kind = max(waiter.joined_s, gone_s) + hold_timeout_s, Limit.NO_ENDPOINT
    limit_s = min(limit_s, waiter.joined_s + queue_timeout_s + hold_timeout_s)  # workers that come and go
    own_s = waiter.joined_s + waiter.queue_timeout_s
    limit_s = min(limit_s, own_s)
    deadline_s = waiter.call.deadline_s
    return (limit_s, kind) if deadline_s is None or deadline_s > limit_s else (deadline_s, Limit.DEADLINE)


def _positive(seconds: float | None) -> float:
    """A client's limit; what is none, the worker will refuse."""
    return seconds if seconds is not None and seconds > 0 else math.inf
