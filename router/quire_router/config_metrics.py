"""Metrics of the configuration: which one is in force, where it is from, what was refused. Read from their owners at each scrape."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from quire_contract import names
from quire_router.live_config import LiveConfig

STATES = ("none", "saved", "live")


class ConfigSource(Protocol):
    """Where configurations come from."""

    @property
    def state(self) -> str:
        """One of STATES: there was none yet, one that an earlier process saved, one from the source itself."""

    @property
    def num_refused(self) -> int:
        """Parts of it whose present content is not used."""

    @property
    def num_refusals(self) -> int:
        """Contents that were refused so far."""


class ConfigMetrics(Collector):
    """For one registry."""

    def __init__(self, live: LiveConfig, source: ConfigSource) -> None:
        self._live = live
        self._source = source

    def collect(self) -> Iterator[Metric]:
        """The samples now."""
        info = GaugeMetricFamily(
            names.QUIRE_ROUTER_CONFIG_INFO,
            "1 for the configuration in force; equal digests are equal configurations, workers apart.",
            labels=["digest"],
        )
        if self._live.digest:
            info.add_metric([self._live.digest], 1)
        yield info
        state = GaugeMetricFamily(
            names.QUIRE_ROUTER_CONFIG_STATE,
            "1 for where the configuration is from: none yet, saved by an earlier process, or live.",
            labels=["state"],
        )
        for name in STATES:
            state.add_metric([name], float(self._source.state == name))
        yield state
        yield GaugeMetricFamily(
            names.QUIRE_ROUTER_CONFIG_REFUSED,
            "Parts of the configuration (shards) whose present content is refused.",
            value=self._source.num_refused,
        )
        yield CounterMetricFamily(
            names.QUIRE_ROUTER_CONFIG_REFUSALS, "Contents that were refused.", value=self._source.num_refusals
        )
