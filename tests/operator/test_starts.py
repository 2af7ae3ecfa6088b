"""How a replica's start is told: from its pod's times and its worker's report."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from quire_contract.startup_report import StartupReport
from quire_operator.starts import next_start, start_status, unreported

CREATED = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
REPORT = StartupReport(
    pod="demo-1",
    model="demo",
    phase="ready",
    elapsed_s=9.0,
    process_s=1.5,
    weights_s=2.25,
    engine_s=0.5,
    ready_s=4.25,
    first_token_s=0.0625,
)


def at(seconds: float) -> str:
    return (CREATED + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def make_pod(
    *,
    name: str = "demo-1",
    ready: float | None = 20,
    fetch: tuple[float, float, str] | None = None,
    began: float = 15,
    restarts: int = 0,
) -> dict[str, Any]:
    conditions = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": at(2)}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": "True", "lastTransitionTime": at(ready)})
    worker = {"name": "worker", "restartCount": restarts, "state": {"running": {"startedAt": at(began)}}}
    status: dict[str, Any] = {"phase": "Running", "conditions": conditions, "containerStatuses": [worker]}
    if fetch is not None:
        start, end, message = fetch
        ended = {"startedAt": at(start), "finishedAt": at(end), "exitCode": 0, "message": message}
        status["initContainerStatuses"] = [{"name": "fetch", "state": {"terminated": ended}}]
    meta = {"name": name, "creationTimestamp": at(0)}
    return {"metadata": meta, "spec": {}, "status": status}


OWN = [("Process", 1500), ("Weights", 2250), ("Engine", 500), ("FirstToken", 62)]


@pytest.mark.parametrize(
    ("pod", "report", "kind", "total", "phases"),
    [
        (make_pod(), REPORT, "Warm", 20_000, [("Schedule", 2000), ("Image", 13_000), *OWN]),
        (make_pod(), None, "Warm", 20_000, [("Schedule", 2000), ("Image", 13_000)]),
        (
            make_pod(fetch=(4, 13, '{"downloaded_bytes": 700}')),
            REPORT,
            "Cold",
            20_000,
            [("Schedule", 2000), ("Image", 4000), ("Fetch", 9000), *OWN],
        ),
        (
            make_pod(fetch=(4, 5, '{"downloaded_bytes": 0}')),
            REPORT,
            "Warm",
            20_000,
            [("Schedule", 2000), ("Image", 12_000), ("Fetch", 1000), *OWN],
        ),
        (
            make_pod(fetch=(4, 13, "an earlier release's")),
            None,
            "Cold",
            20_000,
            [("Schedule", 2000), ("Image", 4000), ("Fetch", 9000)],
        ),
        (make_pod(restarts=2), REPORT, "Warm", 5000, OWN),
        (
            make_pod(ready=4000),
            StartupReport(
                pod="demo-1", model="demo", phase="ready", elapsed_s=1.0, num_wakes=2, last_wake_s=0.0125, ready_s=4.0
            ),
            "Standby",
            12,
            [("Engine", 12)],
        ),
    ],
)
def test_a_start_has_the_pods_phases_and_then_the_workers_own(
    pod: dict[str, Any], report: StartupReport | None, kind: str, total: int, phases: list[tuple[str, int]]
) -> None:
    found = start_status(pod, report)

    assert found is not None
    assert (found.pod, found.kind, found.total_milliseconds) == ("demo-1", kind, total)
    assert [(phase.name, phase.milliseconds) for phase in found.phases] == phases


def test_a_pod_that_is_not_ready_has_not_started_yet() -> None:
    assert start_status(make_pod(ready=None), REPORT) is None


def test_times_that_run_backwards_count_as_nothing() -> None:
    found = start_status(make_pod(began=1, ready=1), None)

    assert found is not None
    assert [(phase.name, phase.milliseconds) for phase in found.phases] == [("Schedule", 2000), ("Image", 0)]


def test_the_pod_that_became_ready_last_is_told_and_stays_told_when_it_goes() -> None:
    pods = [make_pod(name="old", ready=20), make_pod(name="new", ready=50), make_pod(name="coming", ready=None)]

    told = next_start(pods, {"new": REPORT}, None)
    kept = next_start(pods[:1], {}, told)

    assert told is not None
    assert (told["pod"], told["time"]) == ("new", at(50))
    assert kept == told


def test_what_a_worker_told_is_not_forgotten_when_it_is_asked_no_more() -> None:
    pods = [make_pod()]
    told = next_start(pods, {"demo-1": REPORT}, None)

    assert next_start(pods, {}, told) == told


def test_a_status_that_cannot_be_read_is_told_anew() -> None:
    assert next_start([], {}, {"pod": "x", "kind": "Lukewarm"}) is None


def test_a_worker_is_asked_until_its_first_token_is_known_and_no_longer_than_two_minutes() -> None:
    pods = [make_pod()]
    without_token = next_start(pods, {"demo-1": StartupReport(pod="p", model="m", phase="ready", elapsed_s=1.0)}, None)
    whole = next_start(pods, {"demo-1": REPORT}, None)
    soon, late = CREATED + timedelta(seconds=30), CREATED + timedelta(seconds=200)

    assert unreported(pods, None, soon) == "demo-1"
    assert unreported(pods, without_token, soon) == "demo-1"
    assert unreported(pods, whole, soon) is None
    assert unreported(pods, None, late) is None
    assert unreported([], None, soon) is None
