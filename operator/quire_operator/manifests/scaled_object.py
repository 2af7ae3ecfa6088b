"""The ScaledObject that makes KEDA write a service's replicas: everything of its Policy in KEDA's words, or a reason why not.

    triggers[0]  external-push   our scaler: wakes at once, and the totals (demand, queue length); AverageValue
    triggers[1]  external        our scaler: latencies and the use of KV, if there are targets of them; Value
    then         prometheus      demand once more, if the release names a Prometheus: KEDA takes the larger of both
    then         cron            a schedule's least replicas

KEDA adds its label, its finalizer and its status; none of them is among our fields, so that none is ever touched. Pure; this module must
not know demand, the server or the scaler's process.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from quire_contract import names
from quire_contract.demand_report import demand_query
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import Problem
from quire_operator.autoscale.policy import TOTALS, Fallback, Metric, Policy, Schedule
from quire_operator.keda import metadata
from quire_operator.manifests import parts, worker
from quire_operator.manifests.parts import Manifest
from quire_operator.manifests.pod_autoscaler import behavior, behavior_problems, scale_target
from quire_operator.platform import KedaScaler, Platform

API_VERSION = "keda.sh/v1alpha1"
KIND = "ScaledObject"
TRIGGER_DEMAND = "demand"
TRIGGER_VALUES = "latency"
TRIGGER_PROMETHEUS = "demand-prometheus"
WAKE_ONLY = 1_000_000
"""Demand per replica where demand is no target: it wakes a service, and never asks for a second replica."""
_BEHAVIORS = {
    "Static": "static",
    "CurrentReplicas": "currentReplicas",
    "CurrentReplicasIfHigher": "currentReplicasIfHigher",
    "CurrentReplicasIfLower": "currentReplicasIfLower",
}
_HOUR = 60
_DAY = 24 * _HOUR
_BUILT_IN = "or set spec.scaling.provider: BuiltIn"


def scaled_object(
    service: InferenceService,
    policy: Policy,
    polling_interval_s: int,
    platform: Platform,
    *,
    minor: int,
    is_forced: bool,
) -> Manifest:
    """Only for a policy without `keda_problems`, and a platform with a scaler. `minor` is the server's; `is_forced`: as if called."""
    assert platform.keda is not None
    spec: Manifest = {
        "scaleTargetRef": scale_target(service),
        "pollingInterval": polling_interval_s,
        "cooldownPeriod": int(policy.cooldown_s),
        "initialCooldownPeriod": int(policy.initial_cooldown_s),
        "minReplicaCount": policy.min_replicas,
        "maxReplicaCount": policy.max_replicas,
        "advanced": {
            "restoreToOriginalReplicaCount": False,
            "horizontalPodAutoscalerConfig": {"behavior": behavior(policy, minor)},
        },
        "triggers": _triggers(service, policy, platform, is_forced=is_forced),
    }
    if policy.fallback is not None:
        spec["fallback"] = _fallback(policy.fallback)
    labels = worker.object_labels(service, names.ROLE_WORKER)
    meta = parts.metadata(service.metadata.name, service.metadata.namespace, labels)
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": spec}


def keda_problems(policy: Policy, minor: int) -> list[Problem]:
    """What KEDA cannot do of this."""
    problems = behavior_problems(policy, minor)
    for index, schedule in enumerate(policy.schedules):
        path = f"spec.scaling.schedules[{index}]"
        if schedule.max_replicas is not None:
            message = f"KEDA's cron trigger knows no most replicas; remove it, {_BUILT_IN}"
            problems.append(Problem(path=f"{path}.maxReplicas", message=message))
        if schedule.min_replicas is not None and schedule.min_replicas < policy.min_replicas:
            message = (
                f"is below spec.scaling.minReplicas, and KEDA's cron trigger can only add; lower minReplicas "
                f"and give the other hours a schedule, {_BUILT_IN}"
            )
            problems.append(Problem(path=f"{path}.minReplicas", message=message))
    if policy.fallback is not None and policy.fallback.replicas == 0:
        message = "is 0, and KEDA would take a scaler that fails for one that is idle; write at least 1"
        problems.append(Problem(path="spec.scaling.fallback.replicas", message=message))
    return problems


def told_target(live: Mapping[str, Any]) -> float | None:
    """Demand per replica of a ScaledObject as it is on the server: what an engine said of its capacity outlives its replicas there."""
    for trigger in (live.get("spec") or {}).get("triggers") or ():
        text = str((trigger.get("metadata") or {}).get(metadata.KEY_OF_TARGET["Demand"], ""))
        if trigger.get("name") == TRIGGER_DEMAND and text.isdigit():
            return None if int(text) == WAKE_ONLY else float(text)
    return None


