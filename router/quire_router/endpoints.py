"""What is known of an endpoint: readiness, load, prefill speed, and the requests we have there.

State only: what changes it (probes, events, the proxy) lives elsewhere, and so does every socket.
"""

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from quire_contract import names
from quire_contract.load_report import LOST_AFTER_S, LoadReport
from quire_contract.router_config import (
    EndpointEntry,
)
from quire_contract.router_settings import FaultSettings
from quire_router import ejection
from quire_router.latency import StreamLatency
from quire_router.revision_stats import RevisionCounts
from quire_router.scoring import ADAPTER_LOAD_MS, ADAPTER_SWAP_MS, DECODE_MS_PER_REQUEST, DEFAULT_MS_PER_TOKEN
from quire_router.warmup import Warmup

REPORT_LAG_S = 0.05
"""A reservation counts as unreported until a report arrives this much later: the request had to travel and be admitted first."""
RECENT_LIFE_S = 30.0
"""Time in which the memory of work given to an endpoint falls to 1/e."""
ADAPTER_ON_ITS_WAY_S = 2.0
"""An adapter that was asked for counts as loaded for so long, until a report says it: a burst for one stays together."""
SPEED_MIN_TOKENS = 64
SPEED_WEIGHT = 0.1
SPEED_RANGE_MS = (0.002, 20.0)
SPEED_SAME = 2.0
"""Prefill speeds within this ratio of the pool's are taken as the pool's: noise must not send all cold prompts to one endpoint."""


class Reservation:
    """One request at one endpoint: counted there from `with` (or `take` before it) to its end, whatever ends it."""

    __slots__ = ("closed", "endpoint", "idle_start", "is_taken", "is_trial", "started_s", "uncached", "waiting")

    def __init__(self, endpoint: "Endpoint", uncached: int, now_s: float) -> None:
        self.endpoint = endpoint
        self.uncached = uncached
        self.started_s = now_s
        self.waiting = True
        self.closed = False
        self.is_taken = False
        self.idle_start = endpoint.is_idle()
        self.is_trial = False
        """Whether it decides about the endpoint's return, unless another one does already."""

    def take(self) -> None:
        """Count it now: `with` comes later, in another task. Whoever calls this gives it back if that never begins."""
        if not self.is_taken:
            self.is_taken = True
            self.endpoint.admit(self)

    def give_back(self) -> None:
        """Count it no longer. Does nothing to one that is over, or was never counted."""
        if self.is_taken and not self.closed:
            self.endpoint.release(self)

    def __enter__(self) -> Self:
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_back()

    def first_byte(self, now_s: float, *, is_stream: bool) -> None:
        """The answer begins: the prompt is prefilled. A stream's delay tells the endpoint's speed, if nothing else ran there."""
        self.endpoint.prefilled(self)
        if is_stream and self.idle_start and self.uncached >= SPEED_MIN_TOKENS:
            self.endpoint.learn_speed((now_s - self.started_s) * 1000.0 / self.uncached)


class Use(Protocol):
    """A connection with something of ours in flight, among an endpoint's `uses` until its owner ends it."""

    def lose(self) -> object:
        """The endpoint is found to have lost it: wake whoever waits for it."""


