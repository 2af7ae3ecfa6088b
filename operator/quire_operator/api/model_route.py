"""ModelRoute: a public model name that stands for one or several served models.

This module must not know how routers choose.
"""

from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.resource import API_VERSION, Kind, ObjectMeta, PrinterColumn
from quire_operator.api.status import AcceptanceStatus
from quire_operator.api.types import DecimalText, ServedName


class RouteTarget(ApiModel):
    """One served model behind a route."""

    model: ServedName
    """A served name of an InferenceService in the same namespace."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Its share, relative to the other targets'."""


class RouteStep(ApiModel):
    """One model of a route that chooses by a request's complexity."""

    model: ServedName
    """A served name of an InferenceService in the same namespace."""
    below: DecimalText | None = None
    """It answers requests whose score is less, such as "30"; absent in the last step, which answers all that are left."""


class RouteShadow(ApiModel):
    """A model that gets copies of requests; nobody sees its answers."""

    model: ServedName
    """A served name of an InferenceService in the same namespace."""
    percent: Annotated[int, Field(ge=1, le=100)] = 100
    """How many of the requests are copied."""


def _steps_are_whole(route: Any) -> bool:
    bounds = [step.below for step in route.complexity]
    return not bounds or (bounds[-1] is None and None not in bounds[:-1])


def _steps_rise(route: Any) -> bool:
    bounds = [float(step.below) for step in route.complexity if step.below is not None]
    return all(low < high for low, high in pairwise(bounds))


def _models_of(route: Any) -> set[str]:
    shadow = {route.shadow.model} if route.shadow else set()
    return {*route.fallbacks, *(one.model for one in (*route.targets, *route.complexity)), *shadow}


class ModelRouteSpec(ApiModel):
    """Which models answer for a name."""

    model: ServedName
    """The name that clients put into "model"."""
    targets: Annotated[tuple[RouteTarget, ...], Field(max_length=16)] = ()
    """Models that share the requests by weight; none if complexity says who answers."""
    fallbacks: Annotated[tuple[ServedName, ...], Field(max_length=8)] = ()
    """Models that are tried in this order while no target has a ready worker."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """Longest time until the first token."""
    sticky: Literal["None", "Tenant", "User"] = "None"
    """Whose requests stay at one target: nobody's, a tenant's (a key's, without tenants), or those with one value of "user"."""
    complexity: Annotated[tuple[RouteStep, ...], Field(max_length=8)] = ()
    """The first step that a request's score is below answers it; a client overrides the choice by the header x-quire-model."""
    shadow: RouteShadow | None = None
    """A model that is tried out with copies of requests."""
    fallback_on_error: bool = False
    """Ask the fallbacks also when a target's workers fail or refuse for want of room, before anything was sent to the client."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(has(self.targets) && size(self.targets) > 0) != (has(self.complexity) && size(self.complexity) > 0)",
            check=lambda route: bool(route.targets) != bool(route.complexity),
            message="must say who answers, unless complexity does; give one of the two",
            field="targets",
        ),
        Rule(
            cel="!has(self.targets) || size(self.targets) == 0 || self.targets.exists(t, t.weight > 0)",
            check=lambda route: not route.targets or any(target.weight > 0 for target in route.targets),
            message="all weights are 0; give at least one target a weight",
            field="targets",
        ),
        Rule(
            cel="!has(self.targets) || self.targets.all(a, self.targets.exists_one(b, a.model == b.model))",
            check=lambda route: len({target.model for target in route.targets}) == len(route.targets),
            message="a model is a target twice; add the weights up",
            field="targets",
        ),
        Rule(
            cel="(!has(self.targets) || self.targets.all(t, t.model != self.model))"
            " && (!has(self.fallbacks) || self.fallbacks.all(f, f != self.model))"
            " && (!has(self.complexity) || self.complexity.all(s, s.model != self.model))"
            " && (!has(self.shadow) || self.shadow.model != self.model)",
            check=lambda route: route.model not in _models_of(route),
            message="a route must not lead to itself; give it a name of its own",
            field="model",
        ),
        Rule(
            cel="!has(self.complexity) || size(self.complexity) == 0 || (!has(self.complexity[size(self.complexity) - 1].below)"
            " && self.complexity.exists_one(s, !has(s.below)))",
            check=_steps_are_whole,
            message="every step but the last one needs below, and the last one must have none",
            field="complexity",
        ),
        Rule(
            cel="!has(self.complexity)"
            " || (self.complexity.filter(s, has(s.below)).map(s, double(s.below)).isSorted()"
            " && self.complexity.filter(s, has(s.below)).all(a, self.complexity.filter(s, has(s.below))"
            ".exists_one(b, double(a.below) == double(b.below))))",
            check=_steps_rise,
            message="below must rise from step to step",
            field="complexity",
        ),
    )


class ModelRoute(ApiModel):
    """A public model name over served models."""

    api_version: Literal["quire.dev/v1alpha1"] = API_VERSION
    kind: Literal["ModelRoute"] = "ModelRoute"
    metadata: ObjectMeta
    spec: ModelRouteSpec
    """Which models answer for a name."""
    status: AcceptanceStatus | None = None
    """What the operator found."""


MODEL_ROUTE = Kind(
    model=ModelRoute,
    kind="ModelRoute",
    plural="modelroutes",
    singular="modelroute",
    short_names=("mroute",),
    columns=(
        PrinterColumn(name="Model", type="string", json_path=".spec.model"),
        PrinterColumn(name="Targets", type="string", json_path=".spec.targets[*].model"),
        PrinterColumn(name="Accepted", type="string", json_path='.status.conditions[?(@.type=="Accepted")].status'),
        PrinterColumn(name="Reason", type="string", json_path='.status.conditions[?(@.type=="Accepted")].reason'),
        PrinterColumn(name="Age", type="date", json_path=".metadata.creationTimestamp"),
    ),
)
