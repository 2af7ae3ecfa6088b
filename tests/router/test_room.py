"""How much more a worker can take, by its report or by our own count; and how fast queues move."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_contract.load_report import LoadReport
from quire_contract.router_config import EndpointEntry
from quire_contract.router_settings import AdmissionSettings
from quire_router.endpoints import Endpoint, Reservation
from quire_router.meters import Arrivals, DrainRate
from quire_router.refusals import retry_after_s
from quire_router.revision_stats import RevisionCounts
from quire_router.room import is_roomy, room_at, room_by_count, room_by_report

RULES = AdmissionSettings(waiting_per_worker=4, kv_use_limit=0.9, in_flight_per_worker=20)


def report(**values) -> LoadReport:
    usual = {"running": 0, "waiting": 0, "free_blocks": 100, "total_blocks": 100, "uncached_tokens": 0}
    return LoadReport(pod="a", model="m", epoch="e", ts=0.0, kv_seq=0, block_size=10, **{**usual, **values})


def endpoint() -> Endpoint:
    made = Endpoint(EndpointEntry(id="a", url="http://a:1", models=["m"]), RevisionCounts())
    made.mark_ready()
    return made


@pytest.mark.parametrize(
    ("values", "unreported", "requests"),
    [
        ({"max_num_seqs": 8}, 0, 13),
        ({"max_num_seqs": 8, "running": 8}, 0, 5),
        ({"max_num_seqs": 8, "running": 8, "waiting": 4}, 0, 1),
        ({"max_num_seqs": 8, "running": 8, "waiting": 5}, 0, 0),
        ({"max_num_seqs": 8, "running": 2, "waiting": 5}, 0, 0),
        ({"max_num_seqs": 8, "running": 2, "waiting": 2}, 0, 7),
        ({"max_num_seqs": 8, "running": 6}, 4, 3),
        ({"max_num_seqs": 8, "running": 8}, 5, 0),
        ({"running": 18}, 0, 7),
    ],
    ids=["idle", "busy", "one more", "queue", "stuck", "filling", "on the way", "all on the way", "no batch size"],
)
def test_a_workers_queue_its_free_slots_and_what_is_on_the_way_decide(values, unreported, requests):
    room = room_by_report(report(**values), unreported, 0, RULES)

    assert room.requests == requests
    assert room.is_empty == (requests == 0)


@pytest.mark.parametrize(
    ("values", "tokens_on_the_way", "tokens"),
    [
        ({"running": 1, "free_blocks": 50}, 0, 400),
        ({"running": 1, "free_blocks": 50}, 300, 100),
        ({"running": 1, "free_blocks": 50}, 400, 0),
        ({"running": 1, "free_blocks": 9}, 0, 0),
        ({"running": 0, "free_blocks": 9}, 0, 1),
        ({"running": 1, "free_blocks": 0, "total_blocks": 0}, 0, float("inf")),
    ],
    ids=["half", "less", "none left", "over the limit", "nothing runs", "no blocks"],
)
def test_blocks_in_use_bound_the_tokens_that_may_come(values, tokens_on_the_way, tokens):
    room = room_by_report(report(**values), 1 if values["running"] else 0, tokens_on_the_way, RULES)

    assert room.tokens == tokens


def test_a_worker_that_tells_nothing_is_full_by_our_own_count():
    assert [room_by_count(number, RULES).requests for number in (0, 19, 20, 30)] == [20, 1, 0, 0]


def test_a_report_counts_with_what_was_sent_since_and_a_stale_one_not_at_all():
    worker = endpoint()
    worker.take_report(report(running=8, max_num_seqs=8, waiting=4), now_s=10.0)

    before = room_at(worker, RULES, 10.1)
    with Reservation(worker, 50, 10.1):
        after = room_at(worker, RULES, 10.2)
        stale = room_at(worker, RULES, 14.0)

    assert (before.requests, after.requests) == (1, 0)
    assert stale.requests == 19


def test_what_was_sent_long_ago_and_is_in_no_report_is_still_on_its_way():
    worker = endpoint()
    sent = [Reservation(worker, 1, 0.0) for _ in range(10)]
    for reservation in sent:
        reservation.__enter__()
    worker.take_report(report(running=3, max_num_seqs=8), now_s=5.0)

    in_transit = room_at(worker, RULES, 5.1)
    for reservation in sent:
        reservation.first_byte(5.2, is_stream=True)
    read_slowly = room_at(worker, RULES, 5.3)

    assert (in_transit.requests, read_slowly.requests) == (8 + 5 - 10, 8 + 5 - 3)


def test_the_drain_rate_counts_only_while_something_waits():
    rate = DrainRate()
    rate.note(0.0, started=0, is_busy=True)
    for second in range(1, 21):
        rate.note(second, started=2, is_busy=True)
    busy = rate.per_s(20.0)

    rate.note(20.0, started=0, is_busy=False)
    rate.note(500.0, started=0, is_busy=True)

    assert busy == pytest.approx(2.0, rel=0.15)
    assert rate.per_s(500.0) == pytest.approx(2.0, rel=0.15)
    assert DrainRate().per_s(5.0) is None


def test_a_rate_falls_when_nothing_starts():
    rate = DrainRate()
    rate.note(0.0, started=0, is_busy=True)
    rate.note(1.0, started=10, is_busy=True)

    assert rate.per_s(1.0) == pytest.approx(10, rel=0.1)
    assert rate.per_s(61.0) < 0.1 or rate.per_s(61.0) is None


@pytest.mark.parametrize(
    ("queued", "rate", "expected"), [(0, 100.0, 1), (99, 10.0, 10), (5000, 1.0, 300), (10, None, 60), (10, 0.0, 60)]
)
def test_retry_after_is_the_time_until_those_ahead_have_started(queued, rate, expected):
    assert retry_after_s(queued, rate, 60.0) == expected


def test_arrivals_are_counted_in_all_and_for_the_last_half_minute():
    arrivals = Arrivals()
    for tenth in range(100):
        arrivals.note(tenth / 10)

    assert arrivals.per_s(9.9) == pytest.approx(10.0)
    assert arrivals.per_s(29.0) == pytest.approx(100 / 30)
    assert arrivals.per_s(35.0) == pytest.approx(40 / 30)
    assert arrivals.per_s(1000.0) == 0.0
    assert arrivals.total == 100


@given(
    st.fixed_dictionaries(
        {
            "running": st.integers(0, 30),
            "waiting": st.sampled_from([0, 0, 0, 3, 9]),
            "free_blocks": st.integers(0, 100),
            "total_blocks": st.sampled_from([100, 0]),
            "uncached_tokens": st.integers(0, 500),
            "max_num_seqs": st.sampled_from([0, 8, 40]),
        }
    ),
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0.0, 1.0, 2.0]), st.booleans()), max_size=30),
    st.sampled_from([1.5, 1.9, 9.0]),
)
def test_where_there_is_plainly_room_there_is_room(values, sent, now_s):
    worker = endpoint()
    for tokens, started_s, is_answered in sent:
        reservation = Reservation(worker, tokens, started_s)
        reservation.take()
        if is_answered:
            reservation.first_byte(started_s, is_stream=False)
    worker.take_report(report(**values), 1.0)

    is_plain = is_roomy(worker, RULES, now_s)

    assert not (is_plain and room_at(worker, RULES, now_s).is_empty)
