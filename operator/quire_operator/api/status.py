"""What the operator reports about a resource: conditions and counts. Nothing here shapes a pod.

This module must not know how the values come about.
"""

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel
from quire_operator.api.types import ShortText

Message = Annotated[str, Field(max_length=32_768)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]


class Condition(ApiModel):
    """metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Ready, Accepted, WorkloadReady, Progressing and so on; True is good."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One CamelCase word for programs."""
    message: Message = ""
    """What a person should read: the field and the fix."""
    last_transition_time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
    """When status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation that it speaks about."""


class RevisionStatus(ApiModel):
    """One revision that has pods or could have them again."""

    name: ShortText
    """The revision's digest."""
    weight: Annotated[int, Field(ge=0, le=100)] = 0
    """Its share of the traffic in percent."""
    replicas: Count = 0
    """Its replicas."""
    ready_replicas: Count = 0
    """Those that are ready."""


class ScalingEvent(ApiModel):
    """One change of the number of replicas."""

    time: Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
    """When."""
    replicas: Count
    """The new number."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """Why, with numbers."""


class ScalingStatus(ApiModel):
    """What the autoscaler last saw and did."""

    provider: ShortText | None = None
    """The only writer of spec.replicas."""
    desired: Count = 0
    """Replicas that it asks for."""
    demand: Count = 0
    """Requests held, queued and running."""
    last_reason: Annotated[str, Field(max_length=1024)] = ""
    """Why."""
    history: Annotated[tuple[ScalingEvent, ...], Field(max_length=5)] = ()
    """The last changes, newest first."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class InferenceServiceStatus(ApiModel):
    """The state of an InferenceService."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation that all of this speaks about."""
    conditions: Conditions = ()
    """Ready sums up the others."""
    replicas: Count | None = None
    """Groups of pods that exist."""
    ready_replicas: Count | None = None
    """Groups that serve."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Selects rank 0 of every replica, as text, for /scale."""
    url: Annotated[str, Field(max_length=2048)] | None = None
    """Where clients reach the model."""
    model: Annotated[str, Field(max_length=128)] | None = None
    """The served name."""
    revision: ShortText | None = None
    """The revision of the current spec."""
    revisions: Annotated[tuple[RevisionStatus, ...], Field(max_length=20)] = ()
    """Every revision, newest first."""
    scaling: ScalingStatus | None = None
    """The autoscaler's view."""


class AcceptanceStatus(ApiModel):
    """The state of a resource that has no pods."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation that the conditions speak about."""
    conditions: Conditions = ()
    """Accepted says whether routers use the resource."""
