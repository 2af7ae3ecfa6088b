"""Usage in this process: records up to a bound, the oldest going first, and sums of all of them. Ends with the process."""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import msgspec

from quire_router.usage.record import KEPT_DAYS, Group, Page, Query, Sums, UsageRecord


class MemoryUsage:
    """One for the process."""

    def __init__(self, max_records: Callable[[], int]) -> None:
        """`max_records`: asked each time, as the configuration may change."""
        self._max_records = max_records
        self._records: deque[UsageRecord] = deque()
        self._num_dropped = 0
        self._sums: dict[Group, Sums] = {}
        self._day_number, self._day = -1, ""

    def add(self, record: UsageRecord) -> None:
        """Write it down."""
        self._records.append(record)
        while len(self._records) > max(1, self._max_records()):
            self._records.popleft()
            self._num_dropped += 1
        number = int(record.ts // 86_400)
        if number != self._day_number:
            self._day_number, self._day = number, record.day
            self._forget()
        group = (self._day, record.tenant, record.model)
        sums = self._sums.get(group)
        if sums is None:
            sums = self._sums[group] = Sums()
        sums.count(record)

    async def sums(self, query: Query) -> list[tuple[Group, Sums]]:
        """By day, tenant and model, sorted."""
        return await asyncio.to_thread(_sums, list(self._sums.items()), query)

    async def page(self, query: Query, cursor: str | None, limit: int) -> Page:
        """Records from `cursor` on: the number, since the process began, of the first one."""
        last = self._num_dropped + len(self._records) - 1
        at = last if cursor is None else int(cursor)
        return await asyncio.to_thread(_page, tuple(self._records), last, at, query, limit)

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


def _page(records: Sequence[UsageRecord], last: int, at: int, query: Query, limit: int) -> Page:
    """In a thread: all records may have to be looked at. `last` is the number of the last one, `at` that of the first of the page."""
    found: list[UsageRecord] = []
    for record in itertools.islice(reversed(records), max(0, last - at), None):
        if query.admits(record.tenant, record.model) and query.from_day <= record.day <= query.to_day:
            if len(found) == limit:
                return Page(records=found, cursor=str(at))
            found.append(record)
        at -= 1
    return Page(records=found, cursor=None)
