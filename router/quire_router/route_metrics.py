"""What is counted of routes. Labels are names of the configuration, never a client's; those that are gone are forgotten."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram

from quire_contract import names
from quire_contract.router_config import RouterConfig

FallbackReason = Literal["no_room", "error"]
ShadowResult = Literal["ok", "error", "dropped"]
FALLBACK_REASONS: tuple[FallbackReason, ...] = ("no_room", "error")
SHADOW_RESULTS: tuple[ShadowResult, ...] = ("ok", "error", "dropped")
BUCKETS_SCORE = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 75.0, 100.0)


class RouteMetrics:
    """One for the process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.fallbacks = Counter(
            names.QUIRE_ROUTER_FALLBACKS,
            "Calls given to a route's next model after the one before failed.",
            ["reason"],
            registry=registry,
        )
        self.shadows = Counter(
            names.QUIRE_ROUTER_SHADOWS,
            "Copies of calls, for a model whose answers nobody sees.",
            ["result"],
            registry=registry,
        )
        self.scores = Histogram(
            names.QUIRE_ROUTER_COMPLEXITY,
            "Scores of calls to routes that choose by complexity.",
            buckets=BUCKETS_SCORE,
            registry=registry,
        )
        self._choices = Counter(
            names.QUIRE_ROUTER_COMPLEXITY_CHOICES,
            "Models chosen by complexity.",
            ["route", "model"],
            registry=registry,
        )
        self._known: set[tuple[str, str]] = set()
        for reason in FALLBACK_REASONS:
            self.fallbacks.labels(reason)
        for result in SHADOW_RESULTS:
            self.shadows.labels(result)

    def count_complexity(self, route: str, model: str, score: float) -> None:
        """A route chose `model` for a call."""
        self.scores.observe(score)
        self._known.add((route, model))
        self._choices.labels(route, model).inc()

    def follow(self, config: RouterConfig) -> None:
        """Forget what is not configured any more."""
        current = {(r.model, step.model) for r in config.routes for step in r.complexity}
        current |= {(r.model, fallback) for r in config.routes if r.complexity for fallback in r.fallbacks}
        for pair in self._known - current:
            self._choices.remove(*pair)
        self._known &= current
