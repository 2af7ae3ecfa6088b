"""Percentiles of the last minute, from sliding histograms."""

import random

import pytest

from quire_router.latency import LEAST_S, MOST_S, RATIO, SlidingHistogram, StreamLatency


@pytest.mark.parametrize("seed", range(4))
def test_a_percentile_is_the_exact_one_to_within_a_bucket(seed):
    rng = random.Random(seed)
    values = [rng.lognormvariate(-2, 1.5) for _ in range(3000)]
    histogram = SlidingHistogram()

    for number, value in enumerate(values):
        histogram.note(value, 1000.0 + number * 0.01)
    told = {share: histogram.percentile(share, 1030.0) for share in (0.05, 0.5, 0.95, 1.0)}

    exact = {share: sorted(values)[min(2999, int(share * 3000))] for share in told}
    assert all(1 / RATIO <= told[share] / exact[share] <= RATIO for share in told)


def test_what_is_older_than_a_minute_has_fallen_out():
    histogram = SlidingHistogram()
    histogram.note(5.0, 100.0)
    histogram.note(0.01, 140.0)

    told = [histogram.percentile(1.0, now_s) for now_s in (149.0, 161.0, 199.0, 201.0)]

    assert told[0] == pytest.approx(5.0, rel=RATIO - 1)
    assert told[1] == told[2] == pytest.approx(0.01, rel=RATIO - 1)
    assert told[3] is None


def test_a_rest_of_any_length_forgets_all_and_what_comes_then_counts_alone():
    for rest_s in (61.0, 3600.0, 1e7):
        histogram = SlidingHistogram()
        histogram.note(9.0, 50.0)

        histogram.note(0.1, 50.0 + rest_s)
        told = histogram.percentile(1.0, 50.0 + rest_s)

        assert told == pytest.approx(0.1, rel=RATIO - 1)


def test_nothing_is_told_of_nothing_and_no_wait_is_told_as_none():
    empty, waits = SlidingHistogram(), SlidingHistogram()

    for _ in range(20):
        waits.note(0.0, 1.0)

    assert empty.percentile(0.95, 1.0) is None
    assert waits.percentile(0.95, 1.0) == 0.0


def test_times_beyond_all_bounds_are_told_as_the_ends():
    histogram = SlidingHistogram()

    histogram.note(1e9, 1.0)

    assert MOST_S / RATIO <= histogram.percentile(1.0, 1.0) <= MOST_S * RATIO * RATIO


def test_an_event_that_was_there_already_is_no_wait():
    latency = StreamLatency()
    latency.note_wait(10.0, 10.0 + LEAST_S / 2)
    before = latency.inter_token.percentile(0.95, 11.0)

    latency.note_wait(10.0, 10.02)
    after = latency.inter_token.percentile(0.95, 11.0)

    assert before is None
    assert after == pytest.approx(0.02, rel=RATIO - 1)
