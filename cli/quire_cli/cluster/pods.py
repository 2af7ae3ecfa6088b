"""A pod in a few words: what it does now, and how it last ended. Pure; this module must not know requests."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quire_operator.pod_state import is_asleep

EXIT_CANNOT_WORK = 2
"""A worker's or fetcher's exit code for a configuration or model that a restart will not help."""


@dataclass(frozen=True, kw_only=True)
class PodState:
    """One pod."""

    name: str
    word: str
    """One CamelCase word, as in kubectl: Ready, Asleep, Loading, Unschedulable, ImagePullBackOff, Terminating ..."""
    message: str
    """What the node or the scheduler says about it; empty if nothing."""
    restarts: int
    """Of all containers together."""
    last_end: str
    """How a container last ended, as "worker: OOMKilled (exit code 137)"; "-" if none did."""
    last_reason: str
    """The reason or, without one worth naming, "ExitCode2" of that end; empty if none."""
    log: str
    """Arguments of kubectl logs that show the trouble; empty if there is none to see."""


def pod_state(pod: Mapping[str, Any]) -> PodState:
    """What the pod's status says."""
    statuses = list(_statuses(pod))
    word, message = _now(pod)
    name = pod["metadata"]["name"]
    ended = next(((status, end) for status in statuses if (end := _last_end(status))), None)
    last_end, last_reason, log = "-", "", ""
    if ended is not None:
        status, end = ended
        code, reason = end.get("exitCode", 0), end.get("reason") or "Ended"
        last_end = f"{status['name']}: {reason} (exit code {code})"
        last_reason = "ExitCode2" if reason == "Error" and code == EXIT_CANNOT_WORK else reason
        is_previous = "terminated" not in (status.get("state") or {})
        log = f"{name} -c {status['name']}{' --previous' if is_previous else ''}"
    restarts = sum(int(status.get("restartCount") or 0) for status in statuses)
    return PodState(
        name=name,
        word=word,
        message=message,
        restarts=restarts,
        last_end=last_end,
        last_reason=last_reason,
        log=log,
    )


def _statuses(pod: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _last_end(status: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """An init container that has done its work did not end in the sense of this word."""
    for state in (status.get("state") or {}, status.get("lastState") or {}):
        end: Mapping[str, Any] | None = state.get("terminated")
        if end is not None and end.get("exitCode") != 0:
            return end
    return None


def _now(pod: Mapping[str, Any]) -> tuple[str, str]:
    status = pod.get("status") or {}
    if pod["metadata"].get("deletionTimestamp"):
        return "Terminating", ""
    if status.get("reason"):  # Evicted, NodeLost
        return status["reason"], status.get("message", "")
    conditions = {entry["type"]: entry for entry in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return scheduled.get("reason", "Unschedulable"), scheduled.get("message", "")
    for container in _statuses(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return waiting["reason"], waiting.get("message", "")
    return ("Asleep" if is_asleep(dict(pod)) else _progress(status, conditions)), ""


def _progress(status: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> str:
    if conditions.get("Ready", {}).get("status") == "True":
        return "Ready"
    for container in status.get("initContainerStatuses") or ():
        if "running" in (container.get("state") or {}):
            return f"Init:{container['name']}"
    if status.get("phase") == "Running":
        return "Loading"
    return status.get("phase") or "Unknown"
