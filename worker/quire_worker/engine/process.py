"""The engine process: builds its parts from a configuration, says Ready, runs the loop, and says why when it cannot.

Knows every part of the engine; gets the runner from outside, so that it needs no torch.
"""

import contextlib
import gc
import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import msgspec
import zmq

from quire_contract.load_report import LoadReport
from quire_contract.trust import Trust, TrustError
from quire_worker.embedding import Embedder
from quire_worker.engine.config import EngineConfig
from quire_worker.engine.embed_engine import EmbedEngine, warm_up_embeddings
from quire_worker.engine.engine import Engine
from quire_worker.engine.grammar_desk import GrammarDesk
from quire_worker.engine.load_meter import LoadMeter
from quire_worker.engine.loop import EngineLoop, Telling
from quire_worker.engine.messages import Fatal, FromEngine, Ready
from quire_worker.engine.publisher import Publisher, PublisherSettings
from quire_worker.engine.retry_advice import RetryAdvice
from quire_worker.engine.served import ServedEngine
from quire_worker.engine.stats import StatsCollector
from quire_worker.errors import ConfigError, LoadError, QuireWorkerError
from quire_worker.grammar.compiler import GrammarCompiler
from quire_worker.grammar.limits import GrammarLimits
from quire_worker.grammar.tokenizer import NoTokenizerError, TokenizerLoading
from quire_worker.kv.block_manager import BlockManager
from quire_worker.kv.block_pool import BlockPool
from quire_worker.plan import ModelInfo, Runner
from quire_worker.request import SamplingParams, Submit
from quire_worker.scheduling.embed_queue import EmbedQueue
from quire_worker.scheduling.limits import ANY_ROWS, SchedulerLimits
from quire_worker.scheduling.policies import make_policy
from quire_worker.scheduling.policy import FCFS
from quire_worker.scheduling.prefill_share import MAX_SLOWDOWN, MAX_SLOWDOWN_UNREAD, UNLIMITED, PrefillShare
from quire_worker.scheduling.scheduler import Scheduler
from quire_worker.scheduling.speeds import StepSpeeds
from quire_worker.watchdog import Watchdog

log = logging.getLogger(__name__)

FAILED_EXIT_CODE = 1
_FATAL_LINGER_MS = 1000
_PARTS_OF_ROWS = 4
_COLLECT_AFTER = 50_000
"""Container objects made and not yet gone."""

RunnerBuilder = Callable[[EngineConfig], tuple[Runner | Embedder, ModelInfo]]
"""An embedder comes with ModelInfo.embedding, a runner without."""


def run_engine(config: EngineConfig, build_runner: RunnerBuilder) -> int:
    """Serve until Shutdown (exit code 0) or until something is broken for good (Fatal is sent; another code)."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbound, outbound = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    for socket in (inbound, outbound):
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.RCVHWM, 0)
        socket.set(zmq.LINGER, _FATAL_LINGER_MS)
    inbound.connect(config.inbound_endpoint)
    outbound.connect(config.outbound_endpoint)
    try:
        _serve(config, build_runner, inbound, outbound)
    except QuireWorkerError as error:
        log.error("engine cannot go on reason=%s", error)
        outbound.send(_encode(Fatal(message=str(error))))
        return FAILED_EXIT_CODE
    except BaseException as error:
        outbound.send(
            _encode(Fatal(message=f"the engine failed: {type(error).__name__}: {error} (its log has the traceback)"))
        )
        raise
    finally:
        inbound.close()
        outbound.close()
        context.term()
    return 0


def _serve(
    config: EngineConfig, build_runner: RunnerBuilder, inbound: zmq.Socket[bytes], outbound: zmq.Socket[bytes]
) -> None:
    loading = TokenizerLoading(Path(config.model_dir))
    runner, info = build_runner(config)
    epoch = uuid.uuid4().hex
    speeds = StepSpeeds()
    engine, desk = _build_engine(config, info, runner, speeds, loading)
    scheduler = engine.scheduler
    with _publishing(config, info, epoch) as publisher, contextlib.ExitStack() as closing:
        if desk is not None:
            closing.callback(desk.close)
        telling = None
        if publisher is not None:
            meter = LoadMeter(scheduler, speeds, _load_template(config, info, epoch), desk)
            telling = Telling(publisher, meter, time.time)
        stats = StatsCollector(scheduler, info.num_blocks, desk)
        advice = RetryAdvice(speeds, scheduler.counters, config.max_num_seqs)
        loop = EngineLoop(engine, inbound, outbound, stats, advice, telling, desk=desk)
        tune_collector()
        loop.send(
            Ready(
                info=info,
                epoch=epoch,
                events_endpoint="" if publisher is None else publisher.events_endpoint,
                replay_endpoint="" if publisher is None else publisher.replay_endpoint,
            )
        )
        log.info("engine ready epoch=%s blocks=%d max_model_len=%d", epoch, info.num_blocks, info.max_model_len)
        what = "a step, or the engine's planning, made no progress"
        with Watchdog(lambda: loop.num_turns, config.step_timeout_s, what=what):
            loop.run()
    runner.close()


def _build_engine(
    config: EngineConfig,
    info: ModelInfo,
    runner: Runner | Embedder,
    speeds: StepSpeeds,
    loading: TokenizerLoading,
) -> tuple[ServedEngine, GrammarDesk | None]:
    """Warmed up. An engine that makes no text has no grammars."""
    if info.embedding is not None:
        queue = EmbedQueue(_limits(config, info), info.num_blocks - 1, time.monotonic)
        embeds = EmbedEngine(queue, cast(Embedder, runner))
        warm_up_embeddings(embeds)
        return embeds, None
    scheduler = build_scheduler(config, info, speeds)
    engine = Engine(scheduler, cast(Runner, runner), depth=depth_of(config, info))
    warm_up(engine)
    return engine, grammar_desk(config, info, scheduler, loading)


def tune_collector() -> None:
    """What lives now lives for good: the collector need not look at it again while serving. Nor at each step's outputs, which are as many
    as there are rows and die by themselves: only what is in cycles needs it, and a step makes none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def build_scheduler(config: EngineConfig, info: ModelInfo, speeds: StepSpeeds | None = None) -> Scheduler:
    """The scheduler for a runner of `info`'s shape; `speeds` is what it may know of steps' times. Without it nobody measures steps, and
    none is kept short by what it takes."""
    pool = BlockPool(info.num_blocks, len(info.groups))
    kv = BlockManager(pool, info.block_size, info.groups, enable_prefix_caching=config.enable_prefix_caching)
    policy = make_policy(
        config.scheduling_policy, kv, speeds or StepSpeeds(), time.monotonic, config.scheduling_aging_s
    )
    return Scheduler(kv, _limits(config, info), time.monotonic, policy, _prefill_share(config, speeds))


