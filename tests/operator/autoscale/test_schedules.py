"""Schedules: other bounds at some local hours of some days."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.policy import Schedule
from quire_operator.autoscale.schedule import bounds_at, is_on
from tests.operator.autoscale.worlds import LONG_AGO, policy, signal

FRIDAY = 4


def schedule(
    start: str, end: str, *, zone: str = "UTC", days: tuple[int, ...] = (), name: str = "office", **bounds: int | None
) -> Schedule:
    """Such as 07:30 to 19:00; no days: every day."""
    minutes = [int(clock[:2]) * 60 + int(clock[3:]) for clock in (start, end)]
    return Schedule(
        name=name,
        time_zone=zone,
        weekdays=frozenset(days),
        start_minute=minutes[0],
        end_minute=minutes[1],
        min_replicas=bounds.get("fewest"),
        max_replicas=bounds.get("most"),
    )


def at(local: str, zone: str = "UTC") -> float:
    """Unix time of 2027-01-15T08:00, or with an offset."""
    moment = datetime.fromisoformat(local)
    return (moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(zone))).timestamp()


BERLIN, NIGHT = "Europe/Berlin", ("22:00", "06:00")
HOURS = [
    ("before it", schedule("08:00", "18:00"), at("2027-01-15T07:59:59"), False),
    ("its first second", schedule("08:00", "18:00"), at("2027-01-15T08:00:00"), True),
    ("its last second", schedule("08:00", "18:00"), at("2027-01-15T17:59:59"), True),
    ("its end does not belong to it", schedule("08:00", "18:00"), at("2027-01-15T18:00:00"), False),
    ("local time counts", schedule("08:00", "18:00", zone=BERLIN), at("2027-01-15T07:30:00"), True),
    ("local time far east", schedule("08:00", "09:00", zone="Pacific/Auckland"), at("2027-01-14T19:30:00"), True),
    ("one of its days", schedule("08:00", "18:00", days=(FRIDAY,)), at("2027-01-15T12:00:00"), True),
    ("none of its days", schedule("08:00", "18:00", days=(0, 1, 2, 3)), at("2027-01-15T12:00:00"), False),
    (
        "the local day counts",
        schedule("00:00", "06:00", zone="Asia/Tokyo", days=(FRIDAY,)),
        at("2027-01-14T16:00:00"),
        True,
    ),
    ("over midnight, before it", schedule(*NIGHT, days=(FRIDAY,)), at("2027-01-15T23:00:00"), True),
    (
        "over midnight, after it, of the day on which it began",
        schedule(*NIGHT, days=(FRIDAY,)),
        at("2027-01-16T05:59:00"),
        True,
    ),
    ("over midnight, not the night before", schedule(*NIGHT, days=(FRIDAY,)), at("2027-01-15T05:00:00"), False),
    ("over midnight, over", schedule(*NIGHT, days=(FRIDAY,)), at("2027-01-16T06:00:00"), False),
    ("a whole day", schedule("09:00", "09:00", days=(FRIDAY,)), at("2027-01-16T08:59:59"), True),
    ("a whole day, over", schedule("09:00", "09:00", days=(FRIDAY,)), at("2027-01-16T09:00:00"), False),
    ("in summer an hour earlier by UTC", schedule("08:00", "09:00", zone=BERLIN), at("2027-07-15T06:30:00"), True),
    # Clocks go from 02:00 to 03:00 on 2027-03-28 and from 03:00 to 02:00 on 2027-10-31.
    (
        "an hour that is skipped begins after it",
        schedule("02:30", "04:00", zone=BERLIN),
        at("2027-03-28T01:15:00+00:00"),
        False,
    ),
    ("and is there then", schedule("02:30", "04:00", zone=BERLIN), at("2027-03-28T01:45:00+00:00"), True),
    ("it still ends on the clock", schedule("02:30", "04:00", zone=BERLIN), at("2027-03-28T02:00:00+00:00"), False),
    (
        "an hour that comes twice holds the first time",
        schedule("02:30", "03:00", zone=BERLIN),
        at("2027-10-31T00:30:00+00:00"),
        True,
    ),
    ("and in between", schedule("02:15", "02:45", zone=BERLIN), at("2027-10-31T01:05:00+00:00"), True),
    ("and the second time", schedule("02:15", "02:45", zone=BERLIN), at("2027-10-31T01:40:00+00:00"), True),
    ("and is over then", schedule("02:15", "02:45", zone=BERLIN), at("2027-10-31T01:45:00+00:00"), False),
]


@pytest.mark.parametrize(
    ("name", "of", "now_s", "expected"), HOURS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_schedule_holds_at_its_local_hours(name: str, of: Schedule, now_s: float, expected: bool) -> None:
    assert is_on(of, now_s) is expected, name


def test_it_replaces_the_bounds_while_it_holds_and_says_so() -> None:
    of = policy(min_replicas=0, max_replicas=4, schedules=(schedule("08:00", "18:00", fewest=2, most=8),))
    noon, night = at("2027-01-15T12:00:00"), at("2027-01-15T20:00:00")

    by_day, by_night = bounds_at(of, noon), bounds_at(of, night)

    assert (by_day.fewest, by_day.most, by_day.fewest_because) == (2, 8, "minReplicas of schedule office")
    assert (by_night.fewest, by_night.most, by_night.fewest_because) == (0, 4, "minReplicas")


def test_of_several_the_largest_minimum_and_the_largest_maximum_count() -> None:
    day = "2027-01-15T12:00:00"
    both = (schedule("08:00", "18:00", fewest=5, most=6), schedule("11:00", "13:00", name="lunch", fewest=1, most=9))

    bounds = bounds_at(policy(max_replicas=20, schedules=both), at(day))

    assert (bounds.fewest, bounds.most, bounds.most_because) == (5, 9, "maxReplicas of schedule lunch")


def test_a_schedules_minimum_never_lifts_the_maximum() -> None:
    bounds = bounds_at(
        policy(max_replicas=4, schedules=(schedule("08:00", "18:00", fewest=9),)), at("2027-01-15T12:00:00")
    )

    assert (bounds.fewest, bounds.most) == (4, 4)


def test_one_that_begins_wakes_a_service_that_nobody_calls_even_while_demand_is_unknown() -> None:
    of = policy(min_replicas=0, schedules=(schedule("07:45", "18:00", fewest=3),))

    early = decide(signal(0, 0), of, LONG_AGO, at("2027-01-15T07:44:59"))
    woken = decide(signal(0, 0), of, LONG_AGO, at("2027-01-15T07:45:00"))
    blind = decide(signal(0), of, LONG_AGO, at("2027-01-15T07:45:00"))

    assert (early.replicas, early.reason) == (0, "Asleep")
    assert (woken.replicas, woken.reason, woken.message) == (3, "Scheduled", "minReplicas of schedule office is 3")
    assert (blind.replicas, blind.is_active) == (3, False)


def test_while_it_asks_for_replicas_none_sleeps_and_afterwards_the_cooldown_does_its_work() -> None:
    of = policy(min_replicas=0, cooldown_s=60, schedules=(schedule("08:00", "18:00", fewest=2),))

    during = decide(signal(2, 0), of, LONG_AGO, at("2027-01-15T17:59:00"))
    after = decide(signal(2, 0), of, LONG_AGO, datetime(2027, 1, 15, 18, 0, tzinfo=UTC).timestamp())

    assert (during.replicas, during.reason) == (2, "Scheduled")
    assert (after.replicas, after.reason) == (0, "ScaledToZero")


def test_a_lower_maximum_holds_at_once() -> None:
    of = policy(max_replicas=10, schedules=(schedule("22:00", "06:00", most=2),))

    verdict = decide(signal(10, 50), of, LONG_AGO, at("2027-01-15T22:00:00"))

    assert (verdict.replicas, verdict.reason, verdict.message) == (
        2,
        "Scheduled",
        "maxReplicas of schedule office is 2",
    )
