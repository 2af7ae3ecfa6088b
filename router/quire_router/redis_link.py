"""The router's connection to Redis: whether it is there, and calls that never wait for long.

A call that fails or takes too long marks Redis as away; from then on calls fail at once, until a probe in the background is answered.
It must not know what is kept in Redis, and writes neither addresses nor passwords into logs.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from quire_contract.telemetry import log_event

log = logging.getLogger("quire_router.redis")

CALL_S = 0.25
"""Longest wait of a request, once: after it Redis is away and nobody waits."""
BACKGROUND_S = 1.0
"""Longest wait of work that no request waits for."""
PROBE_S = 0.2
MAX_PROBE_S = 5.0
STEADY_S = 5.0
"""Who answers probes but fails again within this time (a full Redis, say) is probed half as often each time."""
MAX_CONNECTIONS = 32
ResultT = TypeVar("ResultT")


class RedisAwayError(Exception):
    """Redis is not there now, or does not answer in time."""


class RedisLink:
    """One for the process."""

    def __init__(self, url: str, password: str | None, on_error: Callable[[], None], *, call_s: float = CALL_S) -> None:
        """`url` as redis://[user:password@]host:port/db, rediss:// or unix://; `password` where the URL has none. ValueError for others.
        `call_s`: longest wait of a request; what nobody waits for has a second, or as long as that."""
        more = {} if password is None else {"password": password}
        self._call_s, self._background_s = call_s, max(call_s, BACKGROUND_S)
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=call_s,
            socket_timeout=self._background_s,
            socket_connect_timeout=self._background_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            **more,
        )
        self._client = redis.asyncio.Redis.from_pool(pool)
        self._on_error = on_error
        self._went_away = asyncio.Event()
        self._probe_s = PROBE_S
        self._back_s = float("-inf")
        self.is_up = True
        """Whether calls are worth trying; true until the first one fails."""

    async def call(
        self, work: Callable[["redis.asyncio.Redis"], Awaitable[ResultT]], *, is_awaited: bool = True
    ) -> ResultT:
        """What `work` gives; `is_awaited`: a request waits for it. RedisAwayError if it fails or takes too long; it may have been done
        nevertheless."""
        if not self.is_up:
            raise RedisAwayError("Redis is away")
        try:
            async with asyncio.timeout(self._call_s if is_awaited else self._background_s):
                return await work(self._client)
        except (RedisError, TimeoutError, OSError) as error:
            self._mark_away(error)
            raise RedisAwayError(f"Redis failed: {type(error).__name__}") from None

    async def run(self) -> None:
        """Look for Redis while it is away, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            if self.is_up:
                self._went_away.clear()
                await self._went_away.wait()
                is_steady = loop.time() - self._back_s > STEADY_S
                self._probe_s = PROBE_S if is_steady else min(2 * self._probe_s, MAX_PROBE_S)
            await asyncio.sleep(self._probe_s)
            try:
                async with asyncio.timeout(self._background_s):
                    await self._client.ping()
            except (RedisError, TimeoutError, OSError):
                continue
            self.is_up = True
            self._back_s = loop.time()
            log_event(log, logging.INFO, "redis_back")

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.aclose()

    def script(self, text: str) -> Any:
        """A script of this text, for `call`: sent by its digest, and as a whole where Redis has forgotten it."""
        return self._client.register_script(text)

    def _mark_away(self, error: Exception) -> None:
        self._on_error()
        if self.is_up:
            self.is_up = False
            self._went_away.set()
            log_event(log, logging.WARNING, "redis_away", error=type(error).__name__)
