"""What becomes of resources without pods: is a ModelRoute used by routers, and why not; what a Tenant's condition says.

Pure. This module must not know requests or caches.
"""

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal

from quire_contract.router_config import ComplexityStep, RouteEntry, RouteTargetEntry, ShadowEntry
from quire_operator.api.model_route import MODEL_ROUTE, ModelRoute, ModelRouteSpec
from quire_operator.api.validation import InvalidResourceError, Problem, parse_resource
from quire_operator.name_claims import ServiceKey
from quire_operator.tenants import TenantDecision, enforcement_text

_STICKY: Mapping[str, Literal["none", "tenant", "user"]] = {"None": "none", "Tenant": "tenant", "User": "user"}


def decide_route(
    document: Mapping[str, Any], owners: Mapping[str, ServiceKey], older_routes: Mapping[str, ServiceKey]
) -> tuple[RouteEntry | None, tuple[Problem, ...], str]:
    """What routers are told of a route, else its problems and their reason. `owners` has every served name's service."""
    try:
        route = parse_resource(dict(document), MODEL_ROUTE)
    except InvalidResourceError as error:
        return None, error.problems, "InvalidSpec"
    assert isinstance(route, ModelRoute)
    spec, namespace = route.spec, document["metadata"]["namespace"]
    if spec.model in owners:
        rival = "/".join(owners[spec.model])
        message = f"{spec.model!r} is served by InferenceService {rival}; give the route a name of its own"
        return None, (Problem(path="spec.model", message=message),), "NameConflict"
    if spec.model in older_routes:
        rival = "/".join(older_routes[spec.model])
        message = f"{spec.model!r} is the name of the older ModelRoute {rival}; give this one another"
        return None, (Problem(path="spec.model", message=message),), "NameConflict"
    served_here = {name for name, key in owners.items() if key[0] == namespace}
    problems = tuple(_unknown(path, model, served_here) for path, model in _wanted(spec) if model not in served_here)
    if problems:
        return None, problems, "UnknownModel"
    return route_entry(spec), (), "Accepted"


def route_entry(spec: ModelRouteSpec) -> RouteEntry:
    """A route as routers are told of it."""
    return RouteEntry(
        model=spec.model,
        targets=[RouteTargetEntry(model=target.model, weight=target.weight) for target in spec.targets],
        fallbacks=list(spec.fallbacks),
        timeout_s=float(spec.timeout_seconds),
        sticky=_STICKY[spec.sticky],
        complexity=[
            ComplexityStep(model=step.model, below=None if step.below is None else float(step.below))
            for step in spec.complexity
        ],
        shadow=None if spec.shadow is None else ShadowEntry(model=spec.shadow.model, percent=spec.shadow.percent),
        fallback_on_error=spec.fallback_on_error,
    )


def _wanted(spec: ModelRouteSpec) -> Iterator[tuple[str, str]]:
    """(field, model) of every model that the route needs."""
    yield from ((f"spec.targets[{i}].model", target.model) for i, target in enumerate(spec.targets))
    yield from ((f"spec.fallbacks[{i}]", model) for i, model in enumerate(spec.fallbacks))
    yield from ((f"spec.complexity[{i}].model", step.model) for i, step in enumerate(spec.complexity))
    if spec.shadow is not None:
        yield "spec.shadow.model", spec.shadow.model


def accepted_status(
    document: Mapping[str, Any], problems: Collection[Problem], reason: str, now: datetime
) -> dict[str, Any]:
    """The status with its one condition; `now` (UTC) is its time only if it turned."""
    message = "; ".join(map(str, problems)) if problems else "Routers use it."
    return _status(document, "False" if problems else "True", reason, message, now)


def tenant_status(
    document: Mapping[str, Any], decision: TenantDecision, known_models: Collection[str], now: datetime
) -> dict[str, Any]:
    """The status of a Tenant; `known_models` are names that it may use, routes included. A model that is unknown may come later."""
    if decision.problems:
        return accepted_status(document, decision.problems, decision.reason, now)
    return _status(document, "True", decision.reason, enforcement_text(decision, known_models), now)


def _status(document: Mapping[str, Any], status: str, reason: str, message: str, now: datetime) -> dict[str, Any]:
    generation = document["metadata"].get("generation", 0)
    known = next(
        (c for c in (document.get("status") or {}).get("conditions") or () if c.get("type") == "Accepted"), None
    )
    turned = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": "Accepted",
        "status": status,
        "reason": reason,
        "message": message[:32_768],
        "lastTransitionTime": known["lastTransitionTime"] if known and known.get("status") == status else turned,
        "observedGeneration": generation,
    }
    return {"observedGeneration": generation, "conditions": [condition]}


def _unknown(path: str, model: str, served_here: Collection[str]) -> Problem:
    known = ", ".join(sorted(served_here)[:10]) or "none"
    return Problem(path=path, message=f"no InferenceService in this namespace serves {model!r}; served here: {known}")
