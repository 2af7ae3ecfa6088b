"""What the operator's brain is given and what it answers: the boundary between deciding and doing.

The machine (watches, queue, applies) builds a `ServiceSnapshot`, calls `decide_service` and carries the `Decision` out. Two things
it owes the brain: the snapshot's document holds the operator's own last status write (state of a canary lives there), and
ControllerRevisions among the manifests are applied before Deployments, in the order given.

How a ControllerRevision is read back (by the brain, and by `quire rollback`):

    metadata.name      <service>-<digest>
    revision           counts up; the highest is the newest revision that was wanted
    data.shape         the pod-shaping fields of `spec` as they were, camelCase, without fields at their default:
                       model, parallelism, engine, resources, accelerator, adapters, disaggregation, placement, podTemplate
    data.servedNames   the served name and its aliases
    data.image         the worker's image that the pods got, whether the spec or the release named it
    data.template      the pod template, rendered once

To go back, replace each of the nine fields as a whole by what `data.shape` has and remove those that it lacks (a merge patch
would merge the maps inside). If `data.image` is not the image of the current revision, set `spec.engine.image` to it as well, or
the release's present default would come instead; the digest counts the image itself, not who named it, so the stored revision is
found again and its pods are not restarted.

This module holds types only and must not know how either side works.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from quire_operator.api.validation import Problem
from quire_operator.autoscale.report import ScalingFacts
from quire_operator.autoscale.signal import WorkerLoad
from quire_operator.drain_plan import Leaving
from quire_operator.manifests.parts import Manifest


@dataclass(frozen=True, kw_only=True)
class RevisionCounts:
    """What the release's routers counted for one revision, summed over routers."""

    requests: int = 0
    """Requests that were sent to its workers."""
    errors: int = 0
    """Those that failed by the worker's doing: 5xx or a broken stream; not 4xx, 429 or a client that left."""
    ttft_p95_s: float | None = None
    """95th percentile of the time to the first token in seconds; None if nothing was timed."""


@dataclass(frozen=True, kw_only=True)
class CanaryObservation:
    """What routers counted since `since`: the canary's present step, or later if the operator began to count later."""

    since: datetime
    """When counting began; UTC. A step is watched for its whole interval, so an operator that restarts counts anew."""
    revisions: Mapping[str, RevisionCounts]
    """By revision; a revision that got no request may be absent."""
    heard_at: datetime | None = None
    """When a router last answered; the time after it was not watched. None: just now."""


@dataclass(frozen=True, kw_only=True)
class FetchProgress:
    """How far a pod's model fetcher is."""

    phase: Literal["resolving", "downloading", "verifying", "done", "failed"]
    """What it does now."""
    done_bytes: int = 0
    """Bytes that are on disk."""
    total_bytes: int | None = None
    """Bytes in all; None until the source has told."""
    message: str = ""
    """For a person: whom it waits for, or why it failed."""
    trouble: str = ""
    """What is wrong with the source just now, while it is tried again."""


@dataclass(frozen=True, kw_only=True)
class EventNote:
    """A Kubernetes Event about the service, to be posted once per reason and message."""

    type: Literal["Normal", "Warning"]
    """As kubectl describe shows it."""
    reason: str
    """One CamelCase word."""
    message: str
    """With the numbers, at most 1024 characters."""


@dataclass(frozen=True, kw_only=True)
class ServiceSnapshot:
    """All that a decision may depend on."""

    document: Mapping[str, Any]
    """The InferenceService as the API server has it, status included."""
    children: tuple[Manifest, ...] = ()
    """Live objects owned by it (Deployments, ControllerRevisions, Services and so on), without managedFields."""
    pods: tuple[Manifest, ...] = ()
    """Its pods, by labels."""
    conflicts: tuple[Problem, ...] = ()
    """Names that an older service serves already."""
    may_upgrade: bool = True
    """Whether it may begin, or go on with, a move to a new default image; a service that is upgrading keeps its permission."""
    canary: CanaryObservation | None = None
    """None: not asked for, or no router has answered since."""
    fetches: Mapping[str, FetchProgress] = field(default_factory=dict)
    """By pod name."""
    apply_errors: tuple[Problem, ...] = ()
    """What the API server refused at the last apply: path is the object ("Deployment/x"), message the server's."""
    now: datetime
    """UTC, aware."""
    scaling: ScalingFacts | None = None
    """What the autoscaler says; None: the service does not scale."""
    loads: Mapping[str, WorkerLoad] = field(default_factory=dict)
    """Of workers, by the name of the pod, as routers say."""
    empty: frozenset[str] = frozenset()
    """Pods that drain and have nothing left."""
    doomed: Mapping[str, str] = field(default_factory=dict)
    """Pods whose node is about to be lost, and why."""
    may_drain: bool = True
    """Whether pods can be marked as leaving; if not, they drain when they are told to end, and no sooner."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What should be so now."""

    manifests: tuple[Manifest, ...] | None
    """Objects that should exist, owner references included, in the order to apply; None: leave the children alone (paused,
    invalid spec). Owned objects that are not among them go, except PersistentVolumeClaims."""
    status: Mapping[str, Any]
    """The whole .status; equal to the present one if nothing changed."""
    weights: Mapping[str, int]
    """Revision -> percent for routers; empty: no split."""
    events: tuple[EventNote, ...]
    """What changed with this decision."""
    requeue_after_s: float | None
    """Look again then in seconds, though nothing changes; None: no need."""
    is_upgrading: bool
    """Moves to a new default image now: counts against platform.max_concurrent_upgrades."""
    wants_canary_stats: tuple[str, str] | None
    """(stable revision, canary revision) whose counts the next snapshot needs, from status.rollout.stepStartedAt on."""
    wants_fetch_progress: bool
    """A pod is fetching its model."""
    leaving: Mapping[str, Leaving] = field(default_factory=dict)
    """Pods that shall drain, by name; others that do are taken back."""
