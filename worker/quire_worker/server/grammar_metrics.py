"""What /metrics shows of structured output. Filled from the engine's Stats."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quire_worker.engine.messages import Stats

COMPILE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LABELS = ("model_name", "engine")


class GrammarMetrics:
    """Those of one worker."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        labels = (model_name, "0")
        self._compile_time = Histogram(
            "quire_worker_grammar_compile_seconds",
            "Time to try and compile a grammar, refused ones included.",
            _LABELS,
            registry=registry,
            buckets=COMPILE_BUCKETS,
        ).labels(*labels)
        self._hits = Counter(
            "quire_worker_grammar_cache_hits_total",
            "Requests whose grammar was compiled already.",
            _LABELS,
            registry=registry,
        ).labels(*labels)
        self._rejections = Counter(
            "quire_worker_grammar_rejections_total", "Requests refused for their grammar.", _LABELS, registry=registry
        ).labels(*labels)

        self._waiting = Gauge(
            "quire_worker_grammar_waiting",
            "Choices that wait for their grammar to be compiled; they count as waiting, too.",
            _LABELS,
            registry=registry,
        ).labels(*labels)

    def on_stats(self, stats: Stats, last: Stats | None) -> None:
        """Take what changed since `last`."""
        self._hits.inc(stats.num_grammar_hits - (last.num_grammar_hits if last else 0))
        self._rejections.inc(stats.num_grammar_rejections - (last.num_grammar_rejections if last else 0))
        self._waiting.set(stats.num_at_desk)
        for sample in stats.grammar_compile_time_s:
            self._compile_time.observe(sample)
