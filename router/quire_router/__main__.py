"""quire-router: parse, validate, build, run. The only module of the router that reads the environment or builds the graph."""

import asyncio
import contextlib
import gc
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import aiohttp
import uvloop
import zmq
import zmq.asyncio
from aiohttp import http_parser, http_writer, web

from quire_contract import names
from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.client import KubeClient
from quire_contract.openai.limits import Limits
from quire_contract.router_config import RouterConfigError
from quire_contract.routing import PATHS_BY_MODEL, PATHS_WITH_PROMPT
from quire_contract.telemetry import configure_logging, log_event
from quire_contract.trust import Trust, TrustError
from quire_router.access import Access
from quire_router.answer import layered
from quire_router.app import Handler, RouterApp
from quire_router.assembly import build_layers
from quire_router.calls import CallHandler, CallSettings
from quire_router.config import RouterSettings, parse_args
from quire_router.endpoints import Endpoint, EndpointPool
from quire_router.internal import InternalApi
from quire_router.keeper import EndpointKeeper, FileSource
from quire_router.kube_source import KubernetesSource
from quire_router.kv_follower import KvFollower
from quire_router.kv_index import KvIndex, SentIndex
from quire_router.kv_subscriber import KvSubscriber
from quire_router.live_config import LiveConfig
from quire_router.loop_lag import LoopLag
from quire_router.metrics import RouterMetrics
from quire_router.picker import Picker
from quire_router.prober import Prober
from quire_router.prompts import PromptReader
from quire_router.proxy import Proxy, Timeouts
from quire_router.retry_budget import RetryBudget
from quire_router.revision_stats import RevisionStats
from quire_router.server import RouterServer
from quire_router.worker_client import WorkerClient

log = logging.getLogger("quire_router")

UPSTREAM_KEEPALIVE_S = 15.0
"""Idle connections to workers; shorter than any worker's own limit, so that a request rarely meets one that is just being closed."""
BACKLOG = 2048
MAX_ZMQ_SOCKETS = 32_768
"""An endpoint takes up to four; ZMQ's own limit of 1023 would end at 250 workers."""
GC_THRESHOLDS = (20_000, 20, 50)
"""Requests make few cycles: the collector's defaults would look for them several times in each."""


def main() -> None:
    """Console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: handing it to a pool only costs
    env_keys = [key for key in [os.environ.get(names.ENV_API_KEY, "")] if key]
    settings = parse_args(sys.argv[1:], env_keys)
    configure_logging(level=settings.log_level, process="router")
    logging._srcfile = None  # lines do not show the calling function; the logging documentation advises this for speed
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # nor these
    try:
        require_c_extensions()
        trust = None if settings.trust_dir is None else Trust.read(settings.trust_dir)
        access = kube_access(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, trust, access))
    except (TrustError, RouterConfigError, KubeAccessError, MissingExtensionError, OSError) as error:
        print(f"quire-router: {error}", file=sys.stderr)
        sys.exit(2)


class MissingExtensionError(RuntimeError):
    """aiohttp without its compiled parts would be several times slower."""


def require_c_extensions() -> None:
    """MissingExtensionError unless aiohttp's parser and writer are the compiled ones."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy or (
        http_writer._serialize_headers is http_writer._py_serialize_headers
    ):
        raise MissingExtensionError(
            "aiohttp runs without its C extension; install the aiohttp wheel for this platform, and unset AIOHTTP_NO_EXTENSIONS"
        )


def kube_access(settings: RouterSettings) -> KubeAccess | None:
    """The way to the API server, if one is to be followed. KubeAccessError says what is missing."""
    if settings.kubeconfig is not None:
        return KubeAccess.from_kubeconfig(settings.kubeconfig, environ=os.environ)
    if not settings.kubernetes:
        return None
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
    return KubeAccess.in_cluster(host=host, port=port) if host and port else KubeAccess.in_cluster()


