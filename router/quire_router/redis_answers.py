"""Answers that several routers share, in Redis. It is asked for a few milliseconds and then not waited for: a slow or dead Redis is a miss.

    PREFIX{answers}:<key>    one answer, msgpack, expires by itself
    PREFIX{answers}:order    sorted set: key -> when it expires, in ms       PREFIX{answers}:sizes   hash: key -> bytes
    PREFIX{answers}:total    bytes of all

The script keeps the total under its bound: what expires first goes first. The braces keep all in one slot of a Redis cluster.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable

import msgspec
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from quire_contract.telemetry import Trouble, log_event
from quire_router.background import Background
from quire_router.shared_store import SharedStore
from quire_router.stored_answers import StoredAnswer

log = logging.getLogger("quire_router.redis_answers")

READ_S = 0.01
"""That a request waits at most."""
WRITE_S = 2.0
MIN_PAUSE_S, MAX_PAUSE_S = 0.05, 5.0
"""After a read that failed or took too long, nobody reads for so long; twice as long after each further one."""
MAX_READS = 64
"""At a time; more are misses."""
MAX_WRITES = 32
MAX_WRITE_BYTES = 16 * 1024 * 1024
"""Of answers that wait to be written; more are not."""

_PUT = """
local order, sizes, total = KEYS[2], KEYS[3], KEYS[4]
local value, member, size, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local max_bytes, prefix = tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function drop(name)
  local held = redis.call('HGET', sizes, name)
  redis.call('HDEL', sizes, name)
  redis.call('ZREM', order, name)
  redis.call('DEL', prefix .. name)
  if held then redis.call('DECRBY', total, held) end
end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', order, '-inf', now, 'LIMIT', 0, 100)) do drop(name) end
drop(member)
local used = tonumber(redis.call('GET', total) or '0')
local left = 100
while used + size > max_bytes and left > 0 do
  local oldest = redis.call('ZRANGE', order, 0, 0)[1]
  if oldest then drop(oldest) else redis.call('SET', total, 0) end
  used = tonumber(redis.call('GET', total) or '0')
  left = left - 1
end
if used + size > max_bytes then return 0 end
redis.call('SET', KEYS[1], value, 'PX', ttl_ms)
redis.call('ZADD', order, now + ttl_ms, member)
redis.call('HSET', sizes, member, size)
redis.call('INCRBY', total, size)
for _, book in ipairs({order, sizes, total}) do redis.call('PEXPIRE', book, 2 * ttl_ms + 3600000) end
return 1
"""

_DECODER = msgspec.msgpack.Decoder(StoredAnswer)


def _sound(answer: StoredAnswer) -> StoredAnswer | None:
    """The answer; None if its time is no number: it would have no age, and none that is asked for."""
    return answer if math.isfinite(answer.stored_ts) else None


def redis_client(url: str, password: str | None) -> Redis:
    """Connections of its own, for bytes: nobody else waits behind long answers. ValueError for a URL that is none."""
    more = {} if password is None else {"password": password}
    pool = ConnectionPool.from_url(
        url,
        max_connections=MAX_READS + MAX_WRITES,
        socket_timeout=WRITE_S,
        socket_connect_timeout=WRITE_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=False,
        **more,
    )
    return Redis.from_pool(pool)


class RedisAnswers:
    """One for the process. Never raises."""

    def __init__(
        self,
        client: Redis,
        background: Background,
        *,
        clock: Callable[[], float],
        prefix: str = "quire:",
        read_s: float = READ_S,
    ) -> None:
        """`client` gives bytes. `prefix` tells releases that share one Redis apart. `clock` in seconds, monotonic."""
        self._client = client
        self._background = background
        self._clock = clock
        self._read_s = read_s
        self._prefix = f"{prefix}{{answers}}:"
        self._put_script = client.register_script(_PUT)
        self._trouble = Trouble(clock)
        self._no_reads_until_s = float("-inf")
        self._pause_s = MIN_PAUSE_S
        self._num_reads = 0
        self._num_writes = 0
        self._num_write_bytes = 0

    async def get(self, key: bytes) -> StoredAnswer | None:
        """The answer under `key`. None: there is none, or Redis did not say so in time."""
        if self._num_reads >= MAX_READS or self._clock() < self._no_reads_until_s:
            return None
        self._num_reads += 1
        try:
            async with asyncio.timeout(self._read_s):
                data = await self._client.get(self._prefix + key.hex())
            self._pause_s = MIN_PAUSE_S
            return _sound(_DECODER.decode(data)) if isinstance(data, bytes) else None
        except msgspec.DecodeError:
            return None  # another release's form
        except (RedisError, TimeoutError, OSError) as error:
            self._no_reads_until_s = self._clock() + self._pause_s
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
            self._tell("read", error)
            return None
        finally:
            self._num_reads -= 1

    async def connect(self) -> None:
        """Open a connection now: the first request would not wait for it."""
        try:
            async with asyncio.timeout(WRITE_S):
                await self._client.get(self._prefix)
        except (RedisError, TimeoutError, OSError) as error:
            self._tell("connect", error)

    def put(self, key: bytes, answer: StoredAnswer, *, ttl_s: float, max_bytes: int) -> None:
        """Write it in the background, unless too much waits there already. `max_bytes`: of all answers in Redis."""
        size = answer.num_bytes
        ttl_ms = int(ttl_s * 1000)
        if self._num_writes >= MAX_WRITES or self._num_write_bytes + size > MAX_WRITE_BYTES or ttl_ms < 1:
            return
        self._num_writes += 1
        self._num_write_bytes += size
        self._background.start(self._write(key, answer, ttl_ms, max_bytes), "write an answer to Redis")

    async def _write(self, key: bytes, answer: StoredAnswer, ttl_ms: int, max_bytes: int) -> None:
        member, size = key.hex(), answer.num_bytes
        try:
            async with asyncio.timeout(WRITE_S):
                await self._put_script(
                    keys=[self._prefix + name for name in (member, "order", "sizes", "total")],
                    args=[msgspec.msgpack.encode(answer), member, size, ttl_ms, max_bytes, self._prefix],
                )
        except (RedisError, TimeoutError, OSError) as error:
            self._tell("write", error)
        finally:
            self._num_writes -= 1
            self._num_write_bytes -= size

    def _tell(self, what: str, error: Exception) -> None:
        if self._trouble.is_news(f"{what} {type(error).__name__}"):
            log_event(log, logging.WARNING, "response_cache_redis", action=what, problem=type(error).__name__)


@contextlib.asynccontextmanager
async def answers_in_redis(shared: SharedStore | None, background: Background) -> AsyncIterator[RedisAnswers | None]:
    """Answers that the release's routers share. None: there is no Redis."""
    if shared is None:
        yield None
        return
    client = redis_client(shared.url, shared.password)
    answers = RedisAnswers(client, background, clock=time.monotonic, prefix=shared.prefix)
    background.start(answers.connect(), "connect to Redis")
    try:
        yield answers
    finally:
        await client.aclose()
