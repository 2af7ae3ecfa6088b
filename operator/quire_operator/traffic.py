"""From an InferenceService's `routing`, `price` and `scaling` to what routers are told of it. Pure; this module must not know shards or
pods."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from quire_contract.router_config import ModelEntry, RoutingPolicy, ServiceEntry
from quire_contract.router_tenants import PriceEntry
from quire_operator.api.inference_service import InferenceServiceSpec
from quire_operator.api.operations import ScalingSpec
from quire_operator.api.traffic import PriceSpec, RoutingSpec

_POLICIES: Mapping[str, RoutingPolicy] = {
    "KvAware": "kv_aware",
    "RoundRobin": "round_robin",
    "LeastLoad": "least_load",
    "ConsistentHash": "consistent_hash",
    "SessionAffinity": "session_affinity",
}
_STICKY: Mapping[str, Literal["none", "tenant", "user"]] = {"None": "none", "Tenant": "tenant", "User": "user"}


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """How one service's requests are treated."""

    routing: RoutingSpec
    price: PriceSpec | None
    hold_timeout_s: float | None = None
    """How long a request waits for a first ready worker; None: as the routers' settings say."""


PLAIN = Traffic(routing=RoutingSpec(), price=None)
"""That of a service that says nothing about it."""


def traffic_of(document: Mapping[str, Any], last: Traffic) -> Traffic:
    """What the document says; where it cannot be read, `last` goes on, as the service's pods do."""
    spec = document.get("spec")
    spec = spec if isinstance(spec, Mapping) else {}
    try:
        routing = RoutingSpec.model_validate(spec.get("routing") or {})
    except ValidationError:
        routing = last.routing
    try:
        price = PriceSpec.model_validate(spec["price"]) if spec.get("price") else None
    except ValidationError:
        price = last.price
    try:
        scaling = ScalingSpec.model_validate(spec["scaling"]) if spec.get("scaling") else None
    except ValidationError:
        return Traffic(routing=routing, price=price, hold_timeout_s=last.hold_timeout_s)
    return Traffic(routing=routing, price=price, hold_timeout_s=_hold_timeout_s(scaling))


def spec_traffic(spec: InferenceServiceSpec) -> Traffic:
    """That of a valid spec."""
    return Traffic(routing=spec.routing, price=spec.price, hold_timeout_s=_hold_timeout_s(spec.scaling))


def _hold_timeout_s(scaling: ScalingSpec | None) -> float | None:
    return None if scaling is None else float(scaling.hold_timeout_seconds)


def model_entries(service: str, served: Iterable[str], traffic: Traffic) -> tuple[ModelEntry, ...]:
    """The served names of `service` ("namespace/name"), each with the price."""
    price = None
    if traffic.price is not None:
        price = PriceEntry(
            input=traffic.price.input, cached_input=traffic.price.cached_input, output=traffic.price.output
        )
    return tuple(ModelEntry(name=model, service=service, price=price) for model in served)


def split_entry(service: str, weights: Mapping[str, int], traffic: Traffic) -> ServiceEntry:
    """How the requests of `service` are split, chosen for and held."""
    timeout = traffic.routing.queue_timeout_seconds
    return ServiceEntry(
        id=service,
        weights=dict(sorted(weights.items())),
        policy=_POLICIES[traffic.routing.policy],
        max_queued_requests=traffic.routing.max_queued_requests,
        queue_timeout_s=None if timeout is None else float(timeout),
        hold_timeout_s=traffic.hold_timeout_s,
        sticky=_STICKY[traffic.routing.sticky],
    )
