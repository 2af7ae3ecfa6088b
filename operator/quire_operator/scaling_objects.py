"""The object by which another autoscaler writes a service's replicas: who is to write them, what the object says, what it reports.

One writer at a time: an object of the wrong kind is taken away first, and only when it is gone does the next writer begin. Pure; this
module must not know the API server or how demand is read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from quire_contract import names
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import Problem
from quire_operator.autoscale.outlook import comfortable
from quire_operator.autoscale.policy import Policy, Target
from quire_operator.autoscale.policy_of import policy_of
from quire_operator.autoscale.provider import Autoscalers, Provider, ProviderName, provider_of, switching
from quire_operator.manifests import pod_autoscaler, scaled_object
from quire_operator.manifests.parts import Manifest, owned
from quire_operator.platform import Platform
from quire_operator.timestamps import parse_time

KINDS: Mapping[str, ProviderName] = {scaled_object.KIND: "Keda", pod_autoscaler.KIND: "Hpa"}
LEAVING_FOR = timedelta(seconds=60)
"""A ScaledObject that is being deleted for longer than this has no KEDA that would take its finalizer off, nor one that scales."""
_MAX_PART = 500
_TOO_OLD = (
    "this KEDA knows no fallback.behavior and would set the replicas to spec.scaling.fallback.replicas, however many there are; "
    "use KEDA 2.17 or later, remove spec.scaling.fallback, or set provider: BuiltIn"
)
Said = tuple[str, str, str]
"""Status, reason and message of ScalingReady."""


def choose_provider(
    service: InferenceService, autoscalers: Autoscalers, children: Iterable[Mapping[str, Any]], now: datetime
) -> Provider | None:
    """Who writes the replicas now; None: nobody scales the service. `children` are the service's live objects."""
    scaling = service.spec.scaling
    if scaling is None:
        return None
    policy = policy_for_others(service, None, children)
    wanted = provider_of(
        scaling,
        autoscalers,
        keda_problems=tuple(scaled_object.keda_problems(policy, autoscalers.minor)),
        hpa_problems=tuple(pod_autoscaler.autoscaler_problems(policy, autoscalers.minor)),
    )
    served = {name for name, is_there in (("Keda", autoscalers.has_keda), ("Hpa", autoscalers.has_hpa)) if is_there}
    others = [
        KINDS[child["kind"]]
        for child in children
        if KINDS.get(child["kind"]) in served and not _is_abandoned(child, now)
    ]
    leaving = next((name for name in others if name != wanted.name), None)
    return wanted if leaving is None else switching(leaving, wanted)


def provider_manifests(
    service: InferenceService,
    provider: Provider | None,
    autoscalers: Autoscalers,
    platform: Platform,
    *,
    document: Mapping[str, Any],
    children: Iterable[Mapping[str, Any]],
    capacity: int | None,
) -> list[Manifest]:
    """The provider's object, if it should exist. `capacity`: as `policy_of` takes it."""
    scaling = service.spec.scaling
    if scaling is None or provider is None or not provider.has_object:
        return []
    policy = policy_for_others(service, capacity, children)
    if provider.name == "Hpa":
        return [owned(pod_autoscaler.autoscaler(service, policy, autoscalers.minor), service)]
    made = scaled_object.scaled_object(
        service,
        policy,
        scaling.polling_interval_seconds,
        platform,
        minor=autoscalers.minor,
        is_forced=_is_forced(document),
    )
    return [owned(made, service)]


def reported(
    service: InferenceService, provider: Provider, autoscalers: Autoscalers, children: Iterable[Mapping[str, Any]]
) -> Said:
    """What KEDA or the HPA says of itself, in one condition: False as soon as one of its own says that it does not scale."""
    live = next((child for child in children if KINDS.get(child["kind"]) == provider.name), None)
    if live is None:
        return "Unknown", "Creating", "its object is being made"
    found = {entry.get("type"): entry for entry in (live.get("status") or {}).get("conditions") or ()}
    if provider.name == "Hpa":
        note = pod_autoscaler.zero_note(policy_of(service), autoscalers.minor)
        return _hpa(found, note)
    fallback = (live.get("spec") or {}).get("fallback")
    if fallback and "behavior" not in fallback:
        return "False", "KEDATooOld", _TOO_OLD
    return _keda(found)


