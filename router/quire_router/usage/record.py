"""One request as it is written down, and sums of them. Never a prompt or an answer.

Sums are by day (UTC), tenant and model, and hold what bills are made of.
"""

import datetime
from collections.abc import Iterable
from typing import Protocol

import msgspec

GROUPS = ("day", "tenant", "model")
KEPT_DAYS = 400
"""Sums of older days are forgotten."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request of a tenant."""

    id: str
    """Made by the router, once for each request that it took, whatever it had to try."""
    ts: float
    """Unix time in seconds at which it came."""
    tenant: str
    key_id: str
    request_id: str
    """The client's, if it sent one."""
    model: str
    """As the client asked for it."""
    served_model: str
    """Who answered; empty: nobody."""
    path: str
    status: int
    """As the client saw it; 499: it left, 502: a stream broke."""
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt's, those that were in the worker's cache."""
    output_tokens: int
    cost_nano: int
    """In billionths of the currency."""
    duration_ms: int
    cached_answer: str
    """"cache" or "shared" if no worker computed the answer for this request alone."""
    router: str

    @property
    def day(self) -> str:
        """The UTC day, as 2026-11-21."""
        return day_of(self.ts)


Noted = tuple[str, str, float, float, int, int, int, int, str, int, str, str, str, str, int, str]
"""What a request leaves, to be made a record where that is read or sent, as it costs more than all the rest: tenant, model, Unix time at
which it ended, seconds that it took, tokens of the prompt, of those cached, and of the output, cost; router, its number there, key, id,
served model, path, status, and whether its answer was cached."""


class Sums(msgspec.Struct, kw_only=True, gc=False):
    """Of a group of requests."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0

    def count(self, prompt_tokens: int, cached_tokens: int, output_tokens: int, cost_nano: int) -> None:
        """One request more."""
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.output_tokens += output_tokens
        self.cost_nano += cost_nano

    def add(self, other: "Sums") -> None:
        """Sum up."""
        self.requests += other.requests
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.cost_nano += other.cost_nano


SUM_FIELDS = Sums.__struct_fields__
Group = tuple[str, str, str]
"""day, tenant, model."""


class Query(msgspec.Struct, frozen=True, kw_only=True):
    """Which requests."""

    from_day: str
    """The first one, as 2026-11-21."""
    to_day: str
    """The last one."""
    tenant: str | None = None
    model: str | None = None

    def days(self) -> list[str]:
        """All of them, oldest first."""
        first, last = (datetime.date.fromisoformat(day) for day in (self.from_day, self.to_day))
        return [str(first + datetime.timedelta(days=i)) for i in range((last - first).days + 1)]

    def admits(self, tenant: str, model: str) -> bool:
        """Whether a request of this tenant for this model is meant."""
        return self.tenant in (None, tenant) and self.model in (None, model)


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Some records, newest first."""

    records: list[UsageRecord]
    cursor: str | None
    """Where the next page begins; None: this was the last."""


class UsageStore(Protocol):
    """Keeps records and sums."""

    def add(self, noted: Noted) -> None:
        """Write it down, soon, and once however often that has to be tried."""
        ...

    async def sums(self, query: Query) -> list[tuple[Group, Sums]]:
        """By day, tenant and model, sorted. UsageUnavailableError."""
        ...

    async def page(self, query: Query, cursor: str | None, limit: int) -> Page:
        """Records from `cursor` on, at most `limit`. UsageUnavailableError; ValueError for a cursor that is none."""
        ...


class UsageUnavailableError(Exception):
    """The store cannot be asked now."""


def sums_of(records: Iterable[UsageRecord]) -> dict[Group, Sums]:
    """By day, tenant and the model that was asked for."""
    sums: dict[Group, Sums] = {}
    for record in records:
        mine = sums.setdefault((record.day, record.tenant, record.model), Sums())
        mine.count(record.prompt_tokens, record.cached_tokens, record.output_tokens, record.cost_nano)
    return sums


def group_of(noted: Noted) -> Group:
    """What it is summed up with."""
    tenant, model, noted_ts, duration_s, *_ = noted
    return day_of(noted_ts - duration_s), tenant, model


def record_of(noted: Noted) -> UsageRecord:
    """The record."""
    tenant, model, noted_ts, duration_s, prompt, cached, output, cost_nano = noted[:8]
    router, number, key_id, request_id, served_model, path, status, cached_answer = noted[8:]
    return UsageRecord(
        id=f"{router}-{number}",
        ts=noted_ts - duration_s,
        tenant=tenant,
        key_id=key_id,
        request_id=request_id,
        model=model,
        served_model=served_model,
        path=path,
        status=status,
        prompt_tokens=prompt,
        cached_tokens=cached,
        output_tokens=output,
        cost_nano=cost_nano,
        duration_ms=round(duration_s * 1000),
        cached_answer=cached_answer,
        router=router,
    )


def day_of(ts: float) -> str:
    """The UTC day of a Unix time."""
    return str(datetime.datetime.fromtimestamp(ts, datetime.UTC).date())
