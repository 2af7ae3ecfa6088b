"""How many requests a replica is meant to work on where the service does not say."""

from dataclasses import replace

import pytest

from quire_operator.autoscale.comfort import COMFORT, comfortable, learn
from quire_operator.autoscale.decide import decide
from tests.operator.autoscale.worlds import LONG_AGO, NOW, policy, signal


def test_a_share_of_the_engine_s_rows_where_kv_is_plenty() -> None:
    history = learn(LONG_AGO, signal(1, 10, capacity=40), NOW)

    assert comfortable(history) == pytest.approx(COMFORT * 40)


def test_what_fits_into_the_kv_counts_where_that_is_less_than_the_rows() -> None:
    busy = {"readings": {"Demand": 12.0, "QueueLength": 2.0}, "kv_used_tokens": 30_000, "kv_tokens_per_replica": 60_000}

    history = learn(LONG_AGO, signal(1, capacity=256, **busy), NOW)

    assert comfortable(history) == pytest.approx(COMFORT * 20)


def test_requests_that_have_just_begun_do_not_make_room_seem_endless() -> None:
    old = {"readings": {"Demand": 10.0, "QueueLength": 0.0}, "kv_used_tokens": 30_000, "kv_tokens_per_replica": 60_000}
    learnt = learn(LONG_AGO, signal(1, capacity=256, **old), NOW)

    soon = learn(learnt, signal(1, capacity=256, **{**old, "kv_used_tokens": 5_000}), NOW + 6)
    late = learn(learnt, signal(1, capacity=256, **{**old, "kv_used_tokens": 5_000}), NOW + 6000)

    assert soon.request_kv_tokens == pytest.approx(2975)
    assert late.request_kv_tokens == pytest.approx(500)


def test_larger_requests_count_at_once() -> None:
    old = {"readings": {"Demand": 10.0, "QueueLength": 0.0}, "kv_used_tokens": 5_000, "kv_tokens_per_replica": 60_000}
    learnt = learn(LONG_AGO, signal(1, capacity=256, **old), NOW)

    history = learn(learnt, signal(1, capacity=256, **{**old, "kv_used_tokens": 40_000}), NOW + 1)

    assert history.request_kv_tokens == pytest.approx(4000)


@pytest.mark.parametrize(
    "changes",
    [{"readings": {"Demand": 3.0, "QueueLength": 0.0}}, {"kv_used_tokens": None}, {"num_failures": 1}],
)
def test_nothing_is_learnt_of_few_requests_or_of_what_is_unknown(changes: dict[str, object]) -> None:
    seen = {"readings": {"Demand": 10.0, "QueueLength": 0.0}, "kv_used_tokens": 5_000, "kv_tokens_per_replica": 60_000}

    history = learn(LONG_AGO, signal(1, capacity=256, **{**seen, **changes}), NOW)

    assert history.request_kv_tokens is None


def test_a_service_without_targets_grows_before_its_kv_is_full() -> None:
    full = {"readings": {"Demand": 20.0, "QueueLength": 0.0}, "kv_used_tokens": 60_000, "kv_tokens_per_replica": 60_000}

    verdict = decide(signal(1, capacity=256, **full), policy(targets=()), LONG_AGO, NOW)

    assert verdict.replicas == 2


def test_before_any_engine_has_told_nothing_is_comfortable() -> None:
    assert comfortable(replace(LONG_AGO, capacity=None)) is None