def _triggers(service: InferenceService, policy: Policy, platform: Platform, *, is_forced: bool) -> list[Manifest]:
    scaler = platform.keda
    assert scaler is not None
    totals = {target.metric: target.value for target in policy.targets if target.metric in TOTALS}
    values = {target.metric: target.value for target in policy.targets if target.metric not in TOTALS}
    common = _common(service, policy, scaler, is_forced=is_forced)
    push = _external("external-push", TRIGGER_DEMAND, common, totals or {"Demand": WAKE_ONLY}, scaler)
    triggers = [push]
    if values:
        triggers.append({**_external("external", TRIGGER_VALUES, common, values, scaler), "metricType": "Value"})
    if scaler.prometheus_address and "Demand" in totals:
        triggers.append(_prometheus(service, policy, totals["Demand"], scaler.prometheus_address))
    return [*triggers, *_crons(policy.schedules)]


def _common(service: InferenceService, policy: Policy, scaler: KedaScaler, *, is_forced: bool) -> dict[str, str]:
    found = {
        metadata.KEY_ADDRESS: scaler.address,
        metadata.KEY_NAMESPACE: service.metadata.namespace or "",
        metadata.KEY_SERVICE: service.metadata.name,
        metadata.KEY_ACTIVATION: _text(policy.activation),
    }
    if scaler.tls:
        found[metadata.KEY_TLS] = "true"
    if is_forced:
        found[metadata.KEY_FORCE] = "true"
    return found


def _external(
    kind: str, name: str, common: Mapping[str, str], targets: Mapping[Metric, float], scaler: KedaScaler
) -> Manifest:
    told = {metadata.KEY_OF_TARGET[metric]: _text(value * metadata.UNITS[metric]) for metric, value in targets.items()}
    trigger: Manifest = {"type": kind, "name": name, "metadata": {**common, **told}}
    if scaler.authentication:
        trigger["authenticationRef"] = {"name": scaler.authentication, "kind": scaler.authentication_kind}
    return trigger


def _prometheus(service: InferenceService, policy: Policy, target: float, address: str) -> Manifest:
    """No series is an error, not a zero: KEDA would take it for idleness."""
    query = demand_query(f"{service.metadata.namespace}/{service.metadata.name}")
    told = {
        "serverAddress": address,
        "query": query,
        "threshold": _text(target),
        "activationThreshold": _text(policy.activation),
        "ignoreNullValues": "false",
    }
    return {"type": "prometheus", "name": TRIGGER_PROMETHEUS, "metadata": told}


def _crons(schedules: Iterable[Schedule]) -> list[Manifest]:
    found = []
    for schedule in schedules:
        if schedule.min_replicas:
            start, end = _cron(schedule)
            told = {
                "timezone": schedule.time_zone,
                "start": start,
                "end": end,
                "desiredReplicas": str(schedule.min_replicas),
            }
            found.append({"type": "cron", "name": f"schedule-{schedule.name}", "metadata": told})
    return found


def _cron(schedule: Schedule) -> tuple[str, str]:
    """When it begins and when it ends. KEDA refuses two that are the same text: a day that never ends ends a minute early."""
    days = schedule.weekdays or frozenset(range(7))
    is_over_night = schedule.end_minute <= schedule.start_minute
    ends_on = frozenset((day + 1) % 7 for day in days) if is_over_night else days
    start, end = _at(schedule.start_minute, days), _at(schedule.end_minute, ends_on)
    if start == end:
        end = _at((schedule.end_minute - 1) % _DAY, ends_on if schedule.end_minute else days)
    return start, end


def _at(minute: int, days: frozenset[int]) -> str:
    """Minute, hour, day of the month, month, day of the week (0 is Sunday; ours is Monday)."""
    told = "*" if len(days) == 7 else ",".join(str(day) for day in sorted((day + 1) % 7 for day in days))
    return f"{minute % _HOUR} {minute // _HOUR} * * {told}"


def _fallback(fallback: Fallback) -> Manifest:
    return {
        "failureThreshold": fallback.failure_threshold,
        "replicas": fallback.replicas,
        "behavior": _BEHAVIORS[fallback.behavior],
    }


def _text(value: float) -> str:
    """As metadata has it: 8, 0.5."""
    return f"{value:.3f}".rstrip("0").rstrip(".")
