"""The verdict on a canary's step, from counts."""

from datetime import UTC, datetime, timedelta

import pytest

from quire_operator.api.operations import CanarySpec
from quire_operator.canary import Verdict, error_rate_lower_bound, judge_step
from quire_operator.decision import CanaryObservation, RevisionCounts

START = datetime(2026, 11, 21, 9, 0, tzinfo=UTC)
SPEC = CanarySpec.model_validate({"intervalSeconds": 300, "maxErrorPercent": 1, "maxLatencyIncreasePercent": 50})
NOBODY = RevisionCounts()


def judge(old: RevisionCounts, new: RevisionCounts, after_s: float, since_s: float = 0) -> Verdict:
    """A step `after_s` seconds old, counted from `since_s` on."""
    observation = CanaryObservation(since=START + timedelta(seconds=since_s), revisions={"old": old, "new": new})
    now = START + timedelta(seconds=after_s)
    return judge_step(SPEC, started_at=START, now=now, observation=observation, stable="old", canary="new")


def counts(requests: int, errors: int = 0, p95: float | None = None) -> RevisionCounts:
    return RevisionCounts(requests=requests, errors=errors, ttft_p95_s=p95)


CASES = [
    ("a good step is watched for its interval", counts(900), counts(50), 200, "Wait"),
    ("and passes then", counts(900), counts(50), 300, "Pass"),
    ("one error of three decides nothing", counts(50), counts(3, 1), 10, "Wait"),
    ("nor do two of five", counts(50), counts(5, 2), 10, "Wait"),
    ("three of three do, at once", counts(50), counts(3, 3), 10, "Fail"),
    ("three of twenty too", counts(50), counts(20, 3), 10, "Fail"),
    ("three of three hundred are within the limit", counts(900), counts(300, 3), 10, "Wait"),
    ("a rate slightly above the limit is not certain within the step", counts(9000), counts(1000, 15), 10, "Wait"),
    ("but counts at its end", counts(9000), counts(1000, 15), 300, "Fail"),
    ("unless the stable revision fails as often", counts(9000, 450), counts(1000, 55), 300, "Pass"),
    ("a slow first token counts at the end", counts(900, 0, 0.2), counts(50, 0, 0.31), 300, "Fail"),
    ("not on 50 requests within the step", counts(900, 0, 0.2), counts(50, 0, 0.31), 100, "Wait"),
    ("but on 100", counts(900, 0, 0.2), counts(100, 0, 0.31), 100, "Fail"),
    ("within the limit is well", counts(900, 0, 0.2), counts(100, 0, 0.3), 300, "Pass"),
    ("milliseconds are beyond what is measured", counts(900, 0, 0.004), counts(100, 0, 0.012), 300, "Pass"),
    ("without a stable time nothing can be compared", counts(900), counts(100, 0, 3.0), 300, "Pass"),
    ("a service that nobody calls passes", NOBODY, NOBODY, 300, "Pass"),
    ("little traffic is waited for", counts(60), counts(4), 300, "Wait"),
    ("not for ever", counts(60), counts(4), 900, "Pass"),
]


@pytest.mark.parametrize(
    ("old", "new", "after_s", "action"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_step_is_judged(old: RevisionCounts, new: RevisionCounts, after_s: float, action: str) -> None:
    assert judge(old, new, after_s).action == action


def test_without_an_answer_from_routers_a_step_waits_however_old_it_is() -> None:
    verdict = judge_step(
        SPEC, started_at=START, now=START + timedelta(days=1), observation=None, stable="old", canary="new"
    )

    assert (verdict.action, "no router" in verdict.message) == ("Wait", True)


def test_counts_of_an_earlier_step_do_not_count() -> None:
    assert judge(counts(900), counts(50, 50), after_s=20, since_s=-60).action == "Wait"


def test_a_step_is_watched_for_the_whole_interval_after_the_operator_began_to_count() -> None:
    assert judge(counts(900), counts(50), after_s=350, since_s=100).action == "Wait"
    assert judge(counts(900), counts(50), after_s=400, since_s=100).action == "Pass"


def test_time_in_which_no_router_answered_was_not_watched() -> None:
    heard = START + timedelta(seconds=100)
    observation = CanaryObservation(since=START, revisions={"new": counts(50), "old": counts(900)}, heard_at=heard)

    verdict = judge_step(
        SPEC, started_at=START, now=START + timedelta(days=1), observation=observation, stable="old", canary="new"
    )

    assert (verdict.action, verdict.message.split(":")[0]) == ("Wait", "watched for 100 of 300 s")


def test_the_next_look_is_not_later_than_the_steps_end() -> None:
    assert judge(counts(9), counts(9), after_s=295).look_again_s == 5
    assert judge(counts(9), counts(9), after_s=10).look_again_s == 15


def test_a_verdict_tells_the_numbers_and_the_field() -> None:
    message = judge(counts(200, 1, 0.21), counts(40, 6, 0.22), after_s=30).message

    assert message == (
        "15.0% of requests failed, above rollout.canary.maxErrorPercent 1 and the stable revision's 0.5% "
        "(canary 40 requests, 6 failed, p95 TTFT 0.220 s, stable 200 requests, 1 failed, p95 TTFT 0.210 s)"
    )


@pytest.mark.parametrize(("errors", "requests", "bound"), [(0, 0, 0.0), (0, 50, 0.0), (3, 3, 0.357), (50, 100, 0.386)])
def test_the_bound_on_the_error_rate_is_wilsons(errors: int, requests: int, bound: float) -> None:
    assert error_rate_lower_bound(errors, requests) == pytest.approx(bound, abs=0.002)