class Endpoint:
    """One worker. Times are seconds of the process's monotonic clock.

    Its fields are slots: that is where `native/sources/usual_choice.cpp` reads them."""

    __slots__ = (
        "_adapters_asked", "_ms_per_token", "_recent_ms", "_recent_s", "_unreported", "_unreported_tokens", "counts", "digest",
        "draining", "entry", "health", "heard_s", "id", "last_turn", "latency", "learnt_ms_per_token", "life", "max_model_len",
        "num_in_flight", "num_unanswered", "on_change", "on_gone", "on_suspect", "pending_tokens", "ready", "report", "report_s", "synced",
        "trial", "url", "uses", "warmup", "why_not",
    )  # fmt: skip

    def __init__(self, entry: EndpointEntry, counts: RevisionCounts) -> None:
        self.entry = entry
        self.counts, self.latency = counts, StreamLatency()
        """Of the revision that it runs; of the streams of its service: one for all of that."""
        self.id, self.url = entry.id, entry.url.rstrip("/")
        self.ready, self.warmup = False, Warmup()
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
        self.on_suspect: Callable[[], None] = lambda: None
        """Called when something suggests that it is gone, so that its prober looks at once."""
        self.on_gone: Callable[[], None] = lambda: None
        """Called when whatever it holds may be lost, though no event may tell."""
        self.life: str | None = None
        """The epoch that it reported last: another one is another process, which never failed us. None: it reports none."""
        self.heard_s = -math.inf
        """When it reported last, whatever became of its event socket since."""
        self.health = ejection.Health()
        self.trial: Reservation | None = None
        """The request that decides whether it comes back, after it was left out of the choice."""
        self.uses: set[Use] = set()
        self.on_change: Callable[[Endpoint], None] = lambda _: None
        """Called when requests may have got room here, or lost it: by readiness, a load report or the end of a request."""
        self._begin_load()

    def _begin_load(self) -> None:
        self.num_in_flight = 0
        self.num_unanswered = 0
        """Of those in flight: no byte of their answer has come."""
        self.pending_tokens = 0
        """Uncached tokens of our requests there that have not answered yet."""
        self._unreported: dict[Reservation, None] = {}
        self._unreported_tokens = 0
        """Uncached ones of the unreported requests that have not answered yet."""
        self._recent_ms = self._recent_s = 0.0
        self.last_turn = 0
        """Number of the router's latest choice that fell on it."""
        self._adapters_asked: dict[str, float] = {}
        """Adapter -> when a request for it went there last; those of the configuration only."""
        self.learnt_ms_per_token: float | None = None
        """Prefill cost as it reports it, else as learnt from its answers; None before the first of either."""
        self._ms_per_token: float | None = None
        """As learnt from its answers."""

    # Readiness

    @property
    def is_usable(self) -> bool:
        """Whether new requests may come here."""
        return self.ready and not self.draining

    def mark_ready(self, now_s: float = -math.inf) -> None:
        """A probe succeeded."""
        self.warmup.ready(now_s)
        self.ready, self.why_not, self.draining = True, "", False
        self.on_change(self)

    def mark_not_ready(self, why: str) -> None:
        """It answers no probe in time, or sleeps."""
        self.ready, self.why_not = False, why
        self.warmup.not_ready()
        self.on_change(self)

    def mark_gone(self, why: str) -> None:
        """It cannot be reached, or says that it cannot serve: whoever answers here next may be another process."""
        self.mark_not_ready(why)
        self.on_gone()  # after it: nothing is placed here from now on, and a request that just was had left its trace

    def mark_down(self, why: str) -> None:
        """Somebody else than its prober found it gone: out of the pool at once, until a probe succeeds."""
        self.mark_gone(why)
        self.on_suspect()

    def mark_draining(self) -> None:
        """It said so itself: no new requests, though what runs there goes on."""
        self.draining = True
        self.on_change(self)
        self.on_suspect()

    def restarted(self) -> None:
        """Its engine began a new life at the same address: its prompt bundle may be another one."""
        self.digest = None
        self.warmup.begin()
        self._adapters_asked.clear()
        self.forget_report()
        self.on_suspect()

    # Adapters

    def adapter_wait_ms(self, adapter: str, now_s: float) -> float:
        """What a request for the adapter (empty: for none) waits until it is loaded, in ms."""
        if not adapter:
            return 0.0
        report = self.report
        if report is not None and adapter in report.adapters:
            return 0.0
        if now_s - self._adapters_asked.get(adapter, -math.inf) < ADAPTER_ON_ITS_WAY_S:
            return 0.0
        is_full = report is not None and 0 < report.max_adapters <= len(report.adapters)
        return ADAPTER_SWAP_MS if is_full else ADAPTER_LOAD_MS

    def note_adapter(self, adapter: str, now_s: float) -> None:
        """A request for the adapter goes there."""
        if adapter:
            self._adapters_asked[adapter] = now_s

    # Load

    def take_report(self, report: LoadReport, now_s: float) -> None:
        """The newest load report; it also says whether the endpoint is draining, or sleeps."""
        was_asleep = self.report is not None and self.report.asleep
        self.report, self.report_s, self.draining = report, now_s, report.draining
        self.heard_s, self.life = now_s, report.epoch
        if self._unreported:
            limit_s = now_s - REPORT_LAG_S
            self._unreported = {one: None for one in self._unreported if one.started_s > limit_s}
            self._unreported_tokens = sum(one.uncached for one in self._unreported if one.waiting)
        speed = report.prefill_tokens_per_s
        self.learnt_ms_per_token = _in_range(1000.0 / speed) if speed > 0 else self._ms_per_token
        if report.asleep and self.ready:
            self.mark_not_ready(names.REASON_ASLEEP)
        elif was_asleep and not report.asleep:
            self.on_suspect()  # its probe tells at once that it is awake
        self.on_change(self)

    def forget_report(self) -> None:
        """The event socket is gone: fall back to what we know ourselves."""
        self.report, self.report_s = None, -math.inf
        self.learnt_ms_per_token = self._ms_per_token

    def fresh_report(self, now_s: float) -> LoadReport | None:
        """The newest report. None: there is none, or it is too old to be believed."""
        return None if now_s - self.report_s > LOST_AFTER_S else self.report

    def is_idle(self) -> bool:
        """Nothing of ours runs there, and nothing else is reported."""
        report = self.report
        return self.num_in_flight == 0 and (report is None or report.running + report.waiting == 0)

    def load(self) -> tuple[int, int]:
        """(requests running or waiting, uncached tokens to prefill) there: reported, plus ours that no report can include yet."""
        report = self.report
        if report is None:
            return self.num_in_flight, self.pending_tokens
        num_known = report.running + report.waiting
        return num_known + len(self._unreported), report.uncached_tokens + self._unreported_tokens

    def admit(self, reservation: Reservation) -> None:
        """Count a request. Only `Reservation` calls this."""
        uncached, started_s = reservation.uncached, reservation.started_s
        self.num_in_flight += 1
        if reservation.is_trial and self.trial is None:
            self.trial = reservation
        self.num_unanswered += 1
        self.pending_tokens += uncached
        if started_s > self.report_s - REPORT_LAG_S:
            self._unreported[reservation] = None
            self._unreported_tokens += uncached
        work_ms = uncached * (self.learnt_ms_per_token or DEFAULT_MS_PER_TOKEN) + DECODE_MS_PER_REQUEST
        self._recent_ms = self._recent_ms * math.exp((self._recent_s - started_s) / RECENT_LIFE_S) + work_ms
        self._recent_s = started_s

    def prefilled(self, reservation: Reservation) -> None:
        """Its prompt is no longer waiting. Only `Reservation` calls this."""
        if reservation.waiting:
            reservation.waiting = False
            self.num_unanswered -= 1
            self.pending_tokens -= reservation.uncached
            if reservation in self._unreported:
                self._unreported_tokens -= reservation.uncached

    def release(self, reservation: Reservation) -> None:
        """The request is over. Only `Reservation` calls this."""
        if reservation.waiting:
            self.prefilled(reservation)
        reservation.closed = True
        self._unreported.pop(reservation, None)
        self.num_in_flight -= 1
        if self.trial is reservation:
            self.trial = None
        self.on_change(self)

    def recent_ms(self, now_s: float) -> float:
        """Work given lately, in ms, decaying."""
        return self._recent_ms * math.exp((self._recent_s - now_s) / RECENT_LIFE_S)

    # Faults

    def note_failure(self, started_s: float, now_s: float, settings: FaultSettings) -> bool:
        """A request that was sent at `started_s` failed by the endpoint's fault. Whether it is left out of the choice for that."""
        was, self.health = self.health, ejection.after_failure(self.health, started_s, now_s, settings)
        return self.health.num_ejections > was.num_ejections or self.health.is_ejected > was.is_ejected

    def note_success(self, started_s: float) -> None:
        """A request that was sent at `started_s` was answered."""
        health = self.health
        if health.failures or health.is_ejected:  # else it changes nothing
            self.health = ejection.after_success(health, started_s)

    def lose(self) -> int:
        """It is as good as dead though its connections stand: whoever waits for one goes on elsewhere. How many there were."""
        lost = tuple(self.uses)
        for use in lost:
            use.lose()
        return len(lost)

    # Speed

    def learn_speed(self, ms_per_token: float) -> None:
        """One measurement; bounded and averaged, so that a stall does not brand the endpoint."""
        sample = _in_range(ms_per_token)
        known = self._ms_per_token
        self._ms_per_token = sample if known is None else known + SPEED_WEIGHT * (sample - known)
        if self.report is None or self.report.prefill_tokens_per_s <= 0:
            self.learnt_ms_per_token = self._ms_per_token


def _in_range(ms_per_token: float) -> float:
    low, high = SPEED_RANGE_MS
    return min(max(ms_per_token, low), high)


def pooled_speed(own: Sequence[float | None]) -> list[float]:
    """Prefill cost in ms a token for each endpoint of a model, from what was learnt of each: the mean, but its own where that differs
    clearly."""
    learnt = [speed for speed in own if speed is not None]
    total = 0.0
    for speed in learnt:  # one after the other, as the C++ does: newer Pythons' `sum` adds otherwise
        total += speed
    mean = total / len(learnt) if learnt else DEFAULT_MS_PER_TOKEN
    low, high = mean / SPEED_SAME, mean * SPEED_SAME
    return [mean if speed is None or low <= speed <= high else speed for speed in own]
