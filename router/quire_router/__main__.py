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
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import uvloop
from aiohttp import http_parser, http_writer, web

from quire_contract import names
from quire_contract.kube.access import KubeAccess, KubeAccessError
from quire_contract.kube.client import KubeClient
from quire_contract.openai.limits import Limits
from quire_contract.router_config import RouterConfigError
from quire_contract.router_settings import FaultSettings
from quire_contract.telemetry import configure_logging, log_event
from quire_contract.trust import Trust, TrustError
from quire_router.access import Access
from quire_router.admin import AdminApi, admin_listening
from quire_router.answer import Source
from quire_router.app import Handler, RouterApp
from quire_router.assembly import Chains, LayerParts, build_waiting_room
from quire_router.calls import CALLED_PATHS, CallHandler, CallSettings
from quire_router.config import RouterSettings, SettingsError, parse_args, with_environment
from quire_router.config_metrics import ConfigMetrics
from quire_router.connections import client_session
from quire_router.demand import Demand, DemandMetrics
from quire_router.endpoint_pool import EndpointPool
from quire_router.filtering.build import filter_layer
from quire_router.filtering.rules import FilterCompiler
from quire_router.filtering.token_ids import TokenReaders
from quire_router.hedging import Hedger
from quire_router.internal import InternalApi
from quire_router.keeper import EndpointKeeper, FileSource
from quire_router.kube_source import KubernetesSource
from quire_router.kv_index import new_indexes
from quire_router.live_config import LiveConfig
from quire_router.loop_lag import LoopLag
from quire_router.mending import Mender
from quire_router.metrics import RouterMetrics
from quire_router.native.library import native
from quire_router.open_files import allow_many_files
from quire_router.picker import Picker
from quire_router.plain_http import plain_http
from quire_router.prompts import PromptReader
from quire_router.proxy import Proxy
from quire_router.retry_budget import RetryBudget
from quire_router.revision_stats import RevisionStats
from quire_router.saved_config import SavedConfig
from quire_router.saving_parts import saving_parts
from quire_router.server import RouterServer
from quire_router.shared_store import shared_store
from quire_router.tenancy import Tenancy, tenancy_of
from quire_router.upstream import Timeouts, Upstreams
from quire_router.watching import Watchers, zmq_context
from quire_router.worker_client import WorkerClient

log = logging.getLogger("quire_router")

BACKLOG = 2048
GC_THRESHOLDS = (20_000, 20, 50)
"""Requests make few cycles: the collector's defaults would look for them several times in each."""


