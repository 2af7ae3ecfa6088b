"""How a replica started, phase by phase: what Kubernetes knows of its pod, and what its worker tells of itself.

    creation ─ Schedule ─ node ─ Image ─ containers ─ Fetch ─ worker's container ─ Process ─ Weights ─ Engine ─ ready ... FirstToken

The first three are the pod's, in whole seconds, as Kubernetes keeps its times; the rest are the worker's own. Pure; this module must
not know how a worker is asked.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import ValidationError

from quire_contract.startup_report import StartupReport
from quire_operator import pod_state
from quire_operator.api.status import StartPhase, StartStatus
from quire_operator.manifests import fetch, worker
from quire_operator.manifests.parts import Manifest
from quire_operator.timestamps import format_time, parse_time

ASKED_FOR_S = 120.0
"""A worker is asked for so long after it became ready: its first token may take a while."""
_MOST_MS = 2**31 - 1

PhaseName = Literal["Schedule", "Image", "Fetch", "Process", "Weights", "Engine", "FirstToken"]
Kind = Literal["Cold", "Warm", "Standby"]


def start_status(pod: Manifest, report: StartupReport | None) -> StartStatus | None:
    """How the pod started; None while it is not ready. Without a report, what Kubernetes knows."""
    ready_at = pod_state.condition_time(pod, "Ready") if pod_state.is_ready(pod) else None
    if ready_at is None:
        return None
    if report is not None and report.num_wakes and report.last_wake_s is not None:
        woken = [_phase("Engine", report.last_wake_s), *_first_token(report)]
        return _status(pod, "Standby", report.last_wake_s, woken, ready_at)
    began = _worker_began(pod)
    if _restarts(pod) and began is not None:
        # The pod is older than this start.
        own = _own_phases(report)
        return _status(pod, "Warm", _seconds(began, ready_at), own, ready_at)
    created = pod_state.creation_time(pod)
    total_s = 0.0 if created is None else _seconds(created, ready_at)
    return _status(pod, _kind(pod), total_s, [*_pod_phases(pod, created, began), *_own_phases(report)], ready_at)


def latest_start(pods: Sequence[Manifest]) -> Manifest | None:
    """The pod that became ready last; None if none is."""
    ready = [
        (moment, pod) for pod in pods if pod_state.is_ready(pod) if (moment := pod_state.condition_time(pod, "Ready"))
    ]
    return max(ready, key=lambda found: (found[0], str(found[1]["metadata"]["name"])))[1] if ready else None


def unreported(pods: Sequence[Manifest], previous: Mapping[str, Any] | None, now: datetime) -> str | None:
    """The pod whose start is still to be asked for: it became ready last, not long ago, and its first token is not in status yet."""
    pod = latest_start(pods)
    if pod is None:
        return None
    ready_at = pod_state.condition_time(pod, "Ready")
    assert ready_at is not None
    if now - ready_at > timedelta(seconds=ASKED_FOR_S):
        return None
    name = str(pod["metadata"]["name"])
    told = previous or {}
    is_told = (told.get("pod"), told.get("time")) == (name, format_time(ready_at))
    is_whole = any(phase.get("name") == "FirstToken" for phase in told.get("phases") or ())
    return None if is_told and is_whole else name


def next_start(
    pods: Sequence[Manifest], reports: Mapping[str, StartupReport], previous: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """status.lastStart: of the pod that became ready last; what was there before if nothing more is known of it."""
    pod = latest_start(pods)
    report = None if pod is None else reports.get(str(pod["metadata"]["name"]))
    started = None if pod is None else start_status(pod, report)
    if started is None:
        return _readable(previous)
    told = _readable(previous) or {}
    is_same = (told.get("pod"), told.get("time")) == (started.pod, started.time)
    if report is None and (is_same or (parse_time(told.get("time")) or _NEVER) > (parse_time(started.time) or _NEVER)):
        return told
    return started.model_dump(mode="json", by_alias=True, exclude_none=True)


_NEVER = datetime.min.replace(tzinfo=UTC)


def _readable(previous: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What an earlier look left, unless another version wrote what we cannot read."""
    if not previous:
        return None
    try:
        StartStatus.model_validate(previous, strict=False)
    except ValidationError:
        return None
    return dict(previous)


def _status(pod: Manifest, kind: Kind, total_s: float, phases: Sequence[StartPhase], ready_at: datetime) -> StartStatus:
    return StartStatus.model_validate(
        {
            "pod": pod["metadata"]["name"],
            "kind": kind,
            "totalMilliseconds": _milliseconds(total_s),
            "phases": tuple(phases),
            "time": format_time(ready_at),
        }
    )


def _kind(pod: Manifest) -> Kind:
    """Cold if the fetcher says that it brought something, or says nothing; without one the model was where it is."""
    fetcher = _container(pod, fetch.CONTAINER)
    if fetcher is None:
        return "Warm"
    told = fetcher.last_end.json_told("downloaded_bytes") if fetcher.last_end else ""
    return "Warm" if told == "0" else "Cold"


def _pod_phases(pod: Manifest, created: datetime | None, began: datetime | None) -> list[StartPhase]:
    scheduled = pod_state.condition_time(pod, "PodScheduled")
    fetch_began, fetch_ended = _fetch_times(pod)
    phases = []
    if created and scheduled:
        phases.append(_phase("Schedule", _seconds(created, scheduled)))
    if scheduled and began:
        fetch_s = _seconds(fetch_began, fetch_ended) if fetch_began and fetch_ended else 0.0
        phases.append(_phase("Image", max(0.0, _seconds(scheduled, began) - fetch_s)))
        if fetch_began and fetch_ended:
            phases.append(_phase("Fetch", fetch_s))
    return phases


def _own_phases(report: StartupReport | None) -> list[StartPhase]:
    if report is None:
        return []
    told: tuple[tuple[PhaseName, float | None], ...] = (
        ("Process", report.process_s),
        ("Weights", report.weights_s),
        ("Engine", report.engine_s),
    )
    return [*(_phase(name, seconds) for name, seconds in told if seconds is not None), *_first_token(report)]


def _first_token(report: StartupReport) -> list[StartPhase]:
    return [] if report.first_token_s is None else [_phase("FirstToken", report.first_token_s)]


def _fetch_times(pod: Manifest) -> tuple[datetime | None, datetime | None]:
    found = _container(pod, fetch.CONTAINER)
    if found is None or found.last_end is None:
        return None, None
    return parse_time(found.last_end.raw.get("startedAt")), found.last_end.at


def _worker_began(pod: Manifest) -> datetime | None:
    found = _container(pod, worker.CONTAINER)
    return None if found is None else found.running_since


def _restarts(pod: Manifest) -> int:
    found = _container(pod, worker.CONTAINER)
    return 0 if found is None else found.restarts


def _container(pod: Manifest, name: str) -> pod_state.Container | None:
    return next((entry for entry in pod_state.containers(pod) if entry.name == name), None)


def _phase(name: PhaseName, seconds: float) -> StartPhase:
    return StartPhase(name=name, milliseconds=_milliseconds(seconds))


def _milliseconds(seconds: float) -> int:
    return min(_MOST_MS, max(0, round(1000 * seconds)))


def _seconds(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin) / timedelta(seconds=1))
