"""What /metrics shows: the `vllm:*` names that dashboards and autoscalers already read, and `quire_*` of our own.

Only names that this process can fill with the truth. Bucket edges resolve a 3 ms step and a 10 ms queue. Knows nothing of HTTP: it is told
what happened and renders text. prometheus-client appends `_total` to counters.
"""

import dataclasses

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from quire_contract import names
from quire_worker.engine.messages import Ready, Stats
from quire_worker.server.grammar_metrics import GrammarMetrics
from quire_worker.server.host_memory import ResidentMemory
from quire_worker.server.metrics_compat import LegacyMetrics, show_absent

TOKEN_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
CHOICE_BUCKETS = (1, 2, 5, 10, 20)
PREEMPTION_BUCKETS = (0, 1, 2, 3, 4, 5, 10, 20)
"""vLLM's, and one for those that never were."""

FINISH_REASONS = ("stop", "length", "repetition", "abort", "error")
REJECTED_DRAINING = "draining"
REJECTED_NOT_READY = "not_ready"
REJECTION_REASONS = (
    names.REASON_QUEUE_FULL, "too_long", "invalid", REJECTED_DRAINING, REJECTED_NOT_READY,
    names.REASON_QUEUE_TIMEOUT, names.REASON_DEADLINE,
)  # fmt: skip
_LABELS = ("model_name", "engine")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestRecord:
    """One finished choice's request, for histograms and the log line. Times are seconds since the request arrived."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    """Over all choices."""
    n: int
    max_tokens: int
    first_token_s: float | None
    """None: no token came."""
    queue_time_s: float | None
    """In the engine's queue; None: not told."""
    end_s: float
    finish_reasons: tuple[str, ...]
    """One a choice."""
    num_preemptions: tuple[int, ...] = ()
    """Of each choice that was computed."""


