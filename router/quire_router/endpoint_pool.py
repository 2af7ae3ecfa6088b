"""All endpoints, by id and by model name, as the configuration says.

Where it comes from (a file, the cluster's API) is not known here: a source calls `EndpointPool.apply` with a whole configuration.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec

from quire_contract.router_config import (
    ComplexityStep,
    EndpointEntry,
    RouteEntry,
    RouterConfig,
    RouteTargetEntry,
    RoutingPolicy,
)
from quire_contract.router_settings import FaultSettings, RouterSettingsEntry
from quire_router.endpoints import Endpoint
from quire_router.latency import StreamLatency
from quire_router.revision_stats import RevisionStats


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What a new configuration did to the pool."""

    added: tuple[Endpoint, ...]
    removed: tuple[Endpoint, ...]


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration says of one model, put together for whoever chooses."""

    endpoints: tuple[Endpoint, ...] = ()
    ids: tuple[str, ...] = ()
    """Theirs."""
    policy: RoutingPolicy = "kv_aware"
    adapter: str = ""
    weights: Mapping[str, int] | None = None
    slow_start_s: float = 0.0
    is_plain: bool = False
    """Workers are chosen by what they hold, and nothing else is to be thought of: no adapter, no split."""


NOT_SERVED = Served()


class EndpointPool:
    """All endpoints by id and by model name. An entry with another address is a new endpoint: nothing learnt of the old one holds."""

    def __init__(self, stats: RevisionStats) -> None:
        self._stats = stats
        self._by_id: dict[str, Endpoint] = {}
        self._by_model: dict[str, tuple[Endpoint, ...]] = {}
        self._weights: dict[str, Mapping[str, int]] = {}
        self._sticky: dict[str, Literal["none", "tenant", "user"]] = {}
        self._routes: dict[str, RouteEntry] = {}
        self._policies: dict[str, RoutingPolicy] = {}
        self._adapters: dict[str, str] = {}
        self._served: dict[str, Served] = {}
        self._latency: dict[str, StreamLatency] = {}
        """By service, also of one that has no worker just now."""
        self._names: tuple[str, ...] = ()
        self.num_services = 0
        """InferenceServices that are served or have endpoints."""
        self.faults = FaultSettings()
        """How faults of endpoints are judged."""
        self.settings = RouterSettingsEntry()
        self.on_change: Callable[[Endpoint], None] = lambda _: None
        """What every endpoint calls, as `Endpoint.on_change` says; to be set before the first configuration."""
        self.is_configured = False
        """Whether there was a configuration yet: before it, an unknown name may still become known."""

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(tuple(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def models(self) -> tuple[str, ...]:
        """Names that requests may use, routes included, whether anything is ready or not."""
        return self._names

    def get(self, endpoint_id: str) -> Endpoint | None:
        """The endpoint of that id now."""
        return self._by_id.get(endpoint_id)

    def serving(self, model: str) -> tuple[Endpoint, ...] | None:
        """The endpoints of a model, ready or not. None: nobody declared such a model (it may be a route)."""
        return self._by_model.get(model)

    def served(self, model: str) -> Served:
        """All that choosing needs to know of a model; NOT_SERVED if nobody declared it."""
        return self._served.get(model, NOT_SERVED)

    def weights(self, model: str) -> Mapping[str, int] | None:
        """How the model's requests are split among revisions. None: they are not."""
        return self._weights.get(model)

    def sticky(self, model: str) -> Literal["none", "tenant", "user"]:
        """Whose requests stay at one revision, while they are split."""
        return self._sticky.get(model, "none")

    def policy(self, model: str) -> RoutingPolicy:
        """How a worker of the model is chosen."""
        return self._policies.get(model, "kv_aware")

    def adapter(self, model: str) -> str:
        """The adapter that the name stands for; empty: none."""
        return self._adapters.get(model, "")

    def latency(self, service: str) -> StreamLatency | None:
        """Of the service's streams. None: there is no such service."""
        return self._latency.get(service)

    def route(self, name: str) -> RouteEntry | None:
        """The route of that name."""
        return self._routes.get(name)

    def answering(self, name: str) -> tuple[Endpoint, ...]:
        """Every endpoint that may answer for a model or a route, ready or not."""
        route = self._routes.get(name)
        models = [name] if route is None else [*(entry.model for entry in named(route)), *route.fallbacks]
        return tuple({e.id: e for model in models for e in self._by_model.get(model, ())}.values())

    def model_length(self, model: str) -> int | None:
        """Tokens of prompt and output that every worker of the model takes. None: none of them has told."""
        lengths = (endpoint.max_model_len for endpoint in self._by_model.get(model, ()))
        return min((length for length in lengths if length is not None), default=None)

    def has_usable(self, model: str) -> bool:
        """Whether a worker of the model takes requests."""
        return any(endpoint.is_usable for endpoint in self._by_model.get(model, ()))

    def apply(self, config: RouterConfig) -> Changes:
        """Make the pool what the configuration says. Endpoints at an unchanged address keep their state."""
        entries = {entry.id: entry for entry in config.endpoints}
        removed = tuple(e for e in self._by_id.values() if not _is_same_place(e.entry, entries.get(e.id)))
        for endpoint in removed:
            del self._by_id[endpoint.id]
            endpoint.ready, endpoint.why_not = False, "removed from the configuration"
        services = {*(model.service for model in config.models), *(entry.service for entry in config.endpoints)}
        self._latency = {service: self._latency.get(service) or StreamLatency() for service in services}
        added = []
        for entry in config.endpoints:
            counts = self._stats.of(entry.service, entry.revision)
            known = self._by_id.get(entry.id)
            if known is not None:
                known.entry, known.counts = entry, counts
            else:
                made = self._by_id[entry.id] = Endpoint(entry, counts)
                made.on_change = self.on_change
                if self.is_configured:
                    made.warmup.begin()
                added.append(made)
            self._by_id[entry.id].latency = self._latency[entry.service]
        self.settings = config.settings or RouterSettingsEntry()
        self.faults = self.settings.faults
        self._stats.forget_unused({(entry.service, entry.revision) for entry in config.endpoints})
        self._index(config)
        return Changes(added=tuple(added), removed=removed)

    def _index(self, config: RouterConfig) -> None:
        by_model: dict[str, list[Endpoint]] = {model.name: [] for model in config.models}
        for entry in config.endpoints:
            for name in entry.models:
                by_model[name].append(self._by_id[entry.id])
        self._by_model = {name: tuple(endpoints) for name, endpoints in by_model.items()}
        split = {service.id: service.weights for service in config.services if service.weights}
        self._weights = {model.name: split[model.service] for model in config.models if model.service in split}
        sticky = {service.id: service.sticky for service in config.services if service.weights}
        self._sticky = {model.name: sticky[model.service] for model in config.models if model.service in sticky}
        policies = {service.id: service.policy for service in config.services}
        self._policies = {model.name: policies[model.service] for model in config.models if model.service in policies}
        self._adapters = {model.name: model.adapter for model in config.models if model.adapter}
        self._served = {
            name: Served(
                endpoints=endpoints,
                ids=tuple(endpoint.id for endpoint in endpoints),
                policy=self.policy(name),
                adapter=self.adapter(name),
                weights=self.weights(name),
                slow_start_s=self.settings.choice.slow_start_s,
                is_plain=self.policy(name) == "kv_aware" and not self.adapter(name) and self.weights(name) is None,
            )
            for name, endpoints in self._by_model.items()
        }
        self._routes = {route.model: route for route in config.routes}
        self._names = (*self._by_model, *self._routes)
        services = {*(m.service for m in config.models), *(e.service for e in config.endpoints)}
        self.num_services = len({*services, *(service.id for service in config.services)} - {""})
        self.is_configured = True


def named(route: RouteEntry) -> list[RouteTargetEntry] | list[ComplexityStep]:
    """Where a route says who answers."""
    return route.targets or route.complexity


def _is_same_place(old: EndpointEntry, new: EndpointEntry | None) -> bool:
    """Whether both are one worker at one address, whatever it serves and whomever it belongs to."""
    if new is None:
        return False
    return old == msgspec.structs.replace(new, models=old.models, service=old.service, revision=old.revision)
