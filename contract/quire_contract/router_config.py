"""What tells a router which workers exist, which names they serve and how requests are split among them.

`quire up` writes it as a file that the router polls: JSON, replaced as a whole (write beside, then rename), so that a reader sees the
old file or the new one. On a cluster the operator writes it without endpoints, in shards (ConfigMaps labelled LABEL_ROUTER_CONFIG, key
SHARD_KEY, at most MAX_SHARD_BYTES each), and routers add the pods they watch. Unknown keys are errors.
A name in `models` or `routes` without an endpoint is known but not ready (503); any other name is unknown (404).
"""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from quire_contract.router_settings import RouterSettingsEntry, settings_problem
from quire_contract.router_tenants import PriceEntry, TenantEntry, price_problem, tenant_problem

VERSION = 1
SHARD_KEY = "router.json"
"""The key of a shard's ConfigMap that holds the configuration."""
MAX_SHARD_BYTES = 512 * 1024
MAX_WEIGHT = 1_000_000
EntryT = TypeVar("EntryT")
RoutingPolicy = Literal["kv_aware", "round_robin", "least_load", "consistent_hash", "session_affinity"]
Role = Literal["both", "prefill", "decode"]


class RouterConfigError(ValueError):
    """The file cannot be used. The message names the file, the field and the fix."""


class ModelEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A served name."""

    name: str
    """As clients write it in `model`."""
    service: str = ""
    """The InferenceService behind it, "namespace/name"."""
    adapter: str = ""
    """The LoRA adapter that the name stands for; empty: the model itself."""
    price: PriceEntry | None = None
    """What its tokens cost; None: nothing."""


class ServiceEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the requests of one InferenceService are split among its revisions."""

    id: str
    """"namespace/name"."""
    weights: dict[str, int] = {}
    """Revision -> its share of the requests in percent; one that is not named gets none. Empty: no split, all revisions are equal."""
    policy: RoutingPolicy = "kv_aware"
    """How a worker is chosen."""
    max_queued_requests: int | None = None
    """Requests for it that may wait in the router; None: as the settings say."""
    queue_timeout_s: float | None = None
    """Longest wait there while its workers are full; None: as the settings say."""
    hold_timeout_s: float | None = None
    """Longest wait there for its first ready worker, while it wakes from zero; None: as the settings say."""
    sticky: Literal["none", "tenant", "user"] = "none"
    """Whose requests stay at one revision while `weights` splits them, as at a route's target."""


class RouteTargetEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of the models that share a route's requests."""

    model: str
    """A served name."""
    weight: int = 1
    """Its part, relative to the other targets'; 0: none."""


class ComplexityStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of a route that chooses by a request's complexity."""

    model: str
    """A served name."""
    below: float | None = None
    """It answers requests whose score is less; None: all that are left. Only the last step has none."""


class ShadowEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Copies of requests for a model whose answers nobody sees."""

    model: str
    """A served name."""
    percent: int = 100
    """Of the requests."""


class RouteEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A public name behind which other models answer."""

    model: str
    """As clients write it in `model`; never one of the served names."""
    targets: list[RouteTargetEntry] = []
    """Who answers, by weight. Empty if `complexity` says it."""
    fallbacks: list[str] = []
    """Served names that are asked, in this order, while no target has a ready worker."""
    timeout_s: float | None = None
    """Longest time until the first token of a stream; None: the router's own limit."""
    sticky: Literal["none", "tenant", "user"] = "none"
    """Whose requests stay at one target: nobody's, a tenant's (its key's, without tenants), or those with one value of "user"."""
    complexity: list[ComplexityStep] = []
    """The model is chosen by the request's score, the first step that it is below; header x-quire-model overrides."""
    shadow: ShadowEntry | None = None
    fallback_on_error: bool = False
    """Fallbacks are also asked when a target's workers fail (5xx) or refuse for want of room (429, 503), before anything was sent."""


class EndpointEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One worker."""

    id: str
    """Unique; the pod's name where that is."""
    url: str
    """http://host:port, no path."""
    models: list[str]
    """Served names that it answers to; each is in RouterConfig.models."""
    events: str | None = None
    """ZMQ address of its event socket; None: it sends none."""
    replay: str | None = None
    """ZMQ address of its replay socket."""
    pod: str = ""
    """The pod's name where it is not the id: topics are kv@<pod>@<model>."""
    service: str = ""
    """The InferenceService that it belongs to, "namespace/name"."""
    revision: str = ""
    """The service's revision that it runs."""
    role: Role = "both"
    """What it does of a request."""

    @property
    def pod_name(self) -> str:
        """The name in its topics."""
        return self.pod or self.id


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """All that a router serves, or a shard of it."""

    models: list[ModelEntry]
    endpoints: list[EndpointEntry]
    services: list[ServiceEntry] = []
    routes: list[RouteEntry] = []
    tenants: list[TenantEntry] = []
    require_tenant: bool = False
    """Requests without a tenant's key are refused, even while there is no tenant."""
    settings: RouterSettingsEntry | None = None
    """None: the defaults."""
    version: int = VERSION


def encode_config(config: RouterConfig) -> bytes:
    """The file's bytes."""
    return msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n"


