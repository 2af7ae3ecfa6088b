"""The endpoints and what is known of each: readiness, load, prefill speed, and the requests we have there.

State only: what changes it (probes, events, the proxy) lives elsewhere, and so does every socket. Where the list of endpoints comes from
(a file, the cluster's API) is not known here either: a source calls `EndpointPool.apply` with a whole configuration.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import msgspec

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry, RouteEntry, RouterConfig
from quire_router.revision_stats import RevisionCounts, RevisionStats
from quire_router.scoring import DECODE_MS_PER_REQUEST, DEFAULT_MS_PER_TOKEN

REPORT_LAG_S = 0.05
"""A reservation counts as unreported until a report arrives this much later: the request had to travel and be admitted first."""
RECENT_LIFE_S = 30.0
"""Time in which the memory of work given to an endpoint falls to 1/e."""
SPEED_MIN_TOKENS = 64
SPEED_WEIGHT = 0.1
SPEED_RANGE_MS = (0.002, 20.0)
SPEED_SAME = 2.0
"""Prefill speeds within this ratio of the pool's are taken as the pool's: noise must not send all cold prompts to one endpoint."""


class Reservation:
    """One request at one endpoint: counted there from `with` to its end, whatever ends it."""

    __slots__ = ("closed", "endpoint", "idle_start", "started_s", "uncached", "waiting")

    def __init__(self, endpoint: "Endpoint", uncached: int, now_s: float) -> None:
        self.endpoint = endpoint
        self.uncached = uncached
        self.started_s = now_s
        self.waiting = True
        self.closed = False
        self.idle_start = endpoint.is_idle()

    def __enter__(self) -> Self:
        self.endpoint.admit(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.endpoint.release(self)

    def first_byte(self, now_s: float, *, is_stream: bool) -> None:
        """The answer begins: the prompt is prefilled. A stream's delay tells the endpoint's speed, if nothing else ran there."""
        self.endpoint.prefilled(self)
        if is_stream and self.idle_start and self.uncached >= SPEED_MIN_TOKENS:
            self.endpoint.learn_speed((now_s - self.started_s) * 1000.0 / self.uncached)


class Endpoint:
    """One worker. Times are seconds of the process's monotonic clock."""

    def __init__(self, entry: EndpointEntry, counts: RevisionCounts) -> None:
        self.entry = entry
        self.counts = counts
        """Of the revision that it runs."""
        self.id = entry.id
        self.url = entry.url.rstrip("/")
        self.ready = False
        self.why_not = "not probed yet"
        """Why it is not ready, in words."""
        self.draining = False
        self.digest: str | None = None
        """Of its prompt bundle. None: not fetched, or it has none."""
        self.max_model_len: int | None = None
        """Prompt and output together, in tokens, as its bundle says."""
        self.synced = False
        """Whether the KV index holds its events without a gap."""
        self.report: LoadReport | None = None
        self.report_s = -math.inf
        self.num_in_flight = 0
        self.num_unanswered = 0
        """Of those in flight: no byte of their answer has come."""
        self.pending_tokens = 0
        """Uncached tokens of our requests there that have not answered yet."""
        self.on_suspect: Callable[[], None] = lambda: None
        """Called when something suggests that it is gone, so that its prober looks at once."""
        self.on_change: Callable[[Endpoint], None] = lambda _: None
        """Called when requests may have got room here, or lost it: by readiness, a load report or the end of a request."""
        self._unreported: deque[Reservation] = deque()
        self._ms_per_token: float | None = None
        self._recent_ms = 0.0
        self._recent_s = 0.0

    # Readiness

    @property
    def is_usable(self) -> bool:
        """Whether new requests may come here."""
        return self.ready and not self.draining

    def mark_ready(self) -> None:
        """A probe succeeded."""
        self.ready, self.why_not, self.draining = True, "", False
        self.on_change(self)

    def mark_not_ready(self, why: str) -> None:
        """A probe failed."""
        self.ready, self.why_not = False, why
        self.on_change(self)

    def mark_down(self, why: str) -> None:
        """Somebody else than its prober found it gone: out of the pool at once, until a probe succeeds."""
        self.mark_not_ready(why)
        self.on_suspect()

    def mark_draining(self) -> None:
        """It said so itself: no new requests, though what runs there goes on."""
        self.draining = True
        self.on_change(self)
        self.on_suspect()

    def restarted(self) -> None:
        """Its engine began a new life at the same address: its prompt bundle may be another one."""
        self.digest = None
        self.forget_report()
        self.on_suspect()

    # Load

    def take_report(self, report: LoadReport, now_s: float) -> None:
        """The newest load report; it also says whether the endpoint is draining."""
        self.report, self.report_s, self.draining = report, now_s, report.draining
        self.on_change(self)

    def forget_report(self) -> None:
        """The event socket is gone: fall back to what we know ourselves."""
        self.report, self.report_s = None, -math.inf

    def is_idle(self) -> bool:
        """Nothing of ours runs there, and nothing else is reported."""
        report = self.report
        return self.num_in_flight == 0 and (report is None or report.running + report.waiting == 0)

    def load(self) -> tuple[int, int]:
        """(requests running or waiting, uncached tokens to prefill) there: reported, plus ours that no report can include yet."""
        report = self.report
        if report is None:
            return self.num_in_flight, self.pending_tokens
        self._prune_reported()
        tokens = sum(r.uncached for r in self._unreported if r.waiting)
        return report.running + report.waiting + len(self._unreported), report.uncached_tokens + tokens

    def admit(self, reservation: Reservation) -> None:
        """Count a request. Only `Reservation` calls this."""
        self.num_in_flight += 1
        self.num_unanswered += 1
        self.pending_tokens += reservation.uncached
        self._unreported.append(reservation)
        if len(self._unreported) > 2 * self.num_in_flight + 16:
            self._prune_reported()
        work_ms = reservation.uncached * (self.learnt_ms_per_token or DEFAULT_MS_PER_TOKEN) + DECODE_MS_PER_REQUEST
        self._recent_ms = self.recent_ms(reservation.started_s) + work_ms
        self._recent_s = reservation.started_s

    def prefilled(self, reservation: Reservation) -> None:
        """Its prompt is no longer waiting. Only `Reservation` calls this."""
        if reservation.waiting:
            reservation.waiting = False
            self.num_unanswered -= 1
            self.pending_tokens -= reservation.uncached

    def release(self, reservation: Reservation) -> None:
        """The request is over. Only `Reservation` calls this."""
        self.prefilled(reservation)
        reservation.closed = True
        self.num_in_flight -= 1
        self.on_change(self)

    def recent_ms(self, now_s: float) -> float:
        """Work given lately, in ms, decaying."""
        return self._recent_ms * math.exp((self._recent_s - now_s) / RECENT_LIFE_S)

    # Speed

    @property
    def learnt_ms_per_token(self) -> float | None:
        """Prefill cost as it reports it, else as learnt from its answers; None before the first of either."""
        report = self.report
        if report is not None and report.prefill_tokens_per_s > 0:
            return _in_range(1000.0 / report.prefill_tokens_per_s)
        return self._ms_per_token

    def learn_speed(self, ms_per_token: float) -> None:
        """One measurement; bounded and averaged, so that a stall does not brand the endpoint."""
        sample = _in_range(ms_per_token)
        known = self._ms_per_token
        self._ms_per_token = sample if known is None else known + SPEED_WEIGHT * (sample - known)

    def _prune_reported(self) -> None:
        limit_s = self.report_s - REPORT_LAG_S
        kept = [r for r in self._unreported if not r.closed and r.started_s > limit_s]
        if len(kept) != len(self._unreported):
            self._unreported = deque(kept)


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a new configuration did to the pool."""

    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]


class EndpointPool:
    """All endpoints by id and by model name. An entry with another address is a new endpoint: nothing learnt of the old one holds."""

    def __init__(self, stats: RevisionStats) -> None:
        self._stats = stats
        self._by_id: dict[str, Endpoint] = {}
        self._by_model: dict[str, tuple[Endpoint, ...]] = {}
        self._weights: dict[str, Mapping[str, int]] = {}
        self._routes: dict[str, RouteEntry] = {}
        self._names: tuple[str, ...] = ()
        self.num_services = 0
        """InferenceServices that are served or have endpoints."""
        self.on_change: Callable[[Endpoint], None] = lambda _: None
        """What every endpoint calls, as `Endpoint.on_change` says; to be set before the first configuration."""
        self.is_configured = False
        """Whether there was a configuration yet: before it, an unknown name may still become known."""

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def models(self) -> tuple[str, ...]:
        """Names that requests may use, routes included, whether anything is ready or not."""
        return self._names

    def get(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint of that id now."""
        return self._by_id.get(endpoint_id)

    def serving(self, model: str) -> tuple[Endpoint, ...] | None:
        """The endpoints of a model, ready or not. None: nobody declared such a model (it may be a route)."""
        return self._by_model.get(model)

    def weights(self, model: str) -> Mapping[str, int] | None:
        """How the model's requests are split among revisions. None: they are not."""
        return self._weights.get(model)

    def route(self, name: str) -> RouteEntry | None:
        """The route of that name."""
        return self._routes.get(name)

    def answering(self, name: str) -> tuple[Endpoint, ...]:
        """Every endpoint that may answer for a model or a route, ready or not."""
        route = self._routes.get(name)
        models = [name] if route is None else [*(target.model for target in route.targets), *route.fallbacks]
        return tuple({e.id: e for model in models for e in self._by_model.get(model, ())}.values())

    def has_usable(self, model: str) -> bool:
        """Whether a worker of the model takes requests."""
        return any(endpoint.is_usable for endpoint in self._by_model.get(model, ()))

    def apply(self, config: RouterConfig) -> Changes:
        """Make the pool what the configuration says. Endpoints at an unchanged address keep their state."""
        entries = {entry.id: entry for entry in config.endpoints}
        removed = tuple(e for e in self._by_id.values() if not _is_same_place(e.entry, entries.get(e.id)))
        for endpoint in removed:
            del self._by_id[endpoint.id]
            endpoint.ready, endpoint.why_not = False, "removed from the configuration"
        added = []
        for entry in config.endpoints:
            counts = self._stats.of(entry.service, entry.revision)
            known = self._by_id.get(entry.id)
            if known is not None:
                known.entry, known.counts = entry, counts
            else:
                made = self._by_id[entry.id] = Endpoint(entry, counts)
                made.on_change = self.on_change
                added.append(made)
        self._stats.forget_unused({(entry.service, entry.revision) for entry in config.endpoints})
        self._index(config)
        return Changes(added=tuple(added), removed=removed)

    def _index(self, config: RouterConfig) -> None:
        by_model: dict[str, list[Endpoint]] = {model.name: [] for model in config.models}
        for entry in config.endpoints:
            for name in entry.models:
                by_model[name].append(self._by_id[entry.id])
        self._by_model = {name: tuple(endpoints) for name, endpoints in by_model.items()}
        split = {service.id: service.weights for service in config.services if service.weights}
        self._weights = {model.name: split[model.service] for model in config.models if model.service in split}
        self._routes = {route.model: route for route in config.routes}
        self._names = (*self._by_model, *self._routes)
        services = {*(m.service for m in config.models), *(e.service for e in config.endpoints)}
        self.num_services = len({*services, *(service.id for service in config.services)} - {""})
        self.is_configured = True


def _is_same_place(old: EndpointEntry, new: EndpointEntry | None) -> bool:
    """Whether both are one worker at one address, whatever it serves and whomever it belongs to."""
    if new is None:
        return False
    return old == msgspec.structs.replace(new, models=old.models, service=old.service, revision=old.revision)


def _in_range(ms_per_token: float) -> float:
    low, high = SPEED_RANGE_MS
    return min(max(ms_per_token, low), high)


def pooled_speed(endpoints: Sequence[Endpoint]) -> dict[str, float]:
    """Prefill cost in ms a token for each endpoint: the mean of what was learnt, but its own where that differs clearly."""
    learnt = [speed for e in endpoints if (speed := e.learnt_ms_per_token) is not None]
    mean = sum(learnt) / len(learnt) if learnt else DEFAULT_MS_PER_TOKEN
    speeds = {}
    for endpoint in endpoints:
        own = endpoint.learnt_ms_per_token
        same = own is None or mean / SPEED_SAME <= own <= mean * SPEED_SAME
        speeds[endpoint.id] = mean if same or own is None else own
    return speeds
