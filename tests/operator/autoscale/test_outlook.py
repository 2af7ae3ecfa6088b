"""Looking ahead: demand as it will be when a start from now is over."""

import math
from dataclasses import replace

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.outlook import COMFORT, Learned, comfortable, learn, look_ahead
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.signal import Signal
from tests.operator.autoscale.worlds import LONG_AGO, NOW, policy, signal

TAKES_8_S = Learned(at_s=NOW, demand=0, running_s=8000, finished=1000, service_s=8.0)


def reading(
    replicas: int, demand: float, queued: float, arrivals: float | None, *, loading: int = 0, **changed: float | int
) -> Signal:
    """Of the replicas, `loading` are not ready."""
    return signal(
        replicas,
        readings={"Demand": demand, "QueueLength": queued},
        ready=replicas - loading,
        loading=loading,
        arrivals_per_s=arrivals,
        **changed,
    )


def ahead(**changed: float) -> Policy:
    """Sixteen requests a replica, to be looked ahead for."""
    return policy(value=16.0, looks_ahead=True, **changed)


def test_a_load_needs_what_arrives_times_what_it_takes_and_the_root_of_that_but_no_more_than_demand() -> None:
    """10 per s at 8 s each are 80 at once, plus 9."""
    falling = look_ahead(TAKES_8_S, reading(6, 120, 60, 10.0), 16.0, 60.0)
    steady = look_ahead(TAKES_8_S, reading(6, 80, 0, 10.0), 16.0, 60.0)

    assert falling is not None and falling.demand == pytest.approx(80 + math.sqrt(80))
    assert steady is not None and steady.demand == 80


def test_a_replica_gets_a_share_of_what_it_could_run() -> None:
    history = replace(LONG_AGO, learned=TAKES_8_S, start_s=60.0)

    verdict = decide(reading(2, 24, 0, 3.0), ahead(), history, NOW)

    assert pytest.approx(10.4) == COMFORT * 16
    assert verdict.replicas == 3
    assert verdict.message == (
        "demand 24, 3 requests per s take 8 s each, after a start of 60 s 24 will wait: 24.0 at 10.4 a replica asks for 3 replicas"
    )


def test_a_backlog_that_replicas_on_their_way_will_finish_asks_for_no_more() -> None:
    """320 wait, of which HPA would make 20 replicas; six ready ones finish 7.8 per s with comfort, and 2 arrive. 96 run."""
    history = replace(LONG_AGO, learned=TAKES_8_S, start_s=60.0)
    reads = reading(6, 416, 320, 2.0)

    ours, hpa = decide(reads, ahead(), history, NOW), decide(reads, policy(value=16.0), history, NOW)

    assert (ours.replicas, hpa.replicas) == (10, 26)


def test_what_loads_counts_for_half_of_its_start() -> None:
    with_loading = look_ahead(TAKES_8_S, reading(8, 200, 136, 12.0, loading=4), 16.0, 60.0)
    without = look_ahead(TAKES_8_S, reading(4, 200, 136, 12.0), 16.0, 60.0)

    assert with_loading is not None and without is not None
    backlogs = [136 + (12 - 16 * slots / 8) * 60 for slots in (6, 4)]
    assert backlogs == [136, 376]
    sums = [12 * 8 + backlog * 8 / 30 for backlog in backlogs]
    expected = [min(200, sum_ + math.sqrt(sum_)) for sum_ in sums]
    assert [with_loading.demand, without.demand] == pytest.approx(expected)


def test_nothing_is_taken_away_from_what_runs() -> None:
    outlook = look_ahead(TAKES_8_S, reading(6, 90, 0, 0.0), 16.0, 60.0)

    assert outlook is not None and outlook.demand == 90


@pytest.mark.parametrize("missing", ["learned", "start", "arrivals", "service time", "known demand", "queue"])
def test_without_all_it_must_know_demand_counts_as_it_is(missing: str) -> None:
    learned = {"learned": None, "service time": replace(TAKES_8_S, service_s=None)}.get(missing, TAKES_8_S)
    reads = reading(2, 64, 32, None if missing == "arrivals" else 4.0)
    if missing == "known demand":
        reads = replace(reads, num_failures=1)
    if missing == "queue":
        reads = replace(reads, readings={"Demand": 64.0})

    assert look_ahead(learned, reads, 16.0, None if missing == "start" else 60.0) is None


