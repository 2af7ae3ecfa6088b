"""Usage in Redis, for all routers: a stream of records, bounded, and hashes with the sums of each day.

    add -> queue in memory (bounded) -> one task -> batches, each written by one script and once, however often it is sent

While Redis is away the queue grows up to its bound; beyond it records are dropped and counted.
"""

import asyncio
import datetime
import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import redis.asyncio

from quire_contract.telemetry import log_event
from quire_router.redis_link import RedisAwayError, RedisLink
from quire_router.usage.record import (
    KEPT_DAYS,
    SUM_FIELDS,
    Group,
    Noted,
    Page,
    Query,
    Sums,
    UsageRecord,
    UsageUnavailableError,
    record_of,
    sums_of,
)

log = logging.getLogger("quire_router.usage")

FLUSH_S = 0.2
BATCH = 200
SCAN = 1000
MAX_SCANNED = 200_000
"""Records that one page looks at, at most, for those that are wanted."""
_SEEN_S = 7 * 86_400
_DECODER = msgspec.json.Decoder(UsageRecord)
_SEPARATOR = "\x1f"

# KEYS: stream, last batch of this router, one hash for each day. ARGV: batch, records to keep, seconds to keep sums, number of records, the
# records; then triples: number of the day's key, field, what to add.
_WRITE = """
if tonumber(redis.call('GET', KEYS[2]) or '-1') >= tonumber(ARGV[1]) then return 0 end
local at = 4 + tonumber(ARGV[4])
for i = 5, at do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'record', ARGV[i]) end
while at < #ARGV do
  local key = KEYS[tonumber(ARGV[at + 1])]
  redis.call('HINCRBY', key, ARGV[at + 2], ARGV[at + 3])
  redis.call('EXPIRE', key, ARGV[3])
  at = at + 3
end
redis.call('SET', KEYS[2], ARGV[1], 'EX', seen_for_s)
return 1
""".replace("seen_for_s", str(_SEEN_S))


class RedisUsage:
    """One for the process."""

    def __init__(
        self,
        link: RedisLink,
        *,
        router_id: str,
        prefix: str,
        max_records: Callable[[], int],
        max_queued: Callable[[], int],
        on_drop: Callable[[], None],
    ) -> None:
        self._link = link
        self._prefix = f"{prefix}{{usage}}:"
        self._seen_key = f"{self._prefix}seen:{router_id}"
        self._max_records = max_records
        self._max_queued = max_queued
        self._on_drop = on_drop
        self._queue: deque[Noted] = deque()
        self._batch: list[UsageRecord] = []
        self._batch_number = 0
        self._script = link.script(_WRITE)

    @property
    def num_queued(self) -> int:
        """Records that are not in Redis yet."""
        return len(self._queue) + len(self._batch)

    def add(self, noted: Noted) -> None:
        """Write it down soon."""
        if self.num_queued >= self._max_queued():
            self._on_drop()
            return
        self._queue.append(noted)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            try:
                while self.num_queued and await self.write():
                    pass
            except Exception:  # a loop that must live: nothing would be written any more
                log.exception("writing usage failed; the same records are tried again")

    async def write(self) -> bool:
        """Write one batch. Whether it was; if not, the same one is next."""
        if not self._batch:
            self._batch = [record_of(self._queue.popleft()) for _ in range(min(BATCH, len(self._queue)))]
            self._batch_number += 1
        keys, args = self._written(self._batch)

        async def work(client: "redis.asyncio.Redis") -> Any:
            return await self._script(keys=keys, args=args, client=client)

        try:
            await self._link.call(work, is_awaited=False)
        except RedisAwayError:
            return False
        self._batch = []
        return True

    async def close(self) -> None:
        """Write what is left, if Redis takes it."""
        while self.num_queued:
            if not await self.write():
                log_event(log, logging.ERROR, "usage_lost", records=self.num_queued)
                return

    async def sums(self, query: Query) -> list[tuple[Group, Sums]]:
        """By day, tenant and model, sorted."""
        found: dict[Group, Sums] = {}
        for day in query.days():
            values = await self._call(lambda client, day=day: client.hgetall(self._day_key(day)))  # type: ignore[misc]
            await asyncio.to_thread(_add_day, found, day, values, query)
        return sorted(found.items())

    async def page(self, query: Query, cursor: str | None, limit: int) -> Page:
        """Records from `cursor` on: the stream's id of the first one."""
        at = "+" if cursor is None else _checked(cursor)
        found: list[UsageRecord] = []
        num_scanned = 0
        while True:
            count = min(SCAN, max(limit, 1) * 2)
            entries = await self._call(lambda client, at=at, n=count: client.xrevrange(self._stream, at, "-", count=n))  # type: ignore[misc]
            for entry_id, fields in entries:
                if len(found) == limit:
                    return Page(records=found, cursor=entry_id)
                record = _DECODER.decode(fields["record"])
                if query.from_day <= record.day <= query.to_day and query.admits(record.tenant, record.model):
                    found.append(record)
            num_scanned += len(entries)
            if len(entries) < count:
                return Page(records=found, cursor=None)
            at = "(" + entries[-1][0]
            if _written_s(entries[-1][0]) < _midnight_s(query.from_day):
                return Page(records=found, cursor=None)  # what was written before that day came before it, too
            if num_scanned >= MAX_SCANNED:
                return Page(records=found, cursor=entries[-1][0])

    @property
    def _stream(self) -> str:
        return self._prefix + "records"

    def _day_key(self, day: str) -> str:
        return f"{self._prefix}day:{day}"

    def _written(self, records: list[UsageRecord]) -> tuple[list[str], list[Any]]:
        sums = sums_of(records)
        days = sorted({day for day, _, _ in sums})
        keys = [self._stream, self._seen_key, *(self._day_key(day) for day in days)]
        args: list[Any] = [
            self._batch_number,
            max(1, self._max_records()),
            KEPT_DAYS * 86_400,
            len(records),
            *map(msgspec.json.encode, records),
        ]
        for (day, tenant, model), of_group in sums.items():
            for name in SUM_FIELDS:
                if number := getattr(of_group, name):
                    args += [days.index(day) + 3, _SEPARATOR.join((tenant, model, name)), number]
        return keys, args

    async def _call(self, work: Callable[["redis.asyncio.Redis"], Any]) -> Any:
        try:
            return await self._link.call(work, is_awaited=False)
        except RedisAwayError:
            raise UsageUnavailableError("Redis is away; usage cannot be read now.") from None


def _add_day(found: dict[Group, Sums], day: str, values: Mapping[str, str], query: Query) -> None:
    """In a thread: of thousands of tenants streams would wait for it."""
    for field, value in values.items():
        tenant, model, name = field.split(_SEPARATOR)
        if query.admits(tenant, model):
            sums = found.setdefault((day, tenant, model), Sums())
            setattr(sums, name, getattr(sums, name) + int(value))


def _checked(cursor: str) -> str:
    milliseconds, _, number = cursor.partition("-")
    if not (milliseconds.isdecimal() and number.isdecimal() and len(cursor) <= 40):
        raise ValueError("is no cursor of an earlier answer")
    return cursor


def _written_s(entry_id: str) -> float:
    return int(entry_id.partition("-")[0]) / 1000


def _midnight_s(day: str) -> float:
    return datetime.datetime.fromisoformat(day).replace(tzinfo=datetime.UTC).timestamp()
