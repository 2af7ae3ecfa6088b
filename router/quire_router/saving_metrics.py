"""What is counted where work is saved and where routes choose. In the router's registry."""

from collections.abc import Callable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge

from quire_contract import names

CacheResult = Literal["hit", "miss", "shared", "bypass"]
RESULTS: tuple[CacheResult, ...] = ("hit", "miss", "shared", "bypass")


class SavingMetrics:
    """One for the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Counter(
            names.QUIRE_ROUTER_RESPONSE_CACHE,
            "Calls where answers are kept or shared, by what became of them.",
            ["result"],
            registry=registry,
        )
        self._calls = {result: calls.labels(result) for result in RESULTS}
        self._cache_bytes = Gauge(
            names.QUIRE_ROUTER_RESPONSE_CACHE_BYTES, "Bytes of answers kept in memory.", registry=registry
        )
        self._shared_bytes = Gauge(
            names.QUIRE_ROUTER_SHARED_BYTES,
            "Bytes kept for clients that read one generation together.",
            registry=registry,
        )

    def count(self, result: CacheResult) -> None:
        """A call was answered so."""
        self._calls[result].inc()

    def show_bytes(self, cached: Callable[[], float], shared: Callable[[], float]) -> None:
        """Where the gauges get their values when somebody scrapes."""
        self._cache_bytes.set_function(cached)
        self._shared_bytes.set_function(shared)