def test_service_time_and_kv_of_a_request_are_learned_from_what_runs_and_finishes() -> None:
    """5 arrive and finish per s, 40 run: 8 s each. Their KV is 40 times 700 tokens."""
    learned = None
    for tick in range(40):
        learned = learn(learned, reading(3, 40, 0, 5.0, kv_used_tokens=28_000), NOW + 5 * tick)

    assert learned is not None
    assert (learned.service_s, learned.kv_tokens) == (pytest.approx(8.0), pytest.approx(700.0))


def test_a_backlog_that_grows_did_not_finish() -> None:
    """20 arrive per s, 10 of them begin to wait: 10 finish."""
    learned = None
    for tick in range(40):
        learned = learn(learned, reading(3, 80 + 50 * tick, 50 * tick, 20.0), NOW + 5 * tick)

    assert learned is not None and learned.service_s == pytest.approx(8.0)


def test_a_mean_of_few_requests_is_not_believed_and_the_last_good_one_is_kept() -> None:
    few = learn(learn(None, reading(1, 2, 0, 0.5), NOW), reading(1, 2, 0, 0.5), NOW + 5)
    quiet = learn(replace(TAKES_8_S, finished=0.0, running_s=0.0), reading(1, 0, 0, 0.0), NOW + 5)

    assert few is not None and few.service_s is None
    assert quiet is not None and quiet.service_s == 8.0


def test_a_gap_and_a_failed_reading_teach_nothing() -> None:
    after_gap = learn(TAKES_8_S, reading(3, 40, 0, 5.0), NOW + 61)
    failed = learn(TAKES_8_S, replace(reading(3, 40, 0, 5.0), num_failures=1), NOW + 5)

    assert after_gap is not None
    assert (after_gap.finished, after_gap.at_s, failed) == (1000, NOW + 61, TAKES_8_S)


def test_a_replica_gets_no_more_requests_than_its_kv_holds() -> None:
    """A hundred may run at once, but 100,000 tokens hold 25 requests of 4,000."""
    long = replace(TAKES_8_S, kv_tokens=4000.0, kv_s=4000.0 * 8000)
    reads = signal(2, 60, capacity=100, kv_tokens_per_replica=100_000)

    own = decide(reads, policy(targets=(), looks_ahead=True), replace(LONG_AGO, learned=long), NOW)
    hpa = decide(reads, policy(targets=()), replace(LONG_AGO, learned=long), NOW)

    assert comfortable(100, long, 100_000) == 16.2
    assert (own.replicas, own.message) == (4, "demand 60 at 16.2 a replica asks for 4 replicas")
    assert hpa.replicas == 1


def test_a_start_is_measured_where_nobody_tells_and_the_window_follows_it() -> None:
    of = ahead(window_follows_start=True)
    history = History(created_s=0.0, last_active_s=NOW)
    begun = decide(reading(1, 40, 24, 4.0), of, history, NOW)
    loading = decide(reading(4, 40, 24, 4.0, loading=3), of, begun.history, NOW + 10)

    ready = decide(reading(4, 40, 0, 4.0), of, loading.history, NOW + 20)

    assert (begun.replicas, ready.history.start_s) == (4, 20)


@pytest.mark.parametrize(("start_s", "window_s"), [(2.0, 60), (30.0, 150), (200.0, 300)])
def test_the_downward_window_is_five_starts_from_one_to_five_minutes(start_s: float, window_s: float) -> None:
    down = replace(policy().down, window_s=300.0)
    of = policy(down=down, window_follows_start=True)
    busy = decide(signal(5, 5, start_s=start_s), of, LONG_AGO, NOW)

    before = decide(signal(5, 1, start_s=start_s), of, busy.history, NOW + window_s - 1)
    after = decide(signal(5, 1, start_s=start_s), of, before.history, NOW + window_s)

    assert (before.replicas, after.replicas) == (5, 1)


def test_a_start_that_was_cancelled_is_none() -> None:
    of = ahead()
    history = replace(LONG_AGO, loading_since_s=NOW - 10)
    cancelled = decide(reading(3, 1, 0, 0.1, loading=1), replace(of, max_replicas=2), history, NOW)

    after = decide(reading(2, 1, 0, 0.1), of, cancelled.history, NOW + 5)

    assert (cancelled.replicas, after.history.start_s) == (2, None)
