"""When a worker is left out of the choice and how it comes back: tables of failures, successes and times."""

import math

import pytest

from quire_contract.router_settings import FaultSettings
from quire_router.ejection import Health, Member, after_failure, after_success, left_out, stage_of

SETTINGS = FaultSettings(consecutive_failures=3, ejection_s=10.0)


def failed(times, health=None, settings=SETTINGS):
    """Each (started, ended) fails."""
    health = health or Health()
    for started_s, ended_s in times:
        health = after_failure(health, started_s, ended_s, settings)
    return health


def apart(number, start_s=0.0):
    """Failures one after the other, each a second long."""
    return [(start_s + i, start_s + i + 1) for i in range(number)]


@pytest.mark.parametrize(
    ("times", "stage", "failures"),
    [
        (apart(2), "in", 2),
        (apart(3), "out", 0),
        ([(0, 5), (0, 5.1), (0, 5.2), (0, 5.3)], "in", 1),
        ([(0, 5), (5.5, 5.6), (5.7, 5.8)], "out", 0),
        ([(0, 5), (0, 6.5), (0, 8)], "out", 0),
    ],
    ids=["too few", "in a row", "one fault, many requests", "quick ones after each other", "overlapping but spread"],
)
def test_faults_in_a_row_put_a_worker_out(times, stage, failures):
    health = failed(times)

    assert (stage_of(health, times[-1][1] + 0.1), health.failures) == (stage, failures)


def test_an_answer_between_failures_begins_the_row_anew():
    health = failed(apart(2))

    health = failed(apart(2, 10), after_success(health, 9.0))

    assert (stage_of(health, 13), health.failures) == ("in", 2)


def test_each_time_out_is_twice_as_long_up_to_sixteen_times():
    health, lengths, now_s = Health(), [], 0.0

    for _ in range(7):
        start_s = now_s
        health = failed(apart(3, start_s), health)
        lengths.append(health.until_s - health.since_s)
        now_s = health.until_s + 1
        health = after_success(health, now_s)

    assert lengths == [10, 20, 40, 80, 160, 160, 160]


def test_a_worker_that_was_well_for_long_is_out_for_the_shortest_time_again():
    health = after_success(failed(apart(3)), 14)

    health = failed(apart(3, 1000), health)

    assert health.until_s - health.since_s == 10


@pytest.mark.parametrize(
    ("started_s", "ends", "stage"),
    [(2.0, "well", "out"), (12.9, "badly", "trial"), (14.0, "badly", "out"), (14.0, "well", "in")],
    ids=["answered from before", "failed from before", "trial failed", "trial answered"],
)
def test_what_was_sent_before_it_went_out_does_not_decide_about_its_return(started_s, ends, stage):
    health = failed(apart(3))  # out from 3 to 13

    now_s = 12.0 if started_s < 3 else 15.0
    health = after_success(health, started_s) if ends == "well" else after_failure(health, started_s, now_s, SETTINGS)

    assert stage_of(health, now_s) == stage


def test_a_limit_of_zero_never_puts_a_worker_out():
    health = failed(apart(50), settings=FaultSettings(consecutive_failures=0))

    assert stage_of(health, 51) == "in"


def members(out, healthy, *, on_trial=(), until_s=13.0):
    ejected = [
        Member(f"o{i}", Health(is_ejected=True, since_s=float(i), until_s=until_s), f"o{i}" in on_trial)
        for i in range(out)
    ]
    return [*ejected, *(Member(f"h{i}", Health(), False) for i in range(healthy))]


@pytest.mark.parametrize(
    ("out", "healthy", "percent", "left"),
    [
        (1, 1, 50, {"o0"}),
        (1, 0, 50, set()),
        (2, 0, 50, {"o0"}),
        (2, 1, 50, {"o0"}),
        (3, 1, 50, {"o0", "o1"}),
        (3, 1, 100, {"o0", "o1", "o2"}),
        (3, 1, 0, set()),
    ],
)
def test_at_most_a_share_of_the_workers_is_out_and_those_that_went_first(out, healthy, percent, left):
    settings = FaultSettings(max_ejected_percent=percent)

    found = left_out(members(out, healthy), 12.0, settings, may_try=True)

    assert found == left


@pytest.mark.parametrize(
    ("may_try", "on_trial", "left"),
    [(True, (), set()), (False, (), {"o0"}), (True, ("o0",), {"o0"})],
    ids=["trial", "a request that could not be sent again", "another one is on trial"],
)
def test_one_request_at_a_time_that_could_go_elsewhere_tries_a_worker_whose_time_is_over(may_try, on_trial, left):
    found = left_out(members(1, 1, on_trial=on_trial), 13.0, SETTINGS, may_try=may_try)

    assert found == left


def test_nothing_is_known_of_a_new_worker():
    assert (stage_of(Health(), -math.inf), left_out(members(0, 3), 0.0, SETTINGS, may_try=False)) == ("in", frozenset())
