"""Builds the parts of one fetch from its configuration.

Must not read arguments or environment.
"""

import asyncio
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp

from quire_worker.fetch.cache import ModelCache
from quire_worker.fetch.config import FetchConfig
from quire_worker.fetch.downloader import Downloader
from quire_worker.fetch.errors import FetchError, Reason
from quire_worker.fetch.fetcher import Fetcher
from quire_worker.fetch.hub import HubSource
from quire_worker.fetch.lease import Lease
from quire_worker.fetch.patience import Patience
from quire_worker.fetch.progress import Progress
from quire_worker.fetch.remote import Source
from quire_worker.fetch.s3 import S3Source
from quire_worker.fetch.store import ModelStore
from quire_worker.fetch.web import WebSource
from quire_worker.fetch.web_client import Proxies, WebClient


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How time passes, in seconds."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


_READ_BUFFER_BYTES = 1024 * 1024
_MAX_HEADER_BYTES = 32 * 1024
"""Redirects to content networks carry signatures of several kilobytes."""


@asynccontextmanager
async def open_fetcher(
    config: FetchConfig, progress: Progress, version: str, timing: Timing = Timing()
) -> AsyncIterator[Fetcher]:
    """A fetcher and its connections, while entered. Raises FetchError if the CA file cannot be used."""
    timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=10, sock_read=60)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=_tls(config), limit=config.parallel * 2),
        timeout=timeout,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": f"quire-fetch/{version}"},
        read_bufsize=_READ_BUFFER_BYTES,
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
        trust_env=False,
    )
    async with session:
        web = WebClient(session, Proxies(config.proxies))
        yield _fetcher(config, progress, web, timing)


def make_source(config: FetchConfig, web: WebClient) -> Source:
    """The source that the configuration's URI names."""
    body = config.uri.partition("://")[2]
    match config.scheme:
        case "hf":
            return HubSource(
                web, endpoint=config.hf_endpoint, repository=body, revision=config.revision, token=config.token
            )
        case "s3":
            bucket, _, prefix = body.partition("/")
            return S3Source(
                web,
                bucket=bucket,
                prefix=prefix,
                endpoint=config.s3_endpoint,
                region=config.s3_region,
                credentials=config.s3_credentials,
                now=lambda: datetime.now(UTC),
            )
        case _:
            return WebSource(web, url=config.uri, token=config.token)


def _fetcher(config: FetchConfig, progress: Progress, web: WebClient, timing: Timing) -> Fetcher:
    source = make_source(config, web)
    patience = Patience(
        window_s=config.retry_for_s,
        clock=timing.clock,
        sleep=timing.sleep,
        rng=random.Random(),  # noqa: S311 - spreads retries, guards nothing
        on_trouble=progress.on_trouble,
    )
    lease_path = config.dest.with_name(f".{config.dest.name}.lease")
    return Fetcher(
        source=source,
        store=ModelStore(config.dest, uri=config.uri, revision=config.revision),
        cache=ModelCache(
            config.dest.parent, own=config.dest.name, max_bytes=config.cache_bytes, max_model_bytes=config.max_bytes
        ),
        lease=Lease(lease_path, holder=config.pod_uid, pod=config.pod, clock=timing.clock, sleep=timing.sleep),
        downloader=Downloader(web, source, patience, progress, config.max_bytes),
        patience=patience,
        progress=progress,
        parallel=config.parallel,
    )


def _tls(config: FetchConfig) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if config.ca_file is not None:
        try:
            context.load_verify_locations(cafile=config.ca_file)
        except (OSError, ssl.SSLError) as error:
            message = f"{config.ca_file}: is no file of PEM certificates ({error}); correct the release's CA ConfigMap (key ca.crt)"
            raise FetchError(Reason.UNREACHABLE, message) from None
    return context
