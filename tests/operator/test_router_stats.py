"""What routers counted since a step began, whatever happens to routers meanwhile."""

from datetime import UTC, datetime

import pytest

from quire_operator.router_stats import Counters, StepTally, parse_answer, percentile_95

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def answer(boot: str, requests: int, errors: int = 0, counts: tuple[int, ...] = (0, 0, 0)):
    timings = {"bounds_s": [0.1, 1.0], "counts": list(counts)}
    entry = {"requests": requests, "errors": errors, "ttft": timings}
    return parse_answer({"boot": boot, "services": {"n/s": {"new": entry}}})


def tally() -> StepTally:
    return StepTally(service="n/s", revisions=("old", "new"), step="1")


def test_before_any_router_answers_nothing_is_known() -> None:
    assert tally().observation() is None


def test_what_was_counted_before_the_step_does_not_count() -> None:
    step = tally()
    step.add("router", answer("b", 100, 9, (50, 90, 100)), NOW)
    step.add("router", answer("b", 130, 12, (70, 120, 130)), NOW)

    seen = step.observation()

    assert seen.since == NOW
    assert (seen.revisions["new"].requests, seen.revisions["new"].errors) == (30, 3)
    assert seen.revisions["new"].ttft_p95_s == pytest.approx(0.1 + 0.9 * (28.5 - 20) / 10)
    assert seen.revisions["old"].requests == 0


def test_several_routers_add_up_and_one_that_restarts_begins_at_nothing() -> None:
    step = tally()
    for router, boot, requests in [("a", "1", 5), ("b", "1", 7), ("a", "2", 3), ("b", "1", 9), ("a", "2", 4)]:
        step.add(router, answer(boot, requests), NOW)

    assert step.observation().revisions["new"].requests == 3 + 2 + 1


def test_counters_that_a_router_forgot_are_never_negative() -> None:
    step = tally()
    for requests in (50, 4):
        step.add("a", answer("1", requests), NOW)

    assert step.observation().revisions["new"].requests == 4


def test_timings_beyond_the_last_bound_count_as_that_bound() -> None:
    assert percentile_95(Counters(10, 0, (0.1, 1.0), (0, 0, 10))) == 1.0
    assert percentile_95(Counters(10, 0, (0.1,), (0, 0))) is None


def test_an_answer_of_another_form_is_refused() -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse_answer(
            {
                "boot": "x",
                "services": {"n/s": {"r": {"requests": 1, "errors": 0, "ttft": {"bounds_s": [1], "counts": [1]}}}},
            }
        )
