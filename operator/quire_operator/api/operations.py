"""The parts of an InferenceService's spec about many pods over time: scaling, rollout, adapters, disaggregation.

This module must not know manifests. Scaling's words and defaults are those of HPA v2 and KEDA, so that users need not relearn them.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quire_operator.api.base import ApiModel, Rule
from quire_operator.api.model_uri import ModelUriText
from quire_operator.api.types import Percent, ServedName, TimeZone
from quire_operator.api.workload import AcceleratorSpec, ResourcesSpec, SecretReference

Seconds = Annotated[int, Field(ge=0, le=86_400)]
CLOCK_PATTERN = r"^([01][0-9]|2[0-3]):[0-5][0-9]$"


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
    """How far back the most careful recommendation is sought; absent, 0 upwards and 300 downwards, or without scaling.targets five
    times as long as a replica takes to start, from 60 to 300."""
    policies: Annotated[tuple[ScalingPolicy, ...], Field(max_length=4)] = ()
    """Limits; the most generous counts, or what selectPolicy says. Empty: double or 4 pods upwards, everything downwards."""
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    """Which of several limits counts; Disabled: it never moves this way."""
    tolerance_percent: Percent = 10
    """A metric that is off its target by no more than this changes nothing."""


class ScalingBehavior(ApiModel):
    """Both directions."""

    scale_up: ScalingDirection = ScalingDirection()
    """Upwards."""
    scale_down: ScalingDirection = ScalingDirection()
    """Downwards."""


class ScalingTarget(ApiModel):
    """What one metric should be."""

    metric: Literal["Demand", "QueueLength", "QueueWait", "TimeToFirstToken", "InterTokenLatency", "KvUse"]
    """Demand: requests held, queued and running, per replica; QueueLength: held and queued ones, per replica. QueueWait,
    TimeToFirstToken, InterTokenLatency: 95th percentile of the last minute in milliseconds. KvUse: percent of the KV blocks in use."""
    value: Annotated[int, Field(ge=1, le=3_600_000)]
    """The target: requests, milliseconds or percent."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.metric != 'KvUse' || self.value <= 100",
            check=lambda target: target.metric != "KvUse" or target.value <= 100,
            message="KvUse is a percentage; write at most 100",
            field="value",
        ),
    )


class ScalingSchedule(ApiModel):
    """Other bounds at some hours; of several that hold at once, the largest count."""

    name: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
    """What it is called in reasons."""
    time_zone: TimeZone = "UTC"
    """IANA name, such as Europe/Berlin."""
    weekdays: Annotated[
        tuple[Literal["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"], ...],
        Field(max_length=7, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = ()
    """Days on which it begins; empty: every day."""
    start: Annotated[str, Field(pattern=CLOCK_PATTERN, max_length=5)]
    """Local time such as 07:30."""
    end: Annotated[str, Field(pattern=CLOCK_PATTERN, max_length=5)]
    """Local time; not after start: of the next day."""
    min_replicas: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Fewest replicas then; set before the hour by as much as a start takes, it prewarms."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Most replicas then."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.minReplicas) || has(self.maxReplicas)",
            check=lambda one: one.min_replicas is not None or one.max_replicas is not None,
            message="changes nothing; write minReplicas, maxReplicas or both",
        ),
        Rule(
            cel="!has(self.minReplicas) || !has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
            check=lambda one: None in (one.min_replicas, one.max_replicas) or one.min_replicas <= one.max_replicas,
            message="is larger than maxReplicas; lower it, or raise maxReplicas",
            field="minReplicas",
        ),
    )


class ScalingPanic(ApiModel):
    """A burst: while demand is far above what the ready replicas are meant for, rate limits do not hold and nothing goes down."""

    window_seconds: Annotated[int, Field(ge=1, le=600)] = 6
    """How long the burst must last."""
    threshold_percent: Annotated[int, Field(ge=110, le=1000)] = 200
    """Demand over what the ready replicas are meant for."""
    mode: Literal["Enabled", "Disabled"] = "Enabled"
    """Disabled: rate limits and windows hold in a burst too, and the other two fields mean nothing."""


class ScalingFallback(ApiModel):
    """Replicas while demand is unknown, as KEDA's fallback."""

    failure_threshold: Annotated[int, Field(ge=1, le=1000)] = 3
    """Readings in a row that must have failed."""
    replicas: Annotated[int, Field(ge=0, le=1000)]
    """How many replicas then."""
    behavior: Literal["Static", "CurrentReplicas", "CurrentReplicasIfHigher", "CurrentReplicasIfLower"] = (
        "CurrentReplicasIfHigher"
    )
    """Whether the present number counts beside it."""


class ScalingStandby(ApiModel):
    """Replicas between none and one: their process runs and holds the weights, and they take no requests until they are woken."""

    replicas: Annotated[int, Field(ge=1, le=100)] = 1
    """How many are kept, ready ones included: at zero so many sleep."""