def decode_config(data: bytes, source: str = "router configuration") -> RouterConfig:
    """The configuration in `data`; `source` names it in errors. RouterConfigError if it cannot be used."""
    try:
        config = msgspec.json.decode(data, type=RouterConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RouterConfigError(f"{source}: {error}") from None
    problem = _first_problem(config)
    if problem is not None:
        raise RouterConfigError(f"{source}: {problem}")
    return config


def read_config(path: Path) -> RouterConfig:
    """The configuration in the file at `path`. RouterConfigError if it is missing, unreadable or wrong."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RouterConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return decode_config(data, str(path))


def write_config(path: Path, config: RouterConfig) -> None:
    """Replace the file at `path` in one step."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(encode_config(config))
    beside.replace(path)


def merge_shards(shards: Sequence[RouterConfig]) -> RouterConfig:
    """One configuration of all shards. What two of them say of one name, the first one says: while the operator moves an entry from
    shard to shard, both may hold it for a moment, and that must not cost the rest. So must a route with a served model's name."""
    models = _first_of_each((m for shard in shards for m in shard.models), lambda model: model.name)
    served = {model.name for model in models}
    routes = (route for shard in shards for route in shard.routes if route.model not in served)
    return RouterConfig(
        models=models,
        endpoints=_first_of_each((e for shard in shards for e in shard.endpoints), lambda endpoint: endpoint.id),
        services=_first_of_each((s for shard in shards for s in shard.services), lambda service: service.id),
        routes=_first_of_each(routes, lambda route: route.model),
        tenants=_first_of_each((t for shard in shards for t in shard.tenants), lambda tenant: tenant.id),
        require_tenant=any(shard.require_tenant for shard in shards),
        settings=next((shard.settings for shard in shards if shard.settings is not None), None),
    )


def _first_of_each(entries: Iterable[EntryT], key: Callable[[EntryT], str]) -> list[EntryT]:
    found: dict[str, EntryT] = {}
    for entry in entries:
        found.setdefault(key(entry), entry)
    return list(found.values())


def _first_problem(config: RouterConfig) -> str | None:
    if config.version != VERSION:
        return f"version is {config.version}, this router reads version {VERSION}"
    names = {model.name for model in config.models}
    for field, values in _unique_values(config).items():
        repeated = _first_repeated(values)
        if repeated is not None:
            return f"{field}: {repeated!r} is used twice"
    problems = [
        *((f"endpoints[{i}]", _endpoint_problem(entry, names)) for i, entry in enumerate(config.endpoints)),
        *((f"services[{i}]", _service_problem(entry)) for i, entry in enumerate(config.services)),
        *((f"routes[{i}]", _route_problem(entry, names)) for i, entry in enumerate(config.routes)),
        *((f"tenants[{i}]", tenant_problem(entry)) for i, entry in enumerate(config.tenants)),
        *((f"models[{i}].price", price_problem(entry.price)) for i, entry in enumerate(config.models) if entry.price),
        ("settings", None if config.settings is None else settings_problem(config.settings)),
    ]
    return next((f"{place}.{problem}" for place, problem in problems if problem is not None), None)


def _unique_values(config: RouterConfig) -> dict[str, list[str]]:
    return {
        "models: name": [model.name for model in config.models],
        "endpoints: id": [endpoint.id for endpoint in config.endpoints],
        "services: id": [service.id for service in config.services],
        "routes: model": [route.model for route in config.routes],
        "tenants: id": [tenant.id for tenant in config.tenants],
        "tenants: sha256": [key.sha256 for tenant in config.tenants for key in tenant.keys],
    }


def _endpoint_problem(endpoint: EndpointEntry, names: set[str]) -> str | None:
    if not endpoint.id or "@" in endpoint.id:
        return f"id: {endpoint.id!r} must be a pod name (not empty, no '@')"
    try:
        parts = urlsplit(endpoint.url)
        _ = parts.port
    except ValueError as error:
        return f"url: {endpoint.url!r} is no address: {error}"
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path not in ("", "/"):
        return f"url: {endpoint.url!r} must be http://host:port without a path"
    unknown = sorted(set(endpoint.models) - names)
    if unknown:
        return f"models: {unknown[0]!r} is not in models; add it there"
    for field in ("events", "replay"):
        address = getattr(endpoint, field)
        if address is not None and "://" not in address:
            return f"{field}: {address!r} must be a ZMQ address such as tcp://127.0.0.1:5557"
    return None


def _service_problem(service: ServiceEntry) -> str | None:
    if service.id.count("/") != 1 or service.id.startswith("/") or service.id.endswith("/"):
        return f"id: {service.id!r} must be namespace/name"
    for field in ("queue_timeout_s", "hold_timeout_s"):
        timeout_s = getattr(service, field)
        if timeout_s is not None and not 0 <= timeout_s < float("inf"):
            return f"{field}: {timeout_s} must be a number of seconds, at least 0"
    return _weights_problem("weights", service.weights)


def _route_problem(route: RouteEntry, names: set[str]) -> str | None:
    if not route.model or route.model in names:
        return f"model: {route.model!r} must be a name of its own, neither empty nor in models"
    if bool(route.targets) == bool(route.complexity):
        return "targets: must name at least one model, unless complexity says who answers; give one of the two"
    if route.complexity:
        problem = _steps_problem(route.complexity)
        if problem is not None:
            return problem
    if route.shadow is not None and not 1 <= route.shadow.percent <= 100:
        return f"shadow.percent: is {route.shadow.percent}; use 1 to 100"
    targets = [target.model for target in route.targets]
    repeated = _first_repeated(targets)
    if repeated is not None:
        return f"targets: {repeated!r} is a target twice; add the weights up"
    others = [step.model for step in route.complexity] + ([route.shadow.model] if route.shadow else [])
    if route.model in (*targets, *route.fallbacks, *others):
        return f"targets: {route.model!r} must not lead to itself"
    if route.timeout_s is not None and not 0 < route.timeout_s < float("inf"):
        return f"timeout_s: {route.timeout_s} must be a positive number of seconds"
    return _weights_problem("targets", {target.model: target.weight for target in route.targets})


def _steps_problem(steps: list[ComplexityStep]) -> str | None:
    bounds = [step.below for step in steps]
    known = [bound for bound in bounds[:-1] if bound is not None]
    if bounds[-1] is not None or len(known) != len(bounds) - 1:
        return "complexity: every step but the last one needs below, and the last one must have none"
    if known != sorted(set(known)):
        return "complexity: below must rise from step to step"
    return None


def _weights_problem(field: str, weights: dict[str, int]) -> str | None:
    wrong = next((name for name, weight in weights.items() if not 0 <= weight <= MAX_WEIGHT), None)
    if wrong is not None:
        return f"{field}: {wrong!r} has weight {weights[wrong]}; use 0 to {MAX_WEIGHT}"
    if weights and not any(weights.values()):
        return f"{field}: all weights are 0; give at least one of them more"
    return None


def _first_repeated(values: list[str]) -> str | None:
    seen: set[str] = set()
    return next((value for value in values if value in seen or seen.add(value)), None)  # type: ignore[func-returns-value]
