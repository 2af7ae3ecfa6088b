"""What the operator reports about a resource: conditions and counts. Nothing here shapes a pod.

This module must not know how the values come about.
"""

from typing import Annotated, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel
from quire_operator.api.types import ShortText

Message = Annotated[str, Field(max_length=32_768)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Bytes = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""A size; at most what a JSON number holds exactly. (An API server of 1.20 refuses a default beside a bound of 2**63 - 1.)"""
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]
"""RFC 3339, UTC."""
Share = Annotated[int, Field(ge=0, le=100)]


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
    last_transition_time: Time
    """When status last changed."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """The generation that it speaks about."""


class RevisionStatus(ApiModel):
    """One revision that has pods or could have them again."""

    name: ShortText
    """The revision's digest."""
    weight: Share = 0
    """Its share of the traffic in percent, by the canary's split or else by its ready replicas."""
    replicas: Count = 0
    """Its replicas."""
    ready_replicas: Count = 0
    """Those that are ready."""
    image: Annotated[str, Field(max_length=512)] | None = None
    """The workers' image."""
    failed: bool = False
    """A canary of it was rolled back, and the spec has not changed since."""


class RolloutStatus(ApiModel):
    """A change of revision that is under way, or that was given up. An operator that restarts goes on from here."""

    revision: ShortText
    """The revision that comes."""
    phase: Literal["Replacing", "Canary", "Promoting", "Failed"]
    """Replacing: pods are replaced without a split of traffic. Canary: a step of the split. Promoting: the canary has passed and gets
    all pods. Failed: it was rolled back and waits for another spec."""
    stable: ShortText | None = None
    """The revision that a canary is compared with, and that stays if it fails."""
    started_at: Time
    """When the change began."""
    step: Annotated[int, Field(ge=0, le=10)] = 0
    """The canary's step, from 1."""
    weight: Share = 0
    """The canary's share of the traffic in percent."""
    step_started_at: Time | None = None
    """When the step's pods were ready and its watch began; absent while they start."""
    message: Annotated[str, Field(max_length=1024)] = ""
    """What was observed last, with numbers."""


class FetchStatus(ApiModel):
    """How far the pods' model fetcher is; the one that is furthest behind."""

    phase: Annotated[str, Field(max_length=64)]
    """resolving, downloading, verifying, done or failed."""
    done_bytes: Bytes = 0
    """Bytes that are on disk."""
    total_bytes: Bytes | None = None
    """Bytes in all, once the source has told."""


class ScalingEvent(ApiModel):
    """One change of the number of replicas."""

    time: Time
    """When."""
    replicas: Count
    """The new number."""
    reason: Annotated[str, Field(max_length=1024)] = ""
    """Why, with numbers."""


class StartPhase(ApiModel):
    """One part of a replica's start."""

    name: Literal["Schedule", "Image", "Fetch", "Process", "Weights", "Engine", "FirstToken"]
    """Schedule: until the pod has a node. Image: until its containers are made. Fetch: the model's download. Process: until the worker's
    process says its first word. Weights: until they are in memory. Engine: until it is ready. FirstToken: the first answer's first."""
    milliseconds: Annotated[int, Field(ge=0, le=2**31 - 1)]
    """How long it took."""


class StartStatus(ApiModel):
    """How the replica that started last did it."""

    pod: ShortText
    """Its pod."""
    kind: Literal["Cold", "Warm", "Standby"]
    """Cold: everything; Warm: the node had the model; Standby: a sleeping replica was woken."""
    total_milliseconds: Annotated[int, Field(ge=0, le=2**31 - 1)]
    """From the decision, or the pod's creation, to ready."""
    phases: Annotated[tuple[StartPhase, ...], Field(max_length=8)] = ()
    """In order."""
    time: Time | None = None
    """When it became ready."""


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
    last_active_time: Time | None = None
    """When demand was last above activationDemand, to the half minute; cooldown counts from it."""
    standby: Count | None = None
    """Replicas that sleep and can be woken."""


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
    updated_replicas: Count | None = None
    """Groups of the revision that the spec asks for."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Selects rank 0 of every replica, as text, for /scale."""
    url: Annotated[str, Field(max_length=2048)] | None = None
    """Where clients reach the model."""
    model: Annotated[str, Field(max_length=128)] | None = None
    """The served name."""
    revision: ShortText | None = None
    """The revision of the current spec."""
    revisions: Annotated[tuple[RevisionStatus, ...], Field(max_length=20)] = ()
    """Every revision that has pods or can be gone back to, newest first."""
    rollout: RolloutStatus | None = None
    """A change of revision, while there is one."""
    fetch: FetchStatus | None = None
    """The model's download, while there is one."""
    scaling: ScalingStatus | None = None
    """The autoscaler's view."""
    last_start: StartStatus | None = None
    """How the replica that became ready last did it."""


class AcceptanceStatus(ApiModel):
    """The state of a resource that has no pods."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation that the conditions speak about."""
    conditions: Conditions = ()
    """Accepted says whether routers use the resource."""
