"""The API process as a whole: starts the engine process, serves, drains, and ends with a code that tells the truth.

bind port ── start engine process ──┬── serve HTTP: /health 200, /ready 503 ──┬── ready
             load tokenizer (thread)┴── engine says Ready ────────────────────┘

SIGTERM ── ready off, new requests 503 ── wait for running ones, up to the drain timeout ── exit 0
engine gone ── everybody gets 503 ── exit 1, within a second
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import ipaddress
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec
from aiohttp import web

from quire_contract.openai.limits import Limits
from quire_contract.prompt import PromptRenderer
from quire_contract.telemetry import log_event
from quire_contract.trust import Trust
from quire_worker.config import WorkerConfig
from quire_worker.engine.config import decode_engine_config
from quire_worker.engine.messages import Ready
from quire_worker.errors import QuireWorkerError
from quire_worker.last_words import LastWords
from quire_worker.scheduling.policy import PRIORITY
from quire_worker.server import errors
from quire_worker.server.access import Access
from quire_worker.server.app import make_app
from quire_worker.server.embeddings import Embeddings
from quire_worker.server.engine_client import EngineClient, EngineDeadError
from quire_worker.server.engine_process import ENGINE_COMMAND, EngineProcess
from quire_worker.server.engine_settings import engine_config
from quire_worker.server.engine_watch import watch_engine
from quire_worker.server.file_watch import watch_files
from quire_worker.server.generate import Generate
from quire_worker.server.health_server import HealthServer
from quire_worker.server.host_memory import kv_cache_problem
from quire_worker.server.internal_routes import InternalRoutes
from quire_worker.server.keys import KeyFile
from quire_worker.server.lifecycle import Lifecycle
from quire_worker.server.listener import ConnectionLimits, listening
from quire_worker.server.load_watch import LoadWatch, work_of
from quire_worker.server.metrics import Metrics
from quire_worker.server.middleware import Edge
from quire_worker.server.model_routes import ModelRoutes
from quire_worker.server.openapi import OpenApi
from quire_worker.server.parsing.choose import choose_dialect
from quire_worker.server.parsing.dialect import Dialect
from quire_worker.server.private_folder import private_folder
from quire_worker.server.probes import Probes
from quire_worker.server.pulse import Pulse
from quire_worker.server.renderer import load_renderer
from quire_worker.server.routes import ROUTES
from quire_worker.server.served_model import ServedModel, Tokeniser
from quire_worker.server.serving import Loaded, Serving
from quire_worker.server.sleep_routes import SleepRoutes
from quire_worker.server.sleeping import Sleeping
from quire_worker.server.startup import Startup, process_age_s
from quire_worker.server.tls import ServerTls
from quire_worker.server.tracing import NoTracing, Tracing, make_tracing
from quire_worker.server.urgency import UrgencyRules
from quire_worker.server.vitals import Vitals
from quire_worker.server.waiting import cancelled, first, settled
from quire_worker.watchdog import Watchdog

_log = logging.getLogger(__name__)
_TOKENISER_THREADS = 2
_LAST_WORDS_S = 0.4
"""How long handlers may take to tell their clients that it is over."""
_ENGINE_EXIT_S = 5.0
"""How long a healthy engine may take to let go of its device."""


class Worker:
    """One API process."""

    def __init__(
        self,
        config: WorkerConfig,
        trust: Trust | None,
        listening: socket.socket,
        version: str,
        *,
        engine_command: Sequence[str] = ENGINE_COMMAND,
        clock: Callable[[], float] = time.monotonic,
        health_listening: socket.socket | None = None,
        last_words: LastWords | None = None,
    ) -> None:
        """The sockets are bound already, so that a busy port is found before anything is loaded. Call within a running loop."""
        self._config = config
        self._listening = listening
        self._health_listening = health_listening
        self._last_words = last_words or LastWords(None)
        self._version = version
        self._engine_command = engine_command
        self._clock = clock
        operation = config.operation
        self._key_file = None if operation.api_key_file is None else KeyFile(operation.api_key_file)
        self._tls = None if operation.tls_cert is None else ServerTls(operation.tls_cert, operation.tls_key)
        self._access = Access(config.api_keys, trust, self._key_file, share_prefix_cache=operation.share_prefix_cache)
        self._load_watch = LoadWatch(config.load_timeout_s, clock)
        self._pulse = Pulse(clock)
        self._tracing: Tracing = NoTracing()
        self._threads = concurrent.futures.ThreadPoolExecutor(_TOKENISER_THREADS, thread_name_prefix="tokenise")
        self._terminate = asyncio.Event()
        self._force = asyncio.Event()

    async def run(self) -> int:
        """Serve until told to stop; the process's exit code. Raises QuireWorkerError if it cannot start."""
        operation = self._config.operation
        metrics = Metrics(self._config.model_names[0], self._version, legacy=operation.legacy_metrics)
        startup = self._startup(metrics)
        self._warn_of_memory()
        self._tracing = make_tracing(
            operation.otlp_endpoint,
            operation.trace_sample_ratio,
            version=self._version,
            registry=metrics.registry,
            clock=self._clock,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._tracing.close)
            stack.callback(self._threads.shutdown, wait=False, cancel_futures=True)
            self._watch_loop(stack)
            folder = stack.enter_context(private_folder())
            unread = operation.max_unread_bytes
            engine = EngineClient(folder, self._clock, metrics.on_stats, unread, metrics.on_slow_reader)
            stack.callback(engine.close)
            serving = self._make_serving(engine, metrics)
            self._install_signals()
            self._follow_files(stack)
            sleeping = Sleeping(serving, startup, lambda state: metrics.set_asleep(asleep=state != "awake"))
            await stack.enter_async_context(self._http(serving, startup, sleeping))
            process = await self._start_engine(engine)
            metrics.memory.add("engine", process.pid)
            self._load_watch.begin(functools.partial(work_of, process.pid))
            stack.push_async_callback(process.stop, 0)
            watch = asyncio.create_task(watch_engine(engine, process, self._config.operation.step_timeout_s))
            stack.push_async_callback(cancelled, watch)
            await self._until_ready(serving, startup, sleeping)
            if not self._terminate.is_set():
                await first(settled(engine.died), self._terminate.wait())
            return await self._end(serving, process)

    def _startup(self, metrics: Metrics) -> Startup:
        return Startup(
            self._config.pod_name,
            self._config.model_names[0],
            self._clock,
            age_s=process_age_s(),
            first_token_s=lambda: metrics.first_token_s,
        )

    def _make_serving(self, engine: EngineClient, metrics: Metrics) -> Serving:
        config = self._config

        def on_change(lifecycle: Lifecycle) -> None:
            draining = lifecycle.phase == "draining"
            metrics.set_state(ready=lifecycle.phase == "ready", draining=draining)
            engine.set_draining(draining)

        return Serving(
            lifecycle=Lifecycle(on_change),
            engine=engine,
            metrics=metrics,
            limits=Limits(
                max_body_bytes=config.max_body_bytes,
                max_logprobs=config.max_logprobs,
                template_kwargs=Limits().template_kwargs | set(config.allowed_template_kwargs),
            ),
            clock=self._clock,
            base_seed=config.seed,
            log_requests=not config.disable_log_requests,
            urgency=UrgencyRules(
                takes_priority=config.scheduling_policy == PRIORITY,
                timeout_s=config.request_timeout_s,
                queue_timeout_s=config.queue_timeout_s,
            ),
        )

    def _warn_of_memory(self) -> None:
        problem = kv_cache_problem(self._config.kv_cache_memory_bytes, self._config.device)
        if problem is not None:
            log_event(_log, logging.WARNING, "the engine may run out of memory", reason=problem)

    def _watch_loop(self, stack: contextlib.AsyncExitStack) -> None:
        """From now on, an event loop that stands still ends the process."""
        self._pulse.start()
        stack.callback(self._pulse.stop)
        timeout_s = self._config.operation.step_timeout_s
        what = "the server's event loop has stood still"
        stack.enter_context(
            Watchdog(lambda: self._pulse.num_beats, timeout_s, what=what, on_hang=self._last_words.write)
        )

    def _application(self, serving: Serving, edge: Edge, probes: Probes, sleeping: Sleeping) -> web.Application:
        """All routes of the main port."""
        config = self._config
        sleep = SleepRoutes(sleeping, self._access)
        return make_app(
            edge=edge,
            generate=Generate(serving),
            model_routes=ModelRoutes(serving),
            probes=probes,
            embeddings=Embeddings(serving),
            internal=InternalRoutes(serving, self._access, config.pod_name, config.drain_timeout_s, sleep),
            openapi=OpenApi(ROUTES, serving.limits, self._version),
            max_body_bytes=config.max_body_bytes,
        )

    def _edge(self, serving: Serving, startup: Startup) -> tuple[Edge, Probes]:
        """What both ports have in common."""
        timeout_s = self._config.health_timeout_s
        vitals = Vitals(serving.lifecycle, serving.engine, self._load_watch, self._pulse, timeout_s)
        engine = serving.engine
        edge = Edge(self._access, serving.metrics, serving.lifecycle, self._tracing, lambda: engine.stats)
        return edge, Probes(serving, self._version, vitals, startup)

    @contextlib.asynccontextmanager
    async def _http(self, serving: Serving, startup: Startup, sleeping: Sleeping) -> AsyncIterator[None]:
        """The HTTP servers, while entered."""
        config, operation = self._config, self._config.operation
        edge, probes = self._edge(serving, startup)
        limits = ConnectionLimits(
            header_timeout_s=operation.header_timeout_s,
            body_timeout_s=operation.body_timeout_s,
            send_timeout_s=operation.send_timeout_s,
            keep_alive_timeout_s=operation.keep_alive_timeout_s,
            max_connections=operation.max_connections,
        )
        access_log = logging.getLogger("quire_worker.access") if config.enable_access_log else None
        async with contextlib.AsyncExitStack() as stack:
            if self._health_listening is not None:
                stack.enter_context(HealthServer(edge, probes, self._health_listening))
            await stack.enter_async_context(
                listening(
                    self._application(serving, edge, probes, sleeping),
                    self._listening,
                    limits,
                    shutdown_timeout_s=_LAST_WORDS_S,
                    tls=None if self._tls is None else self._tls.context,
                    access_log=access_log,
                )
            )
            host, port = self._listening.getsockname()[:2]
            log_event(_log, logging.INFO, "listening", host=host, port=port)
            if self._access.is_open and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
                log_event(_log, logging.WARNING, "everybody who reaches this port may use it; set --api-key", host=host)
            yield

    async def _start_engine(self, engine: EngineClient) -> EngineProcess:
        told = engine_config(
            self._config,
            inbound_endpoint=engine.inbound_endpoint,
            outbound_endpoint=engine.outbound_endpoint,
        )
        config_json = msgspec.json.encode(told)
        decode_engine_config(config_json)  # the engine would refuse it too, but nobody reads that as easily
        return await EngineProcess.start(config_json, self._engine_command)

    async def _until_ready(self, serving: Serving, startup: Startup, sleeping: Sleeping) -> None:
        """Load the tokenizer while the engine loads weights; then take requests. Returns early on SIGTERM."""
        serving.lifecycle.loading("tokenizer")
        renderer = await load_renderer(self._config)
        tokenizer_s = startup.elapsed_s
        serving.lifecycle.loading("weights")
        await first(settled(serving.engine.ready), self._terminate.wait())
        if self._terminate.is_set():
            return
        try:
            ready = serving.engine.ready.result()
        except EngineDeadError as error:
            raise QuireWorkerError(str(error)) from None
        serving.set_loaded(await self._complete(renderer, ready))
        gc.collect()
        gc.freeze()  # what lives now lives on; collections need not look at it while serving
        startup.on_ready(ready.info, tokenizer_s)
        serving.metrics.on_ready(ready, startup.phases_s, enable_prefix_caching=self._config.enable_prefix_caching)
        if self._config.operation.start_asleep:
            await sleeping.start_asleep()
        serving.lifecycle.loaded()
        self._log_ready(ready, startup.phases_s, serving.loaded.model.dialect)

    async def _complete(self, renderer: PromptRenderer, ready: Ready) -> Loaded:
        """The served model: what the folder says, with what the engine made of it."""
        info = ready.info
        bundle = renderer.bundle.replace(
            block_size=info.block_size, max_model_len=info.max_model_len, vocab_size=info.vocab_size
        )
        if bundle != renderer.bundle:
            renderer = await asyncio.to_thread(PromptRenderer, bundle)
        tokeniser = Tokeniser(renderer, self._threads, max_waiting=self._config.max_num_queued_reqs)
        dialect = choose_dialect(renderer, self._config.tool_call_parser, self._config.reasoning_parser)
        return Loaded(model=ServedModel(renderer, bundle, ready, int(time.time()), dialect), tokeniser=tokeniser)

    def _log_ready(self, ready: Ready, phases_s: dict[str, float], dialect: Dialect) -> None:
        info = ready.info
        wanted = self._config.max_model_len
        if wanted is not None and info.max_model_len < wanted:
            log_event(
                _log,
                logging.WARNING,
                "max_model_len was fitted to the KV pool",
                wanted=wanted,
                fitted=info.max_model_len,
            )
        phases = {f"{name}_s": round(seconds, 2) for name, seconds in phases_s.items()}
        log_event(
            _log,
            logging.INFO,
            "ready",
            model=self._config.model_names[0],
            device=info.device,
            dtype=info.dtype,
            max_model_len=info.max_model_len,
            num_blocks=info.num_blocks,
            block_size=info.block_size,
            epoch=ready.epoch,
            **dialect.names,
            **phases,
        )

    async def _end(self, serving: Serving, process: EngineProcess) -> int:
        """The engine is gone (1), or we were told to stop (0)."""
        engine = serving.engine
        if not engine.died.done():
            await self._drain(serving)
        if engine.died.done():
            reason = str(engine.died.result())
            serving.lifecycle.fail(reason)
            self._last_words.write(reason)
            log_event(_log, logging.ERROR, "engine died", reason=reason)
            await first(serving.wait_empty(), timeout_s=_LAST_WORDS_S)
            return 1
        engine.shut_down()
        await process.stop(_ENGINE_EXIT_S)
        log_event(_log, logging.INFO, "stopped")
        return 0

    async def _drain(self, serving: Serving) -> None:
        """Let running requests finish, up to the drain timeout or a second signal; then end each with an error."""
        engine, timeout_s = serving.engine, self._config.drain_timeout_s
        serving.lifecycle.terminate()
        log_event(_log, logging.INFO, "draining", num_requests=serving.num_inside, timeout_s=timeout_s)
        await first(serving.wait_empty(), self._force.wait(), settled(engine.died), timeout_s=timeout_s)
        if serving.num_inside and not engine.died.done():
            log_event(
                _log, logging.WARNING, "drain cut short", num_requests=serving.num_inside, forced=self._force.is_set()
            )
            serving.move_on()
            engine.end_all(errors.drained())
            await first(serving.wait_empty(), timeout_s=_LAST_WORDS_S)

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

    def _follow_files(self, stack: contextlib.AsyncExitStack) -> None:
        """Keys and certificate are read again when they change, or on SIGHUP."""
        watched = [part for part in (self._key_file, self._tls) if part is not None]
        paths = [path for part in watched for path in part.paths]
        if not paths:
            return

        def reload() -> None:
            for part in watched:
                part.reload()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        stack.push_async_callback(cancelled, asyncio.create_task(watch_files(paths, reload)))

    def _on_signal(self) -> None:
        """The first drains, the second forces."""
        (self._force if self._terminate.is_set() else self._terminate).set()