async def serve(settings: RouterSettings, trust: Trust | None, access: KubeAccess | None) -> None:
    """Run until SIGTERM or SIGINT, then let requests finish. A second signal ends the delay before that."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurry if stop.is_set() else stop).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    async with running(settings, trust, access) as (app, address):
        log_event(log, logging.INFO, "listening", address=address, pid=os.getpid())
        gc.collect()
        gc.freeze()  # what lives for ever need not be looked at again by the collector
        gc.set_threshold(*GC_THRESHOLDS)
        await stop.wait()
        app.draining = True
        delay_s, timeout_s = settings.shutdown_delay_s, settings.shutdown_timeout_s
        log_event(log, logging.INFO, "stopping", delay_s=delay_s, timeout_s=timeout_s)
        if delay_s:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hurry.wait(), delay_s)
    log_event(log, logging.INFO, "stopped")


@contextlib.asynccontextmanager
async def running(
    settings: RouterSettings, trust: Trust | None, access: KubeAccess | None = None
) -> AsyncIterator[tuple[RouterApp, str]]:
    """The whole router, listening; its app and its address "http://host:port". At the end requests may finish."""
    metrics, stats = RouterMetrics(), RevisionStats(boot=secrets.token_hex(8))
    pool, index, sent = EndpointPool(stats), KvIndex(max_blocks=settings.max_index_blocks), SentIndex()
    async with contextlib.AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(settings.tokenizer_threads, "tokenizer"))
        reader = PromptReader(executor)
        session = await stack.enter_async_context(client_session(settings.connect_timeout_s))
        context = zmq.asyncio.Context()
        context.set(zmq.MAX_SOCKETS, MAX_ZMQ_SOCKETS)
        stack.callback(context.destroy, linger=0)
        zmq_trust = None if settings.kv_events_plain else trust

        def watchers(endpoint: Endpoint) -> list[Coroutine[Any, Any, None]]:
            follower = KvFollower(endpoint, index, sent, metrics)
            subscriber = KvSubscriber(endpoint, follower, context, trust=zmq_trust, clock=time.monotonic)
            return [Prober(endpoint, session, reader, trust).run(), subscriber.run()]

        live = LiveConfig()
        keeper = EndpointKeeper(pool, index, sent, reader, watchers, live)
        stack.push_async_callback(keeper.close)
        source = await stack.enter_async_context(source_of(settings, access, keeper))
        loop = asyncio.get_running_loop()
        metrics.config_age_s.set_function(lambda: loop.time() - source.last_contact_s)
        picker = Picker(
            pool=pool,
            index=index,
            sent=sent,
            reader=reader,
            metrics=metrics,
            rng=random.Random(),  # noqa: S311 - breaks ties and splits traffic, guards nothing
            clock=time.monotonic,
            wall_clock=time.time,
        )
        calls = build_calls(settings, trust, pool, picker, metrics, session, live)
        app = RouterApp(
            pool=pool,
            index=index,
            picker=picker,
            others=answered_elsewhere(calls, InternalApi(trust, stats)),
            access=Access(settings.api_keys),
            metrics=metrics,
            clock=time.monotonic,
            started_ts=int(time.time()),
        )
        address = await stack.enter_async_context(listening(app, settings))
        tasks = [asyncio.create_task(source.run()), asyncio.create_task(LoopLag(metrics.loop_lag_s.set).run())]
        stack.push_async_callback(cancel_all, tasks)
        yield app, address


@contextlib.asynccontextmanager
async def source_of(
    settings: RouterSettings, access: KubeAccess | None, keeper: EndpointKeeper
) -> AsyncIterator[FileSource | KubernetesSource]:
    """Where the configuration comes from. A file is applied at once: RouterConfigError if it cannot be used; a cluster may be late."""
    if settings.config is not None:
        file = FileSource(settings.config, keeper)
        await file.load()
        yield file
        return
    assert access is not None, "a router without a file follows a cluster"
    home = settings.release_namespace or access.namespace
    async with KubeClient(access, user_agent="quire-router") as client:
        yield KubernetesSource(
            client,
            keeper,
            release=settings.release,
            home=home,
            namespaces=settings.watch_namespaces or (home,),
            rng=random.Random(),  # noqa: S311 - spreads retries, guards nothing
        )


def answered_elsewhere(calls: CallHandler, internal: InternalApi) -> dict[str, tuple[str, Handler]]:
    """Paths that the app does not answer itself."""
    return {
        **dict.fromkeys(PATHS_WITH_PROMPT | PATHS_BY_MODEL, ("POST", calls.handle)),
        names.PATH_REVISION_STATS: ("GET", internal.revision_stats),
    }


def build_calls(
    settings: RouterSettings,
    trust: Trust | None,
    pool: EndpointPool,
    picker: Picker,
    metrics: RouterMetrics,
    session: aiohttp.ClientSession,
    live: LiveConfig,
) -> CallHandler:
    """What takes calls to workers."""
    proxy = Proxy(
        session=cast(aiohttp.ClientSession, WorkerClient(session)),  # has what a proxy needs of one
        picker=picker,
        budget=RetryBudget(),
        timeouts=Timeouts(
            first_byte=settings.first_byte_timeout_s, answer=settings.answer_timeout_s, idle=settings.idle_timeout_s
        ),
        trust=trust,
        on_retry=metrics.count_retry,
        clock=time.monotonic,
    )
    return CallHandler(
        pool=pool,
        picker=picker,
        source=layered(build_layers(live=live, picker=picker), proxy.answer),
        metrics=metrics,
        settings=CallSettings(
            limits=Limits(max_body_bytes=settings.max_body_bytes),
            keep_key=trust is None and not settings.api_keys,
            log_requests=settings.log_requests,
            idle_timeout_s=settings.idle_timeout_s,
        ),
        clock=time.monotonic,
    )


@contextlib.asynccontextmanager
async def listening(app: RouterApp, settings: RouterSettings) -> AsyncIterator[str]:
    """Accept connections; at the end stop accepting and give running requests their time."""
    server = RouterServer(app.handle, max_body_bytes=settings.max_body_bytes)
    runner = web.ServerRunner(server, shutdown_timeout=settings.shutdown_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def client_session(connect_timeout_s: float) -> AsyncIterator[aiohttp.ClientSession]:
    """Connections to workers: as many as needed, kept alive, answers left as they are."""
    connector = aiohttp.TCPConnector(
        limit=0, keepalive_timeout=UPSTREAM_KEEPALIVE_S, socket_factory=keepalive_socket, use_dns_cache=True
    )
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_s),
        auto_decompress=False,
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield session


def keepalive_socket(address: Any) -> socket.socket:
    """A socket whose other end is missed within 20 s, should it vanish without a word."""
    family, kind, protocol, _name, _address = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 20_000)):
        if hasattr(socket, option):  # Linux
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return made


async def cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel background tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
