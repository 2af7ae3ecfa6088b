"""ModelRoute: a public model name that stands for one or several served models.

This module must not know how routers choose.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.resource import API_VERSION, Kind, ObjectMeta, PrinterColumn
from quire_operator.api.status import AcceptanceStatus
from quire_operator.api.types import ServedName


class RouteTarget(ApiModel):
    """One served model behind a route."""

    model: ServedName
    """A served name of an InferenceService in the same namespace."""
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    """Its share, relative to the other targets'."""


class ModelRouteSpec(ApiModel):
    """Which models answer for a name."""

    model: ServedName
    """The name that clients put into "model"."""
    targets: Annotated[tuple[RouteTarget, ...], Field(min_length=1, max_length=16)]
    """Models that share the requests by weight."""
    fallbacks: Annotated[tuple[ServedName, ...], Field(max_length=8)] = ()
    """Models that are tried in this order when a target has nothing ready."""
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """Longest time until the first token."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.targets.exists(t, t.weight > 0)",
            check=lambda route: any(target.weight > 0 for target in route.targets),
            message="all weights are 0; give at least one target a weight",
            field="targets",
        ),
        Rule(
            cel="self.targets.all(a, self.targets.exists_one(b, a.model == b.model))",
            check=lambda route: len({target.model for target in route.targets}) == len(route.targets),
            message="a model is a target twice; add the weights up",
            field="targets",
        ),
        Rule(
            cel="self.targets.all(t, t.model != self.model) && (!has(self.fallbacks) || self.fallbacks.all(f, f != self.model))",
            check=lambda route: route.model not in {*route.fallbacks, *(target.model for target in route.targets)},
            message="a route must not lead to itself; give it a name of its own",
            field="model",
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
