"""Counters and histograms for what every request counts: plain numbers, which a scrape shows as the client library's own would.

The library's take a lock and look a bucket up in a loop, two to four microseconds a count, several times in each request. These are for
the event loop's thread alone.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """A number that grows."""

    __slots__ = ("created_ts", "value")

    def __init__(self) -> None:
        self.value: float = 0
        self.created_ts = time.time()

    def inc(self, number: float = 1) -> None:
        """So many more."""
        self.value += number


class Tallies(Collector):
    """Tallies by their labels' values. One for each name."""

    def __init__(
        self, name: str, documentation: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation, self._names = name.removesuffix("_total"), documentation, tuple(labels)
        self._tallies: dict[tuple[str, ...], Tally] = {} if labels else {(): Tally()}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The tally of these values, shown from now on."""
        assert len(values) == len(self._names), f"{self._name} is labelled by {', '.join(self._names)}"
        tally = self._tallies.get(values)
        if tally is None:
            tally = self._tallies[values] = Tally()
        return tally

    def remove_by(self, label: str, values: Collection[str]) -> None:
        """Forget those whose `label` has one of `values`."""
        place = self._names.index(label)
        self._tallies = {key: tally for key, tally in self._tallies.items() if key[place] not in values}

    def collect(self) -> Iterator[Metric]:
        """As they are now."""
        metric = Metric(self._name, self._documentation, "counter")
        shows_created = _shows_created()
        for values, tally in self._tallies.items():
            labels = dict(zip(self._names, values, strict=True))
            metric.add_sample(f"{self._name}_total", labels, tally.value)
            if shows_created:
                metric.add_sample(f"{self._name}_created", labels, tally.created_ts)
        yield metric


class Bars:
    """How many of the values that were observed lie up to each bound, and their sum."""

    __slots__ = ("bounds", "counts", "created_ts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Not cumulative; the last is of what lies beyond all bounds."""
        self.total = 0.0
        self.created_ts = time.time()

    def observe(self, value: float) -> None:
        """One more."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


class Histograms(Collector):
    """Bars by their labels' values. One for each name."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """`buckets`: ascending bounds that are not negative, without infinity."""
        self._name, self._documentation, self._names = name, documentation, tuple(labels)
        self._bounds = tuple(float(bound) for bound in buckets)
        self._words = [floatToGoString(bound) for bound in (*self._bounds, math.inf)]  # type: ignore[no-untyped-call]
        self._bars: dict[tuple[str, ...], Bars] = {} if labels else {(): Bars(self._bounds)}
        registry.register(self)

    def labels(self, *values: str) -> Bars:
        """The bars of these values, shown from now on."""
        assert len(values) == len(self._names), f"{self._name} is labelled by {', '.join(self._names)}"
        bars = self._bars.get(values)
        if bars is None:
            bars = self._bars[values] = Bars(self._bounds)
        return bars

    def remove_by(self, label: str, values: Collection[str]) -> None:
        """Forget those whose `label` has one of `values`."""
        place = self._names.index(label)
        self._bars = {key: bars for key, bars in self._bars.items() if key[place] not in values}

    def collect(self) -> Iterator[Metric]:
        """As they are now."""
        metric = Metric(self._name, self._documentation, "histogram")
        shows_created = _shows_created()
        for values, bars in self._bars.items():
            labels = dict(zip(self._names, values, strict=True))
            number = 0
            for word, count in zip(self._words, bars.counts, strict=True):
                number += count
                metric.add_sample(f"{self._name}_bucket", {**labels, "le": word}, number)
            metric.add_sample(f"{self._name}_count", labels, number)
            metric.add_sample(f"{self._name}_sum", labels, bars.total)
            if shows_created:
                metric.add_sample(f"{self._name}_created", labels, bars.created_ts)
        yield metric


def _shows_created() -> bool:
    """Whether the library is set to show when a series began."""
    (shown,) = Counter("probe", "Shows what counters have.", registry=None).collect()
    return len(shown.samples) > 1