class Metrics:
    """All metrics of the API process, in a registry of their own."""

    def __init__(self, model_name: str, version: str, *, legacy: bool = False) -> None:
        """`legacy`: names that vLLM has removed, too."""
        self.registry = CollectorRegistry()
        self._model_name = model_name
        self._last: Stats | None = None
        self.first_token_s: float | None = None
        """Of the first request that had one, from its arrival."""
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.memory = ResidentMemory()
        self.registry.register(self.memory)
        self._legacy = LegacyMetrics(self.registry, model_name) if legacy else None
        show_absent(self.registry, model_name)
        self._make_engine_metrics()
        self._make_request_metrics()
        self._make_own_metrics(version)
        self._grammars = GrammarMetrics(self.registry, model_name)

    def render(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, _LABELS, registry=self.registry).labels(self._model_name, "0")

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self.registry).labels(self._model_name, "0")

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(name, text, _LABELS, registry=self.registry, buckets=buckets)
        return histogram.labels(self._model_name, "0")

    def _by(self, name: str, text: str, label: str, values: tuple[str, ...]) -> dict[str, Counter]:
        """A counter per value of `label`, all of them shown from the start."""
        counter = Counter(name, text, (*_LABELS, label), registry=self.registry)
        return {value: counter.labels(self._model_name, "0", value) for value in values}

    def _make_engine_metrics(self) -> None:
        """Filled from the engine's Stats."""
        self._running = self._gauge(names.VLLM_NUM_REQUESTS_RUNNING, "Choices in the running batch.")
        self._waiting = self._gauge(names.VLLM_NUM_REQUESTS_WAITING, "Choices waiting to run.")
        by_reason = Gauge(
            names.VLLM_NUM_REQUESTS_WAITING_BY_REASON,
            "Choices waiting, by why.",
            (*_LABELS, "reason"),
            registry=self.registry,
        )
        self._waiting_for_capacity = by_reason.labels(self._model_name, "0", "capacity")
        self._waiting_deferred = by_reason.labels(self._model_name, "0", "deferred")
        self._waiting_deferred.set(0)
        self._kv_usage = self._gauge(names.VLLM_KV_CACHE_USAGE_PERC, "Share of KV blocks in use, 0 to 1.")
        self._prompt_tokens = self._counter(names.VLLM_PROMPT_TOKENS, "Prompt tokens of admitted requests.")
        self._generated_tokens = self._counter(names.VLLM_GENERATION_TOKENS, "Tokens generated.")
        self._preemptions = self._counter(names.VLLM_NUM_PREEMPTIONS, "Times a running choice was put back to wait.")
        self._prefix_queries = self._counter(names.VLLM_PREFIX_CACHE_QUERIES, "Tokens looked up in the prefix cache.")
        self._prefix_hits = self._counter(names.VLLM_PREFIX_CACHE_HITS, "Tokens found in the prefix cache.")
        self._cached_tokens = self._counter(
            names.VLLM_PROMPT_TOKENS_CACHED, "Prompt tokens taken from the prefix cache."
        )
        self._by_source = self._by(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where their KV came from.", "source",
            ("local_compute", "local_cache_hit"),
        )  # fmt: skip
        self._cached_by_source = self._by(
            "vllm:prompt_tokens_cached_by_source", "Cached prompt tokens by tier.", "source", ("device",)
        )
        self._queue_time = self._histogram(
            names.VLLM_REQUEST_QUEUE_TIME, "From submission to the first step.", names.BUCKETS_REQUEST_S
        )
        self._step_tokens = self._histogram(
            names.VLLM_ITERATION_TOKENS, "Tokens computed in a step.", STEP_TOKEN_BUCKETS
        )
        self._step_time = self._histogram(names.QUIRE_WORKER_STEP_SECONDS, "Time of a step.", names.BUCKETS_TOKEN_S)
        self._steps = self._counter(names.QUIRE_WORKER_STEPS, "Steps done.")
        self._preempted_tokens = self._counter(
            names.QUIRE_WORKER_PREEMPTED_TOKENS, "Computed tokens that preempted choices gave up."
        )

    def _make_request_metrics(self) -> None:
        """Filled as requests go."""
        times, counts = names.BUCKETS_REQUEST_S, TOKEN_COUNT_BUCKETS
        self._first_token = self._histogram(
            names.VLLM_TIME_TO_FIRST_TOKEN, "From arrival to the first token.", names.BUCKETS_TTFT_S
        )
        self._between_tokens = self._histogram(
            names.VLLM_INTER_TOKEN_LATENCY, "Between a choice's tokens.", names.BUCKETS_TOKEN_S
        )
        self._per_token = self._histogram(
            names.VLLM_TIME_PER_OUTPUT_TOKEN, "Mean time of a request's tokens after the first.",
            names.BUCKETS_TOKEN_S,
        )  # fmt: skip
        self._end_to_end = self._histogram(names.VLLM_E2E_REQUEST_LATENCY, "From arrival to the end.", times)
        self._inference_time = self._histogram(
            names.VLLM_REQUEST_INFERENCE_TIME, "From the first step to the end.", times
        )
        self._prefill_time = self._histogram(
            names.VLLM_REQUEST_PREFILL_TIME, "From the first step to the first token.", times
        )
        self._decode_time = self._histogram(names.VLLM_REQUEST_DECODE_TIME, "From the first token to the last.", times)
        self._prompt_length = self._histogram(names.VLLM_REQUEST_PROMPT_TOKENS, "Prompt tokens of a request.", counts)
        self._output_length = self._histogram(
            names.VLLM_REQUEST_GENERATION_TOKENS, "Tokens generated for a request.", counts
        )
        self._max_output = self._histogram(
            "vllm:request_max_num_generation_tokens", "Longest output a request could have had.", counts
        )
        self._param_n = self._histogram(names.VLLM_REQUEST_PARAMS_N, "The parameter n.", CHOICE_BUCKETS)
        self._param_max_tokens = self._histogram(
            names.VLLM_REQUEST_PARAMS_MAX_TOKENS, "The parameter max_tokens.", counts
        )
        self._computed = self._histogram(
            "vllm:request_prefill_kv_computed_tokens", "Prompt tokens not found in the prefix cache.", counts
        )
        self._request_preemptions = self._histogram(
            names.VLLM_REQUEST_NUM_PREEMPTIONS, "Times a choice was put back to wait.", PREEMPTION_BUCKETS
        )
        self._finished = self._by(names.VLLM_REQUEST_SUCCESS, "Finished choices.", "finished_reason", FINISH_REASONS)
        self._rejected = self._by(names.VLLM_ADMISSION_REJECTIONS, "Requests not taken.", "reason", REJECTION_REASONS)
        self._deadlines = self._counter(
            names.QUIRE_WORKER_DEADLINES, "Requests ended by their deadline while they ran."
        )

    def _make_own_metrics(self, version: str) -> None:
        sleep = Gauge(
            names.VLLM_ENGINE_SLEEP_STATE,
            "1 for the state the engine is in.",
            (*_LABELS, "sleep_state"),
            registry=self.registry,
        )
        self._sleep = {state: sleep.labels(self._model_name, "0", state) for state in _SLEEP_STATES}
        self.set_asleep(asleep=False)
        self._ready = self._gauge("quire_worker_ready", "1 while requests are taken.")
        self._draining = self._gauge(names.QUIRE_WORKER_DRAINING, "1 while draining.")
        self._phases = Gauge(
            names.QUIRE_WORKER_STARTUP_SECONDS,
            "How long each start-up phase took.",
            ("model_name", "phase"),
            registry=self.registry,
        )
        self._responses = Counter(
            names.QUIRE_WORKER_HTTP_REQUESTS,
            "Responses by route and status.",
            ("route", "code"),
            registry=self.registry,
        )
        self._cache_info = Gauge(
            names.VLLM_CACHE_CONFIG_INFO, "Of the KV cache. Always 1.",
            (*_LABELS, "block_size", "num_gpu_blocks", "cache_dtype", "enable_prefix_caching"), registry=self.registry,
        )  # fmt: skip
        self._slow_readers = self._counter(
            names.QUIRE_WORKER_SLOW_READERS, "Answers that ended because their clients took too little of them."
        )
        self._not_finite = self._counter(
            names.QUIRE_WORKER_NON_FINITE, "Requests that failed because the model's logits were NaN or infinite."
        )
        self._embedded_inputs = self._counter(
            names.QUIRE_WORKER_EMBEDDING_INPUTS, "Texts or pairs sent to be embedded or scored."
        )
        info = Gauge("quire_worker_build_info", "Always 1.", ("version",), registry=self.registry)
        info.labels(version).set(1)

    def on_ready(self, ready: Ready, phases_s: dict[str, float], *, enable_prefix_caching: bool) -> None:
        """Facts that hold from now on; `phases_s` are the start-up phases of both processes."""
        info = ready.info
        self._cache_info.labels(
            self._model_name, "0", str(info.block_size), str(info.num_blocks), info.dtype, str(enable_prefix_caching)
        ).set(1)
        self.on_phases(phases_s)

    def on_phases(self, phases_s: dict[str, float]) -> None:
        """Further parts of the start-up, known later."""
        for phase, seconds in phases_s.items():
            self._phases.labels(self._model_name, phase).set(seconds)

    def set_asleep(self, *, asleep: bool) -> None:
        """Asleep, the weights are in the host's memory."""
        now = "weights_offloaded" if asleep else "awake"
        for state, gauge in self._sleep.items():
            gauge.set(state == now)

    def on_stats(self, stats: Stats) -> None:
        """Take the engine's counters and samples."""
        last, self._last = self._last, stats
        self._grammars.on_stats(stats, last)
        if self._legacy is not None:
            self._legacy.on_stats(stats)
        self._running.set(stats.num_running)
        self._waiting.set(stats.num_waiting + stats.num_at_desk)
        self._waiting_for_capacity.set(stats.num_waiting - stats.num_deferred)
        self._waiting_deferred.set(stats.num_deferred + stats.num_at_desk)
        usable = max(1, stats.num_blocks - 1)  # the null block holds no tokens
        self._kv_usage.set(max(0.0, 1 - stats.num_free_blocks / usable))
        prompt = stats.num_prompt_tokens - (last.num_prompt_tokens if last else 0)
        cached = stats.num_cached_tokens - (last.num_cached_tokens if last else 0)
        self._prompt_tokens.inc(prompt)
        self._cached_tokens.inc(cached)
        self._by_source["local_compute"].inc(max(0, prompt - cached))
        self._by_source["local_cache_hit"].inc(cached)
        self._cached_by_source["device"].inc(cached)
        self._generated_tokens.inc(stats.num_generated_tokens - (last.num_generated_tokens if last else 0))
        self._preemptions.inc(stats.num_preemptions - (last.num_preemptions if last else 0))
        self._preempted_tokens.inc(stats.num_preempted_tokens - (last.num_preempted_tokens if last else 0))
        self._prefix_queries.inc(stats.prefix_queries - (last.prefix_queries if last else 0))
        self._prefix_hits.inc(stats.prefix_hits - (last.prefix_hits if last else 0))
        self._steps.inc(stats.num_steps - (last.num_steps if last else 0))
        for histogram, samples in (
            (self._queue_time, stats.queue_time_s),
            (self._step_tokens, stats.step_tokens),
            (self._step_time, stats.step_time_s),
        ):
            for sample in samples:
                histogram.observe(sample)

    def on_first_token(self, seconds: float) -> None:
        """A request's first token came so long after its arrival."""
        self._first_token.observe(seconds)
        if self.first_token_s is None:
            self.first_token_s = seconds
            self.on_phases({"first_token": seconds})

    def on_next_tokens(self, seconds: float) -> None:
        """A choice's next tokens came so long after its last."""
        self._between_tokens.observe(seconds)
        if self._legacy is not None:
            self._legacy.on_next_tokens(seconds)

    def on_finished(self, record: RequestRecord) -> None:
        for reason in record.finish_reasons:
            self._finished[reason].inc()
        for count in record.num_preemptions:
            self._request_preemptions.observe(count)
        self._end_to_end.observe(record.end_s)
        self._prompt_length.observe(record.num_prompt_tokens)
        self._output_length.observe(record.num_generated_tokens)
        self._max_output.observe(record.max_tokens)
        self._param_n.observe(record.n)
        self._param_max_tokens.observe(record.max_tokens)
        self._computed.observe(record.num_prompt_tokens - record.num_cached_tokens)
        if record.first_token_s is not None:
            if record.queue_time_s is not None:
                self._inference_time.observe(max(0.0, record.end_s - record.queue_time_s))
                self._prefill_time.observe(max(0.0, record.first_token_s - record.queue_time_s))
            decode_s = record.end_s - record.first_token_s
            self._decode_time.observe(decode_s)
            later = record.num_generated_tokens / record.n - 1
            if later > 0:
                self._per_token.observe(decode_s / later)

    def on_embedded(self, *, num_inputs: int) -> None:
        """A request with so many texts or pairs ended, well or not."""
        self._embedded_inputs.inc(num_inputs)

    def on_rejected(self, reason: str) -> None:
        """`reason` is one of REJECTION_REASONS; any other counts as invalid."""
        self._rejected.get(reason, self._rejected["invalid"]).inc()

    def on_deadline(self) -> None:
        """A running request's time was over."""
        self._deadlines.inc()

    def on_slow_reader(self) -> None:
        """An answer ended because too much of it waited for its client."""
        self._slow_readers.inc()

    def on_not_finite(self) -> None:
        """A request failed because the model's logits held NaN or infinity."""
        self._not_finite.inc()

    def on_response(self, route: str, code: int) -> None:
        """`route` is the route's pattern, never the raw path."""
        self._responses.labels(route, str(code)).inc()

    def set_state(self, *, ready: bool, draining: bool) -> None:
        self._ready.set(ready)
        self._draining.set(draining)