def _schedule_names_differ(scaling: "ScalingSpec") -> bool:
    return len({one.name for one in scaling.schedules}) == len(scaling.schedules)


def _schedule_minimums_fit(scaling: "ScalingSpec") -> bool:
    return all(
        one.max_replicas is not None or (one.min_replicas or 0) <= scaling.max_replicas for one in scaling.schedules
    )


def _target_metrics_differ(scaling: "ScalingSpec") -> bool:
    return len({one.metric for one in scaling.targets}) == len(scaling.targets)


class ScalingSpec(ApiModel):
    """Replicas that follow demand: requests held, queued and running."""

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest replicas; 0 lets the service sleep."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most replicas."""
    provider: Literal["Auto", "BuiltIn", "Keda", "Hpa"] = "Auto"
    """Who writes spec.replicas: KEDA where it is installed, else the operator (Auto), or one of the three in any case."""
    targets: Annotated[tuple[ScalingTarget, ...], Field(max_length=6)] = ()
    """What is to be held, by HPA's formulas; the metric that asks for most replicas counts. Empty: Demand at demandPerReplica, or without
    that Demand as it will be when a replica that starts now is ready, at what engines run at once."""
    demand_per_replica: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Requests that one replica is meant to work on at once; absent, what its engine says it runs at once."""
    activation_demand: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Demand above which a sleeping service wakes, and at most which it is idle."""
    polling_interval_seconds: Annotated[int, Field(ge=1, le=600)] = 5
    """How often demand is read; a first request at zero is told at once, whatever this says."""
    cooldown_seconds: Seconds = 300
    """Idle time before the last replicas go, where minReplicas is 0."""
    initial_cooldown_seconds: Seconds = 0
    """The same for a service that nobody has called yet, since its creation."""
    hold_timeout_seconds: Annotated[int, Field(ge=1, le=3600)] = 300
    """How long a request waits for a sleeping service to wake."""
    behavior: ScalingBehavior = ScalingBehavior()
    """How fast replicas may come and go."""
    panic: ScalingPanic | None = None
    """What a burst may do beyond that; absent, nothing if there are targets or limits upwards, else 6 s and 200 percent; mode: Disabled is
    nothing in any case."""
    schedules: Annotated[tuple[ScalingSchedule, ...], Field(max_length=16)] = ()
    """Other bounds at some hours of some days."""
    fallback: ScalingFallback | None = None
    """Replicas while demand is unknown; absent, they stay as they are."""
    max_kv_fill_percent: Percent = 80
    """No replica goes if the KV in use would then fill more than this of the rest; 0: it may."""
    standby: ScalingStandby | None = None
    """Warm replicas that wake in place of a cold start."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.minReplicas <= self.maxReplicas",
            check=lambda scaling: scaling.min_replicas <= scaling.max_replicas,
            message="is larger than maxReplicas; lower it, or raise maxReplicas",
            field="minReplicas",
        ),
        Rule(
            cel="!has(self.targets) || self.targets.all(a, self.targets.exists_one(b, a.metric == b.metric))",
            check=_target_metrics_differ,
            message="a metric has two targets; keep one",
            field="targets",
        ),
        Rule(
            cel="!has(self.demandPerReplica) || !has(self.targets) || !self.targets.exists(a, a.metric == 'Demand')",
            check=lambda scaling: (
                scaling.demand_per_replica is None or all(one.metric != "Demand" for one in scaling.targets)
            ),
            message="targets has Demand already; remove demandPerReplica",
            field="demandPerReplica",
        ),
        Rule(
            cel="!has(self.schedules) || self.schedules.all(a, self.schedules.exists_one(b, a.name == b.name))",
            check=_schedule_names_differ,
            message="a schedule's name is used twice; rename one",
            field="schedules",
        ),
        Rule(
            cel="!has(self.schedules) || self.schedules.all(a, !has(a.minReplicas) || has(a.maxReplicas)"
            " || a.minReplicas <= self.maxReplicas)",
            check=_schedule_minimums_fit,
            message="a schedule's minReplicas is larger than maxReplicas; lower it, or give the schedule a maxReplicas",
            field="schedules",
        ),
        Rule(
            cel="!has(self.fallback) || self.fallback.replicas <= self.maxReplicas",
            check=lambda scaling: scaling.fallback is None or scaling.fallback.replicas <= scaling.max_replicas,
            message="fallback.replicas is larger than maxReplicas; lower it, or raise maxReplicas",
            field="fallback",
        ),
        Rule(
            cel="!has(self.standby) || self.minReplicas == 0",
            check=lambda scaling: scaling.standby is None or scaling.min_replicas == 0,
            message="standby keeps replicas warm where minReplicas is 0; set that, or remove standby",
            field="standby",
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
