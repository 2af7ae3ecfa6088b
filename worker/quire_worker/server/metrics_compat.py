"""Metrics for dashboards and routers made for vLLM: of parts that this worker lacks, and under names that vLLM has removed.

What a part that is not there would count is 0, so sums over several engines come out right. The old names are shown on request only.
"""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quire_contract import names
from quire_worker.engine.messages import Stats

_LABELS = ("model_name", "engine")
_ABSENT = (
    ("vllm:external_prefix_cache_queries", "Tokens looked up in caches of other processes: there are none."),
    ("vllm:external_prefix_cache_hits", "Tokens found in caches of other processes: there are none."),
    ("vllm:mm_cache_queries", "Images and the like looked up: only text is served."),
    ("vllm:mm_cache_hits", "Images and the like found: only text is served."),
)
_THROUGHPUT_WINDOW_S = 5.0


def show_absent(registry: CollectorRegistry, model_name: str) -> None:
    """Counters that stay 0."""
    for name, text in _ABSENT:
        Counter(name, text, _LABELS, registry=registry).labels(model_name, "0")


class LegacyMetrics:
    """The removed names, told what the metrics of today are told."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, _LABELS, registry=registry).labels(model_name, "0")

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, _LABELS, registry=registry).labels(model_name, "0")

        self._clock = clock
        self._last: Stats | None = None
        self._window: tuple[float, int, int] | None = None
        self._usage = gauge("gpu_cache_usage_perc", "Now vllm:kv_cache_usage_perc.")
        self._hit_rate = gauge(
            "gpu_prefix_cache_hit_rate", "Share of looked-up tokens found in the prefix cache, since the start."
        )
        gauge("num_requests_swapped", "Always 0: nothing is swapped.")
        gauge("cpu_cache_usage_perc", "Always 0: there is no cache in host memory beside the KV cache.")
        self._prompt_speed = gauge("avg_prompt_throughput_toks_per_s", "Prompt tokens per second of late.")
        self._output_speed = gauge("avg_generation_throughput_toks_per_s", "Generated tokens per second of late.")
        self._queries = counter("gpu_prefix_cache_queries", "Now vllm:prefix_cache_queries.")
        self._hits = counter("gpu_prefix_cache_hits", "Now vllm:prefix_cache_hits.")
        self._per_token = Histogram(
            "vllm:time_per_output_token_seconds", "Now vllm:inter_token_latency_seconds.", _LABELS, registry=registry,
            buckets=names.BUCKETS_TOKEN_S,
        ).labels(model_name, "0")  # fmt: skip

    def on_stats(self, stats: Stats) -> None:
        """See Metrics.on_stats."""
        last, self._last = self._last, stats
        self._usage.set(max(0.0, 1 - stats.num_free_blocks / max(1, stats.num_blocks - 1)))
        self._hit_rate.set(stats.prefix_hits / max(1, stats.prefix_queries))
        self._queries.inc(stats.prefix_queries - (last.prefix_queries if last else 0))
        self._hits.inc(stats.prefix_hits - (last.prefix_hits if last else 0))
        self._measure(stats)

    def on_next_tokens(self, seconds: float) -> None:
        """See Metrics.on_next_tokens."""
        self._per_token.observe(seconds)

    def _measure(self, stats: Stats) -> None:
        now = (self._clock(), stats.num_prompt_tokens, stats.num_generated_tokens)
        if self._window is None:
            self._window = now
        elapsed_s = now[0] - self._window[0]
        if elapsed_s >= _THROUGHPUT_WINDOW_S:
            self._prompt_speed.set((now[1] - self._window[1]) / elapsed_s)
            self._output_speed.set((now[2] - self._window[2]) / elapsed_s)
            self._window = now
