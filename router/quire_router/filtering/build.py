"""The filters of a router, put together. Called by `__main__` only."""

import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import aiohttp

from quire_contract.openai.limits import Limits
from quire_router.filtering.layer import FilterLayer
from quire_router.filtering.moderator import Moderator
from quire_router.filtering.rules import FilterCompiler
from quire_router.filtering.token_ids import TokenReaders
from quire_router.filtering.unknown import UnknownNames
from quire_router.live_config import LiveConfig
from quire_router.metrics import RouterMetrics

FILTER_THREADS = 2
LONG_THREADS = 1
"""For what is long: it takes turns, and leaves most of the processor to the rest."""


@contextlib.asynccontextmanager
async def filter_layer(
    limits: Limits,
    secrets: Mapping[str, str],
    live: LiveConfig,
    compiler: FilterCompiler,
    metrics: RouterMetrics,
    readers: TokenReaders,
) -> AsyncIterator[FilterLayer]:
    """Content filters, with threads for long texts and connections to outside moderators: no redirects, no proxies of the environment."""
    with (
        ThreadPoolExecutor(FILTER_THREADS, "filter") as executor,
        ThreadPoolExecutor(LONG_THREADS, "filter-long") as long,
    ):
        live.follow(UnknownNames().apply)
        async with aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session:
            yield FilterLayer(
                live=live,
                compiler=compiler,
                moderator=Moderator(session, secrets=secrets, clock=time.monotonic),
                executor=executor,
                long_executor=long,
                limits=limits,
                count=metrics.count_filtered,
                readers=readers,
            )