def main() -> None:
    """Console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: handing it to a pool only costs
    env_keys = [key for key in [os.environ.get(names.ENV_API_KEY, "")] if key]
    try:
        settings = with_environment(parse_args(sys.argv[1:], env_keys), os.environ)
    except SettingsError as error:
        print(f"quire-router: {error}", file=sys.stderr)
        sys.exit(2)
    configure_logging(level=settings.log_level, process="router")
    logging._srcfile = None  # lines do not show the calling function; the logging documentation advises this for speed
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # nor these
    try:
        require_c_extensions()
        allow_many_files()
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
    boot = secrets.token_hex(8)
    metrics, stats = RouterMetrics(), RevisionStats(boot=boot)
    pool, (index, sent) = EndpointPool(stats), new_indexes(native(), max_blocks=settings.max_index_blocks)
    async with contextlib.AsyncExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(settings.tokenizer_threads, "tokenizer"))
        reader = PromptReader(executor, native())
        session = await stack.enter_async_context(client_session(settings.connect_timeout_s))
        compiler = FilterCompiler()
        live = LiveConfig(compiler.check)
        shared = shared_store(settings, "" if access is None else access.namespace)
        tenancy = await stack.enter_async_context(
            tenancy_of(
                trust=trust,
                live=live,
                metrics=metrics,
                shared=shared,
                router_id=boot,
                clock=time.monotonic,
                wall_clock=time.time,
                model_length=pool.model_length,
            )
        )
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
        room = build_waiting_room(live=live, pool=pool, picker=picker, metrics=metrics)
        router = os.environ.get(names.ENV_POD_NAME) or socket.gethostname()
        demand = Demand(pool=pool, room=room, router=router, boot=boot, clock=time.monotonic, wall_clock=time.time)
        room.on_held = demand.note_held
        metrics.registry.register(DemandMetrics(demand))
        opened = saving_parts(live=live, pool=pool, metrics=metrics, shared=shared)
        saving = await stack.enter_async_context(opened)
        limits = Limits(max_body_bytes=settings.max_body_bytes)
        filters = await stack.enter_async_context(
            filter_layer(limits, os.environ, live, compiler, metrics, TokenReaders(pool, reader))
        )
        parts = LayerParts(picker=picker, tenancy=tenancy, filters=filters, saving=saving, room=room)
        proxy = build_proxy(settings, trust, pool, picker, metrics, session, live)
        calls = build_calls(settings, trust, pool, picker, metrics, Chains(parts, proxy.answer, live).answer, tenancy)
        watchers = Watchers(
            live=live,
            index=index,
            sent=sent,
            reader=reader,
            metrics=metrics,
            session=session,
            context=zmq_context(stack),
            trust=trust,
            plain_events=settings.kv_events_plain,
        )
        keeper = EndpointKeeper(pool, index, sent, reader, watchers.of, live, last_watcher=watchers.of_removed)
        stack.push_async_callback(keeper.close)
        source = await stack.enter_async_context(source_of(settings, access, keeper))
        loop = asyncio.get_running_loop()
        metrics.config_age_s.set_function(lambda: loop.time() - source.last_contact_s)
        metrics.registry.register(ConfigMetrics(live, source))
        app = RouterApp(
            pool=pool,
            index=index,
            picker=picker,
            others=answered_elsewhere(calls, InternalApi(trust, stats, demand)),
            access=Access(settings.api_keys, tenancy.tenants, time.time),
            metrics=metrics,
            clock=time.monotonic,
            started_ts=int(time.time()),
        )
        app.admin_url = await stack.enter_async_context(admin_of(settings, tenancy, live, metrics, app))
        address = await stack.enter_async_context(listening(app, settings))
        stack.callback(room.close)
        stack.callback(demand.close)
        tasks = [asyncio.create_task(source.run()), asyncio.create_task(LoopLag(metrics.loop_lag_s.set).run())]
        stack.push_async_callback(cancel_all, tasks)
        yield app, address


@contextlib.asynccontextmanager
async def admin_of(
    settings: RouterSettings, tenancy: Tenancy, live: LiveConfig, metrics: RouterMetrics, app: RouterApp
) -> AsyncIterator[str]:
    """The admin port; its address. Empty: there is none."""
    if settings.admin_port is None:
        yield ""
        return
    api = AdminApi(
        token=settings.admin_token,
        tenancy=tenancy,
        live=live,
        metrics=metrics,
        debug_route=app.debug_route,
        wall_clock=time.time,
    )
    async with admin_listening(api, settings.admin_host, settings.admin_port) as url:
        yield url


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
            saved=None if settings.state_dir is None else SavedConfig(settings.state_dir),
        )


def answered_elsewhere(calls: CallHandler, internal: InternalApi) -> dict[str, tuple[str, Handler]]:
    """Paths that the app does not answer itself."""
    return {
        **dict.fromkeys(CALLED_PATHS, ("POST", calls.handle)),
        names.PATH_REVISION_STATS: ("GET", internal.revision_stats),
        names.PATH_DEMAND: ("GET", internal.demand),
    }


def build_calls(
    settings: RouterSettings,
    trust: Trust | None,
    pool: EndpointPool,
    picker: Picker,
    metrics: RouterMetrics,
    source: Source,
    tenancy: Tenancy,
) -> CallHandler:
    """What takes calls to workers."""
    return CallHandler(
        pool=pool,
        picker=picker,
        source=source,
        metrics=metrics,
        tenants=tenancy.tenants,
        settings=CallSettings(
            limits=Limits(max_body_bytes=settings.max_body_bytes),
            keep_key=trust is None and not settings.api_keys,
            log_requests=settings.log_requests,
            idle_timeout_s=settings.idle_timeout_s,
        ),
        clock=time.monotonic,
    )


def build_proxy(
    settings: RouterSettings,
    trust: Trust | None,
    pool: EndpointPool,
    picker: Picker,
    metrics: RouterMetrics,
    session: aiohttp.ClientSession,
    live: LiveConfig,
) -> Proxy:
    """What sends calls to workers, and goes on elsewhere when one fails."""
    budget = RetryBudget()
    timeouts = Timeouts(
        first_byte=settings.first_byte_timeout_s, answer=settings.answer_timeout_s, idle=settings.idle_timeout_s
    )

    def faults() -> FaultSettings:
        return live.settings.faults

    upstreams = Upstreams(
        client=WorkerClient(session, native()),
        timeouts=timeouts,
        trust=trust,
        faults=faults,
        on_ejection=metrics.ejections.inc,
        clock=time.monotonic,
        parts=native(),
    )
    mender = Mender(
        upstreams=upstreams,
        picker=picker,
        pool=pool,
        budget=budget,
        faults=faults,
        on_resume=lambda reason: metrics.resumes.labels(reason).inc(),
        clock=time.monotonic,
    )
    hedger = Hedger(
        upstreams=upstreams,
        picker=picker,
        faults=faults,
        on_hedge=lambda winner: metrics.hedges.labels(winner).inc(),
    )
    return Proxy(
        hedger=hedger,
        mender=mender,
        picker=picker,
        budget=budget,
        on_retry=metrics.count_retry,
        clock=time.monotonic,
    )


@contextlib.asynccontextmanager
async def listening(app: RouterApp, settings: RouterSettings) -> AsyncIterator[str]:
    """Accept connections; at the end stop accepting and give running requests their time."""
    server = RouterServer(app.handle, max_body_bytes=settings.max_body_bytes, plain=plain_http(CALLED_PATHS))
    runner = web.ServerRunner(server, shutdown_timeout=settings.shutdown_timeout_s)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port, backlog=BACKLOG)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def cancel_all(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel background tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    main()
