"""The reports of several routers become one demand, and what is missing makes it a lower bound, never a zero."""

from typing import Any

import pytest

from quire_contract.demand_report import DemandReport, ServiceDemand, WorkerDemand
from quire_operator.autoscale.aggregate import (
    SETTLE_S,
    STALE_S,
    RouterState,
    ScaleState,
    has_new_arrivals,
    reading_of,
    signal_of,
)
from quire_operator.autoscale.signal import WorkerLoad

SERVICE = "team/demo"


def demand(**fields: Any) -> ServiceDemand:
    plain = {
        "held": 0,
        "held_oldest_s": 0.0,
        "held_without_worker": 0,
        "queued": 0,
        "running": 0,
        "unreported": 0,
        "arrivals": 0,
        "arrivals_per_s": 0.0,
        "endpoints": 1,
        "ready_endpoints": 1,
    }
    return ServiceDemand(**{**plain, **fields})


def router(name: str, told: ServiceDemand | None = None, *, boot: str = "b", **fields: Any) -> RouterState:
    services = {} if told is None else {SERVICE: told}
    report = DemandReport(router=name, boot=boot, sequence=1, edge=0, ts=0.0, services=services)
    return RouterState(**{"name": name, "report": report, "age_s": 0.5, "boot_age_s": 60.0, **fields})


def test_what_only_a_router_knows_is_summed_and_what_workers_told_all_counts_once() -> None:
    first = router("a", demand(held=2, queued=3, running=4, unreported=1, arrivals_per_s=1.5, held_oldest_s=0.2))
    second = router("b", demand(held=1, queued=3, running=5, unreported=2, arrivals_per_s=0.5, held_oldest_s=0.7))

    reading = reading_of(SERVICE, [first, second])

    assert reading.is_known
    assert reading.demand is not None
    assert (reading.demand.held, reading.demand.queued, reading.demand.running) == (3, 3, 8)
    assert reading.demand.total == 14
    assert reading.demand.readings["Demand"] == 14.0
    assert reading.demand.readings["QueueLength"] == 6.0
    assert reading.demand.held_oldest_s == 0.7
    assert reading.demand.arrivals_per_s == 2.0


def test_latency_is_the_largest_and_one_that_nobody_measured_is_no_fault() -> None:
    first = router("a", demand(ttft_p95_s=0.4, queue_wait_p95_s=0.1))
    second = router("b", demand(ttft_p95_s=0.9))

    reading = reading_of(SERVICE, [first, second])

    assert reading.demand is not None
    assert reading.demand.readings["TimeToFirstToken"] == 0.9
    assert reading.demand.readings["QueueWait"] == 0.1
    assert "InterTokenLatency" not in reading.demand.readings
    assert reading.demand.idle == frozenset({"InterTokenLatency"})


def test_capacity_and_kv_are_those_of_the_router_that_hears_most_workers() -> None:
    deaf = router("a", demand(reporting=1, max_num_seqs=8, kv_total_tokens=100, kv_used_tokens=90))
    good = router("b", demand(reporting=3, max_num_seqs=24, kv_total_tokens=300, kv_used_tokens=30))

    reading = reading_of(SERVICE, [deaf, good])

    assert reading.demand is not None
    assert reading.demand.capacity == 8
    assert (reading.demand.kv_used_tokens, reading.demand.kv_tokens_per_replica) == (30, 100)
    assert reading.demand.readings["KvUse"] == 0.1


def test_workers_are_merged_by_pod_and_the_most_that_is_said_of_one_counts() -> None:
    first = router("a", demand(workers={"p1": WorkerDemand(in_flight=3), "p2": WorkerDemand(in_flight=1)}))
    second = router("b", demand(workers={"p1": WorkerDemand(in_flight=2, kv_used_tokens=64, draining=True)}))

    reading = reading_of(SERVICE, [first, second])

    assert reading.demand is not None
    assert reading.demand.workers == {
        "p1": WorkerLoad(in_flight=3, kv_used_tokens=64, is_draining=True),
        "p2": WorkerLoad(in_flight=1),
    }


@pytest.mark.parametrize(
    ("silent", "trouble"),
    [
        (router("b", demand(), age_s=STALE_S + 1, trouble="refused"), "no answer from b: refused"),
        (RouterState(name="b", boot_age_s=60.0, trouble="status 403"), "no answer from b: status 403"),
    ],
    ids=["stale", "never-answered"],
)
def test_router_that_does_not_answer_makes_the_rest_a_lower_bound(silent, trouble) -> None:
    reading = reading_of(SERVICE, [router("a", demand(held=2)), silent])

    assert not reading.is_known
    assert not reading.is_settling
    assert reading.demand is not None
    assert reading.demand.total == 2
    assert reading.trouble == trouble


@pytest.mark.parametrize(
    "new",
    [router("b", demand(), boot="b2", boot_age_s=SETTLE_S / 2), RouterState(name="b", boot_age_s=0.1)],
    ids=["has-answered", "not-yet"],
)
def test_router_that_begins_makes_demand_unknown_for_a_moment_and_that_is_no_failure(new) -> None:
    reading = reading_of(SERVICE, [router("a", demand(running=2)), new])

    assert not reading.is_known
    assert reading.is_settling
    assert reading.demand is not None
    assert reading.demand.total == 2
    assert reading.trouble == "b began just now"


def test_router_that_leaves_counts_while_it_answers_and_is_not_missed_afterwards() -> None:
    rest = router("a", demand(held=1))

    answering = reading_of(SERVICE, [rest, router("b", demand(held=2), is_leaving=True)])
    silent = reading_of(SERVICE, [rest, router("b", demand(held=2), is_leaving=True, age_s=60.0)])

    assert (answering.is_known, silent.is_known) == (True, True)
    assert answering.demand is not None
    assert silent.demand is not None
    assert (answering.demand.total, silent.demand.total) == (3, 1)


def test_service_that_only_some_routers_know_has_their_demand() -> None:
    reading = reading_of(SERVICE, [router("a", demand(held=1)), router("b")])

    assert reading.is_known
    assert reading.demand is not None
    assert reading.demand.total == 1


@pytest.mark.parametrize("routers", [[], [router("a")]], ids=["no-routers", "unknown-service"])
def test_without_a_router_that_knows_the_service_nothing_is_known(routers) -> None:
    reading = reading_of(SERVICE, routers)

    assert not reading.is_known
    assert reading.demand is None
    assert reading.trouble != ""


def test_signal_of_an_unknown_demand_holds_no_readings() -> None:
    state = ScaleState(replicas=3, ready=2, loading=1)

    signal = signal_of(None, state, 4)

    assert signal.readings == {}
    assert (signal.num_failures, signal.replicas, signal.ready, signal.loading) == (4, 3, 2, 1)


def test_request_that_came_and_went_between_two_readings_shows_in_the_arrivals_of_the_same_start() -> None:
    before = reading_of(SERVICE, [router("a", demand(arrivals=7))]).demand
    more = reading_of(SERVICE, [router("a", demand(arrivals=8))]).demand
    restarted = reading_of(SERVICE, [router("a", demand(arrivals=9), boot="b2")]).demand

    assert has_new_arrivals(before, more)
    assert not has_new_arrivals(more, more)
    assert not has_new_arrivals(before, restarted)
    assert not has_new_arrivals(None, more)