def _limits(config: EngineConfig, info: ModelInfo) -> SchedulerLimits:
    return SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        max_num_queued_reqs=config.max_num_queued_reqs,
        max_num_queued_tokens=config.max_num_queued_tokens,
        vocab_size=info.vocab_size,
        max_rows_per_request=_rows_per_request(config),
    )


def _rows_per_request(config: EngineConfig) -> int:
    """The other policies say themselves who goes before whom."""
    if config.scheduling_policy != FCFS:
        return ANY_ROWS
    quarter = max(1, config.max_num_seqs // _PARTS_OF_ROWS)
    return quarter if config.max_rows_per_request is None else config.max_rows_per_request


def _prefill_share(config: EngineConfig, speeds: StepSpeeds | None) -> PrefillShare:
    fixed = config.max_prefill_tokens_per_step
    return PrefillShare(
        max_tokens=UNLIMITED if fixed is None else fixed,
        max_slowdown=MAX_SLOWDOWN if fixed is None else None,
        max_slowdown_unread=MAX_SLOWDOWN_UNREAD,
        speeds=speeds,
        max_partial=config.max_num_partial_prefills,
    )


def grammar_desk(config: EngineConfig, info: ModelInfo, scheduler: Scheduler, loading: TokenizerLoading) -> GrammarDesk:
    """Where grammars are compiled for this model's tokenizer; without one each is refused."""
    try:
        tokenizer = loading.result(info.vocab_size)
    except NoTokenizerError as error:
        log.warning("no structured output reason=%s", error)
        return GrammarDesk(
            scheduler, None, "this model has no readable tokenizer.json with an end token, which grammars need"
        )
    return GrammarDesk(scheduler, GrammarCompiler(Path(config.model_dir), tokenizer, GrammarLimits()))


def depth_of(config: EngineConfig, info: ModelInfo) -> int:
    """Plans in flight. A GPU computes while the host plans; on a CPU both would want the same cores."""
    return config.depth or (2 if info.device == "cuda" else 1)


def warm_up(engine: Engine) -> None:
    """One prefill and one decode step, so that Ready means that steps work. Raises LoadError if they do not."""
    scheduler = engine.scheduler
    rejection = scheduler.add(
        Submit(request_id="warm-up", prompt_token_ids=[0], sampling=SamplingParams(max_tokens=2, temperature=0.0))
    )
    if rejection is not None:
        raise LoadError(f"the engine cannot serve a one-token prompt: {rejection.message}")
    while scheduler.has_work:
        for output in engine.step():
            if output.error is not None:
                raise LoadError(f"the first step failed: {output.error}")
    scheduler.counters.reset()


@contextmanager
def _publishing(config: EngineConfig, info: ModelInfo, epoch: str) -> Iterator[Publisher | None]:
    """A running publisher, if one is wanted."""
    if config.events_endpoint is None:
        yield None
        return
    settings = PublisherSettings(
        pod=config.pod_name,
        model=config.served_model_names[0],
        epoch=epoch,
        block_size=info.block_size,
        events_endpoint=config.events_endpoint,
        replay_endpoint=config.replay_endpoint,
        with_token_ids=config.events_token_ids,
    )
    publisher = Publisher(settings, _trust(config), time.time)
    publisher.start()
    try:
        yield publisher
    finally:
        publisher.close()


def _trust(config: EngineConfig) -> Trust | None:
    if config.trust_dir is None or config.events_plain:
        return None
    try:
        return Trust.read(Path(config.trust_dir))
    except TrustError as error:
        raise ConfigError(f"--trust-dir: {error}") from error


def _load_template(config: EngineConfig, info: ModelInfo, epoch: str) -> LoadReport:
    return LoadReport(
        pod=config.pod_name,
        model=config.served_model_names[0],
        epoch=epoch,
        ts=0.0,
        kv_seq=0,
        running=0,
        waiting=0,
        free_blocks=0,
        total_blocks=info.num_blocks - 1,
        uncached_tokens=0,
        block_size=info.block_size,
        max_num_seqs=config.max_num_seqs,
    )


def _encode(message: FromEngine) -> bytes:
    return msgspec.msgpack.encode(message)
