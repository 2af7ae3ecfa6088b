"""What is said of a service's scaling, and when: changes at once, numbers now and then, nothing at rest."""

from dataclasses import replace

import pytest

from quire_operator.api.inference_service import InferenceService
from quire_operator.autoscale.course import Memory, Scaling, View
from quire_operator.autoscale.history import History
from quire_operator.autoscale.provider import Provider
from quire_operator.autoscale.report import (
    QUIET_S,
    ScalingFacts,
    is_news,
    memory_of,
    scaling_ready,
    scaling_status,
)
from quire_operator.autoscale.signal import Demand
from quire_operator.autoscale.verdict import Verdict

NOW_S = 1_767_225_600.0
BUILT_IN = Provider(name="BuiltIn")
VERDICT = Verdict(
    replicas=2,
    reason="WithinTolerance",
    message="demand 4 at 2 a replica",
    is_active=True,
    history=History(created_s=0.0),
)
VIEW = View(
    at_s=NOW_S,
    replicas=2,
    demand=Demand(held=1, queued=1, running=2),
    is_known=True,
    num_failures=0,
    age_s=0.2,
    trouble="",
    verdict=VERDICT,
    last_active_s=NOW_S - 7,
    scalings=(Scaling(at_s=NOW_S - 60, replicas=2, reason="AboveTarget: more"),),
)
LATER = replace(VIEW, at_s=NOW_S + QUIET_S, last_active_s=NOW_S - 8)
UNKNOWN = {"is_known": False, "num_failures": 2, "trouble": "no answer from r: refused"}


@pytest.fixture
def service(document) -> InferenceService:
    made = document("scaling: {maxReplicas: 3}")
    made["metadata"]["namespace"] = "team"
    return InferenceService.model_validate(made)


def test_status_says_what_was_seen_decided_and_done(service) -> None:
    status = scaling_status(ScalingFacts(provider=BUILT_IN, view=VIEW), service, {"standby": 1, "desired": 9})

    assert status == {
        "standby": 1,
        "provider": "BuiltIn",
        "desired": 2,
        "demand": 4,
        "lastReason": "WithinTolerance: demand 4 at 2 a replica",
        "history": [{"time": "2025-12-31T23:59:00Z", "replicas": 2, "reason": "AboveTarget: more"}],
        "lastActiveTime": "2025-12-31T23:59:30Z",
    }


def test_what_an_earlier_process_left_is_read_back(service) -> None:
    status = scaling_status(ScalingFacts(provider=BUILT_IN, view=VIEW), service, None)

    assert memory_of({"scaling": status}) == Memory(last_active_s=NOW_S - 30, scalings=VIEW.scalings)


def test_status_says_why_nothing_is_carried_out_and_keeps_what_was_done(service) -> None:
    facts = ScalingFacts(provider=BUILT_IN, view=VIEW, held=("NameConflict", "rename it"))
    previous = {"desired": 2, "lastReason": "x", "standby": 1}

    told = {**previous, "lastReason": "NameConflict: rename it"}
    assert scaling_status(facts, None, previous) == scaling_status(facts, service, previous) == told
    assert scaling_status(facts, None, None) is None


@pytest.mark.parametrize("broken", [None, {}, {"scaling": {"history": [1, {"replicas": "x"}], "lastActiveTime": 5}}])
def test_status_that_cannot_be_read_is_no_memory(broken) -> None:
    assert memory_of(broken) == Memory()


def test_before_the_first_look_of_a_process_status_stays_as_it_was(service) -> None:
    previous = {"provider": "BuiltIn", "desired": 2}

    assert scaling_status(ScalingFacts(provider=BUILT_IN), service, previous) == previous


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, False),
        ({"demand": Demand(held=9, queued=0, running=0)}, True),
        ({"last_active_s": NOW_S + 1}, True),
        ({"verdict": replace(VERDICT, message="other numbers")}, False),
        (UNKNOWN, True),
        ({**UNKNOWN, "num_failures": 1}, False),
    ],
    ids=["same", "demand", "activity", "words", "unknown", "one-failure"],
)
def test_numbers_are_told_when_they_have_changed_and_time_has_passed(changed, expected) -> None:
    assert is_news(VIEW, replace(LATER, **changed)) is expected
    assert is_news(VIEW, replace(LATER, **{**changed, "at_s": NOW_S + 1})) is False


@pytest.mark.parametrize(
    "changed",
    [{"verdict": replace(VERDICT, replicas=3)}, {"scalings": ()}, {"refusal": "403"}],
    ids=["desired", "scaled", "refused"],
)
def test_what_was_decided_and_done_is_told_at_once(changed) -> None:
    assert is_news(VIEW, replace(VIEW, at_s=NOW_S + 0.1, **changed))


def test_routers_that_have_not_answered_a_new_process_are_no_news() -> None:
    settling = replace(VIEW, is_known=False, num_failures=1, scalings=())

    assert not is_news(None, settling)
    assert is_news(None, replace(settling, num_failures=2))
    assert is_news(None, VIEW)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (ScalingFacts(provider=BUILT_IN, view=VIEW), ("True", "Ready")),
        (ScalingFacts(provider=BUILT_IN), ("Unknown", "Waiting")),
        (ScalingFacts(provider=BUILT_IN, view=VIEW, held=("NameConflict", "rename it")), ("False", "NameConflict")),
        (ScalingFacts(provider=BUILT_IN, view=replace(VIEW, **UNKNOWN)), ("False", "DemandUnknown")),
        (ScalingFacts(provider=BUILT_IN, view=replace(VIEW, refusal="forbidden")), ("False", "ReplicasNotWritten")),
        (
            ScalingFacts(provider=Provider(name="Keda", problem=("KEDANotInstalled", "install it"))),
            ("False", "KEDANotInstalled"),
        ),
    ],
    ids=["ready", "waiting", "held", "unknown", "refused", "no-keda"],
)
def test_condition_says_whether_replicas_follow_demand(facts, expected) -> None:
    assert scaling_ready(facts, None)[:2] == expected