def is_about_object(problem: Problem) -> bool:
    """Whether what the server refused is such an object: pods are none the worse for it."""
    return problem.path.partition("/")[0] in KINDS


def _keda(found: Mapping[Any, Mapping[str, Any]]) -> Said:
    ready = found.get("Ready")
    if ready is None or (ready.get("status") == "Unknown" and not ready.get("reason")):
        return "Unknown", "WaitingForKEDA", "KEDA has not looked at the ScaledObject yet; is its operator running?"
    told = "; ".join(_part(name, found[name]) for name in ("Ready", "Active", "Fallback", "Paused") if name in found)
    message = f"KEDA says: {told}"
    for name in ("Paused", "Fallback"):
        if found.get(name, {}).get("status") == "True":
            return "False", name, message
    return str(ready.get("status") or "Unknown"), _reason(ready, "KEDA"), message


def _hpa(found: Mapping[Any, Mapping[str, Any]], note: str) -> Said:
    told = [_part(name, found[name]) for name in ("AbleToScale", "ScalingActive", "ScalingLimited") if name in found]
    message = "; ".join([*([note] if note else []), *told])
    for name in ("AbleToScale", "ScalingActive"):
        entry = found.get(name)
        if entry is None:
            return "Unknown", "WaitingForHPA", message or "the HPA has not been looked at yet"
        if entry.get("status") != "True" and entry.get("reason") != "ScalingDisabled":  # at zero it rests
            return str(entry.get("status") or "Unknown"), _reason(entry, name), message
    return ("False", "NoScaleToZero", message) if note else ("True", "Ready", message)


def _part(name: str, entry: Mapping[str, Any]) -> str:
    message = str(entry.get("message") or entry.get("reason") or "")[:_MAX_PART]
    return f"{name}={entry.get('status')}" + (f" ({message})" if message else "")


def _reason(entry: Mapping[str, Any], default: str) -> str:
    reason = str(entry.get("reason") or "")
    return reason if reason.isalnum() and reason[:1].isalpha() else default


def _is_abandoned(child: Mapping[str, Any], now: datetime) -> bool:
    since = parse_time(child["metadata"].get("deletionTimestamp"))
    return since is not None and now - since > LEAVING_FOR


def policy_for_others(service: InferenceService, capacity: int | None, children: Iterable[Mapping[str, Any]]) -> Policy:
    """As HPA and KEDA know one: what the built-in autoscaler does unasked is not missed where another scales.

    Without any target it is what an engine once told of its capacity, as the live object has it; else KEDA wakes, and stays at one.
    """
    assert service.spec.scaling is not None
    policy = policy_of(service, capacity)
    if policy.looks_ahead:
        each = (replace(one, value=float(int(comfortable(one.value)))) for one in policy.targets)
        policy = replace(policy, targets=tuple(each))
    if service.spec.scaling.panic is None:
        policy = replace(policy, panic=None)
    if policy.targets:
        return policy
    told = next((value for child in children if (value := _told_target(child)) is not None), scaled_object.WAKE_ONLY)
    return replace(policy, targets=(Target(metric="Demand", value=float(told)),))


def _told_target(child: Mapping[str, Any]) -> float | None:
    if child["kind"] == scaled_object.KIND:
        return scaled_object.told_target(child)
    return pod_autoscaler.told_target(child) if child["kind"] == pod_autoscaler.KIND else None


def _is_forced(document: Mapping[str, Any]) -> bool:
    annotations = document["metadata"].get("annotations") or {}
    return str(annotations.get(names.ANNOTATION_FORCE_ACTIVATION, "")).lower() == "true"
