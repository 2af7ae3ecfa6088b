"""What admission counts, in the router's registry. Labels are bounded: models by configuration, bands and reasons by this module."""

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_contract import names
from quire_router.line import Waiter

BANDS = ("high", "normal", "low")
"""By the sign of a request's priority; the queue itself knows every priority apart."""
DISPLACED = "displaced"
CLIENT_LEFT = "client_left"
REASONS = (
    names.REASON_QUEUE_FULL,
    names.REASON_QUEUE_TIMEOUT,
    names.REASON_NO_ENDPOINT,
    names.REASON_DEADLINE,
    names.REASON_DRAINING,
    DISPLACED,
    CLIENT_LEFT,
)


def band_of(priority: int) -> str:
    """Its label."""
    return BANDS[1] if priority == 0 else BANDS[0] if priority > 0 else BANDS[2]


class AdmissionMetrics:
    """Counters of the queues; lengths are counted when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.wait_s = Histogram(
            names.QUIRE_ROUTER_QUEUE_WAIT_SECONDS,
            "Time that requests waited in the router before they started; those that did not wait are not counted.",
            ["model"],
            buckets=names.BUCKETS_REQUEST_S,
            registry=registry,
        )
        self.dropped = Counter(
            names.QUIRE_ROUTER_QUEUE_DROPPED,
            "Requests that were refused by admission, or left while they waited.",
            ["reason"],
            registry=registry,
        )
        for reason in REASONS:
            self.dropped.labels(reason)
        self._models: set[str] = set()

    def note_wait(self, model: str, waited_s: float) -> None:
        """A request for a declared model starts."""
        if model in self._models:
            self.wait_s.labels(model).observe(waited_s)

    def declare(self, models: Collection[str]) -> None:
        """All names that requests may use now: shown before anybody waits, and forgotten when nobody serves them any more."""
        for model in models:
            self.wait_s.labels(model)
        gone = self._models.difference(models)
        for model in gone:
            self.wait_s.remove(model)
        self._models = set(models)

    def show(self, waiting: Callable[[], Iterable[Waiter]], held_test: Callable[[], Callable[[Waiter], bool]]) -> None:
        """Show those that are `waiting` whenever somebody scrapes. Call once."""
        self._registry.register(_Lengths(waiting, held_test, lambda: self._models))


class _Lengths(Collector):
    def __init__(
        self,
        waiting: Callable[[], Iterable[Waiter]],
        held_test: Callable[[], Callable[[Waiter], bool]],
        models: Callable[[], Iterable[str]],
    ) -> None:
        self._waiting = waiting
        self._held_test = held_test
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """As things are."""
        held = Tally(dict.fromkeys(self._models(), 0))
        length = Tally({(model, band): 0 for model in held for band in BANDS})
        size_bytes = 0
        is_held = self._held_test()
        for waiter in self._waiting():
            length[waiter.call.model, band_of(waiter.call.priority)] += 1
            size_bytes += len(waiter.call.body)
            if is_held(waiter):
                held[waiter.call.model] += 1
        lengths = GaugeMetricFamily(
            names.QUIRE_ROUTER_QUEUE_LENGTH, "Requests that wait in the router.", labels=["model", "band"]
        )
        for labels, number in length.items():
            lengths.add_metric(labels, number)
        helds = GaugeMetricFamily(
            names.QUIRE_ROUTER_HELD_REQUESTS, "Requests that wait because no worker is ready.", labels=["model"]
        )
        for model, number in held.items():
            helds.add_metric([model], number)
        size = GaugeMetricFamily(names.QUIRE_ROUTER_QUEUE_BYTES, "Bodies of requests that wait in the router.")
        size.add_metric([], size_bytes)
        yield from (lengths, helds, size)
