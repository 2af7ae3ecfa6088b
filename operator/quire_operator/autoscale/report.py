"""What is said of a service's scaling: status.scaling, the condition ScalingReady, and when there is something new to be said.

Pure. Numbers that move all the time are told now and then, so that a service at rest costs no write and a busy one few; what was done is
told at once. This module must not know who writes the status.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from quire_operator.api.inference_service import InferenceService
from quire_operator.autoscale.course import Memory, Scaling, View
from quire_operator.autoscale.provider import Autoscalers, Provider
from quire_operator.timestamps import format_time, parse_time

QUIET_S = 15.0
"""Between two reports of numbers alone."""
_ACTIVE_STEP_S = 30.0
_PATIENCE = 2
"""Failed readings in a row that are worth a word."""
_MAX_REASON = 1024
_MAX_COUNT = 2**31 - 1
_OWN_REASONS = frozenset({"Waiting", "ReplicasNotWritten", "DemandUnknown", "Ready"})


@dataclass(frozen=True, kw_only=True)
class ScalingFacts:
    """What the autoscaler says of one service."""

    provider: Provider
    view: View | None = None
    """The last that is worth telling; None: the status stays as it is."""
    autoscalers: Autoscalers = field(default_factory=Autoscalers)
    """What there is beside the built-in one."""
    capacity: int | None = None
    """Requests that one replica runs at once, where its engine has told."""
    said: tuple[str, str, str] | None = None
    """What KEDA or an HPA says of itself, as ScalingReady's status, reason and message, if it is the provider."""
    held: tuple[str, str] | None = None
    """Reason and message, while nothing of the service is carried out: nobody scales it then."""


def is_news(told: View | None, view: View) -> bool:
    """Whether `view` is to be told, `told` being the last one that was."""
    if told is None:
        return view.is_known or bool(view.scalings) or _is_unknown(view)
    if (view.verdict.replicas, view.scalings, view.refusal) != (told.verdict.replicas, told.scalings, told.refusal):
        return True
    if view.at_s - told.at_s < QUIET_S or not (view.is_known or _is_unknown(view)):
        return False
    return _numbers(view) != _numbers(told)


def scaling_status(
    facts: ScalingFacts | None, service: InferenceService | None, previous: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    """status.scaling; what others write into it stays. A spec that is refused (no service) says nothing, and what was so stays."""
    if service is not None and service.spec.scaling is None:
        return None
    if facts is not None and facts.held is not None and previous:
        return {**previous, "lastReason": ": ".join(facts.held)[:_MAX_REASON]}
    if service is None or facts is None:
        return previous
    status: dict[str, Any] = {**(previous or {}), "provider": facts.provider.name}
    view = facts.view
    if view is None:
        return status
    is_ours = facts.provider.name == "BuiltIn"
    status["desired"] = view.verdict.replicas if is_ours else view.replicas
    told = f"{view.verdict.reason}: {view.verdict.message}" if is_ours else f"{facts.provider.name} writes the replicas"
    status["lastReason"] = told[:_MAX_REASON]
    if view.demand is not None:
        status["demand"] = min(view.demand.total, _MAX_COUNT)
    status["history"] = [
        {"time": _time(one.at_s), "replicas": one.replicas, "reason": one.reason[:_MAX_REASON]} for one in view.scalings
    ]
    if view.last_active_s is not None:
        status["lastActiveTime"] = _time(view.last_active_s // _ACTIVE_STEP_S * _ACTIVE_STEP_S)
    return status


def scaling_ready(facts: ScalingFacts, previous: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Status, reason and message of ScalingReady; `previous` is the condition as it was."""
    if facts.held is not None:
        reason, message = facts.held
        return "False", reason, f"the replicas stay as they are: {message}"
    if facts.provider.problem is not None:
        return ("False", *facts.provider.problem)
    if facts.said is not None:
        return facts.said
    view = facts.view
    if view is None:
        if previous and previous.get("reason") in _OWN_REASONS:
            return str(previous["status"]), str(previous["reason"]), str(previous.get("message", ""))
        return "Unknown", "Waiting", "demand was not read yet"
    if view.refusal:
        return "False", "ReplicasNotWritten", f"{view.verdict.replicas} replicas are asked for: {view.refusal}"
    if _is_unknown(view):
        told = "no replica goes" + (", and the fallback holds" if view.verdict.is_fallback else "")
        return "False", "DemandUnknown", f"{view.trouble}; {told}"
    return "True", "Ready", "; ".join(filter(None, ("demand is known, and replicas follow it", facts.provider.note)))


def memory_of(status: Mapping[str, Any] | None) -> Memory:
    """What an earlier process left in status.scaling; what cannot be read is left out."""
    scaling = (status or {}).get("scaling") or {}
    active = parse_time(scaling.get("lastActiveTime"))
    history = scaling.get("history")
    scalings = [
        Scaling(at_s=moment.timestamp(), replicas=one["replicas"], reason=str(one.get("reason", "")))
        for one in (history if isinstance(history, list) else ())
        if isinstance(one, Mapping) and isinstance(one.get("replicas"), int) and (moment := parse_time(one.get("time")))
    ]
    return Memory(last_active_s=None if active is None else active.timestamp(), scalings=tuple(scalings))


def _is_unknown(view: View) -> bool:
    return not view.is_known and view.num_failures >= _PATIENCE


def _numbers(view: View) -> tuple[object, ...]:
    """Without the verdict's message: the numbers in it are these."""
    active = None if view.last_active_s is None else view.last_active_s // _ACTIVE_STEP_S
    total = None if view.demand is None else view.demand.total
    capacity = None if view.demand is None else view.demand.capacity
    return total, capacity, active, view.verdict.reason, _is_unknown(view), view.trouble if _is_unknown(view) else ""


def _time(at_s: float) -> str:
    return format_time(datetime.fromtimestamp(at_s, UTC))
