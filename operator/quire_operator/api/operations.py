"""The parts of an InferenceService's spec about many pods over time: scaling, rollout, adapters, disaggregation.

This module must not know manifests. Scaling's words and defaults are those of HPA v2 and KEDA, so that users need not relearn them.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.model_uri import ModelUriText
from quire_operator.api.types import Percent, ServedName
from quire_operator.api.workload import AcceleratorSpec, ResourcesSpec, SecretReference

Seconds = Annotated[int, Field(ge=0, le=86_400)]


class ScalingPolicy(ApiModel):
    """At most this much change per period, as in HPA v2."""

    type: Literal["Pods", "Percent"]
    """What value counts."""
    value: Annotated[int, Field(ge=1, le=1000)]
    """The largest change."""
    period_seconds: Annotated[int, Field(ge=1, le=1800)] = 60
    """The period."""


class ScalingDirection(ApiModel):
    """How fast the number of replicas may move one way."""

    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """How far back the most careful recommendation is sought; absent, 0 upwards and 300 downwards."""
    policies: Annotated[tuple[ScalingPolicy, ...], Field(max_length=4)] = ()
    """Limits; the most generous counts. Empty: double or 4 pods upwards, everything downwards."""


class ScalingBehavior(ApiModel):
    """Both directions."""

    scale_up: ScalingDirection = ScalingDirection()
    """Upwards."""
    scale_down: ScalingDirection = ScalingDirection()
    """Downwards."""


class ScalingSpec(ApiModel):
    """Replicas that follow demand: requests held, queued and running."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest replicas; 0 lets the service sleep."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas."""
    provider: Literal["Auto", "BuiltIn", "Keda"] = "Auto"
    """Who writes spec.replicas: KEDA where it is installed (Auto), or one of the two in any case."""
    demand_per_replica: Annotated[int, Field(ge=1, le=10_000)] = 32
    """Requests that one replica is meant to work on at once."""
    polling_interval_seconds: Annotated[int, Field(ge=1, le=600)] = 5
    """How often demand is read."""
    cooldown_seconds: Seconds = 300
    """Idle time before the last replica goes, where minReplicas is 0."""
    hold_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """How long a request waits for a sleeping service to wake."""
    behavior: ScalingBehavior = ScalingBehavior()
    """How fast replicas may come and go."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            check=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
            message="is larger than maxReplicas; lower it, or raise maxReplicas",
            field="minReplicas",
        ),
    )


class AdapterSpec(ApiModel):
    """A LoRA adapter that the service's workers can load."""

    name: ServedName
    """The name that clients put into "model"."""
    uri: ModelUriText
    """Where its files are; the forms of spec.model.uri."""
    secret_ref: SecretReference | None = None
    """Credentials of a private source."""


class PrefillSpec(ApiModel):
    """The pool that computes prompts."""

    replicas: Annotated[int, Field(ge=1, le=1000)] = 1
    """Workers of the pool."""
    resources: ResourcesSpec = ResourcesSpec()
    """CPU and memory of each."""
    accelerator: AcceleratorSpec | None = None
    """Devices of each."""


class DisaggregationSpec(ApiModel):
    """Prompts are computed by other workers than answers."""

    prefill: PrefillSpec = PrefillSpec()
    """The pool that computes prompts; spec.replicas then means the decode pool."""
    min_prompt_tokens: Annotated[int, Field(ge=0, le=16_777_216)] = 512
    """A prompt with fewer uncached tokens is computed where it is answered."""


class CanarySpec(ApiModel):
    """A new revision gets traffic step by step, and goes back by itself. Without any traffic, steps pass after their interval."""

    steps: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=10)] = (5, 25, 50)
    """Share of the traffic in percent, one step after the other."""
    interval_seconds: Annotated[int, Field(ge=10, le=86_400)] = 300
    """How long a step is watched from when its pods are ready; up to three times as long while fewer than 20 requests came."""
    max_error_percent: Percent = 1
    """More failed requests than this, and more than the old revision has, and the revision is rolled back. One or two never count."""
    max_latency_increase_percent: Annotated[int, Field(ge=0, le=1000)] = 50
    """A 95th percentile of the time to first token that is this much above the old revision's, and the revision is rolled back."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.steps.all(s, s > 0 && s < 100)",
            check=lambda canary: all(0 < step < 100 for step in canary.steps),
            message="each step lies between 1 and 99; the last promotion to 100 is implied",
            field="steps",
        ),
    )


class RolloutSpec(ApiModel):
    """How a new revision replaces the old one."""

    strategy: Literal["Surge", "Recreate"] = "Surge"
    """Surge starts new pods first, a quarter more than replicas at most; Recreate first stops one replica at a time, for when there are
    no spare devices (a service of one replica is then away while the new one starts)."""
    canary: CanarySpec | None = None
    """Split traffic between the revisions and decide by what is observed."""
    revision_history_limit: Annotated[int, Field(ge=1, le=20)] = 5
    """Revisions without pods that are kept, for `quire rollback` to go back to."""
