"""Usage in this process: records up to a bound, the oldest going first, and sums of all of them. Ends with the process."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from quire_router.usage.record import (
    KEPT_DAYS,
    Group,
    Noted,
    Page,
    Query,
    Sums,
    UsageRecord,
    day_of,
    group_of,
    record_of,
)

_DAY_S = 86_400
_MAX_UNCOUNTED = 256
"""Requests that are summed up at once: together they cost less than each by itself."""


class MemoryUsage:
    """One for the process."""

    def __init__(self, max_records: Callable[[], int]) -> None:
        """`max_records`: asked each time, as the configuration may change."""
        self._max_records = max_records
        self._noted: deque[Noted] = deque()
        self._num_dropped = 0
        self._uncounted: list[Noted] = []
        self._sums: dict[Group, Sums] = {}
        self._day, self._day_from, self._day_to = "", 0, 0
        """The day that was counted last, and its bounds in Unix time."""

    def add(self, noted: Noted) -> None:
        """Write it down."""
        self._uncounted.append(noted)
        if len(self._uncounted) >= _MAX_UNCOUNTED:
            self._count()

    async def sums(self, query: Query) -> list[tuple[Group, Sums]]:
        """By day, tenant and model, sorted."""
        self._count()
        return await asyncio.to_thread(_sums, list(self._sums.items()), query)

    async def page(self, query: Query, cursor: str | None, limit: int) -> Page:
        """Records from `cursor` on: the number, since the process began, of the first one."""
        self._count()
        last = self._num_dropped + len(self._noted) - 1
        at = last if cursor is None else int(cursor)
        return await asyncio.to_thread(_page, tuple(self._noted), last, at, query, limit)

    def _count(self) -> None:
        """Sum up what has come, and keep no more of it than may be kept."""
        known_tenant: str | None = None
        known_model: str | None = None
        sums = Sums()
        for noted in self._uncounted:
            tenant, model, noted_ts, duration_s, prompt, cached, output, cost_nano = noted[:8]
            came_ts = noted_ts - duration_s
            if not self._day_from <= came_ts < self._day_to:
                self._day_from = int(came_ts // _DAY_S) * _DAY_S
                self._day, self._day_to = day_of(came_ts), self._day_from + _DAY_S
                self._forget()
                known_model = None
            if model != known_model or tenant != known_tenant:
                known_tenant, known_model = tenant, model
                sums = self._sums.setdefault((self._day, tenant, model), Sums())
            sums.count(prompt, cached, output, cost_nano)
        self._noted += self._uncounted
        self._uncounted.clear()
        excess = len(self._noted) - max(1, self._max_records())
        if excess > 0:
            self._num_dropped += excess
            for _ in range(excess):
                self._noted.popleft()

    def _forget(self) -> None:
        days = sorted({group[0] for group in self._sums})[-KEPT_DAYS:]
        self._sums = {group: sums for group, sums in self._sums.items() if group[0] >= days[0]}


def _sums(sums: Iterable[tuple[Group, Sums]], query: Query) -> list[tuple[Group, Sums]]:
    """In a thread: of many tenants and days streams would wait for it."""
    return sorted(
        (group, msgspec.structs.replace(of_group))
        for group, of_group in sums
        if query.from_day <= group[0] <= query.to_day and query.admits(group[1], group[2])
    )


def _page(noted: Sequence[Noted], last: int, at: int, query: Query, limit: int) -> Page:
    """In a thread: all records may have to be looked at. `last` is the number of the last one, `at` that of the first of the page."""
    found: list[UsageRecord] = []
    for one in itertools.islice(reversed(noted), max(0, last - at), None):
        day, tenant, model = group_of(one)
        if query.admits(tenant, model) and query.from_day <= day <= query.to_day:
            if len(found) == limit:
                return Page(records=found, cursor=str(at))
            found.append(record_of(one))
        at -= 1
    return Page(records=found, cursor=None)
