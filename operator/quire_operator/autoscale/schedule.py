"""Which bounds hold now: the policy's own, or those of the schedules whose hours it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from quire_operator.autoscale.policy import Policy, Schedule


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Fewest and most replicas now."""

    fewest: int
    most: int
    fewest_because: str
    """What set it: minReplicas, or a schedule's."""
    most_because: str
    is_fewest_scheduled: bool = False
    is_most_scheduled: bool = False

    @property
    def fewest_reason(self) -> str:
        """Of a verdict that the minimum made."""
        return "Scheduled" if self.is_fewest_scheduled else "AtMinimum"

    @property
    def most_reason(self) -> str:
        """Of a verdict that the maximum made."""
        return "Scheduled" if self.is_most_scheduled else "AtMaximum"

    @property
    def fewest_words(self) -> str:
        """For people."""
        return f"{self.fewest_because} is {self.fewest}"

    @property
    def most_words(self) -> str:
        """For people."""
        return f"{self.most_because} is {self.most}"


def bounds_at(policy: Policy, now_s: float) -> Bounds:
    """Of several schedules that hold, the largest minimum and the largest maximum count. A minimum never lifts the maximum."""
    active = [one for one in policy.schedules if is_on(one, now_s)]
    fewest = max((one for one in active if one.min_replicas is not None), key=_fewest, default=None)
    most = max((one for one in active if one.max_replicas is not None), key=_most, default=None)
    highest = _most(most) if most else policy.max_replicas
    return Bounds(
        fewest=min(_fewest(fewest) if fewest else policy.min_replicas, highest),
        most=highest,
        fewest_because=f"minReplicas of schedule {fewest.name}" if fewest else "minReplicas",
        most_because=f"maxReplicas of schedule {most.name}" if most else "maxReplicas",
        is_fewest_scheduled=fewest is not None,
        is_most_scheduled=most is not None,
    )


def is_on(schedule: Schedule, now_s: float) -> bool:
    """Whether it holds. Its end does not belong to it.

    Clocks that go forward: an hour that does not exist begins when the clock has passed it. Clocks that go back: a schedule
    begins at the first of the two equal times and ends at the second, so that it is never shorter than it reads.
    """
    return any(begin_s <= now_s < end_s for begin_s, end_s in _spans(schedule, now_s))


def _spans(schedule: Schedule, now_s: float) -> Iterator[tuple[float, float]]:
    zone = ZoneInfo(schedule.time_zone)
    today = datetime.fromtimestamp(now_s, UTC).astimezone(zone).date()
    for days_ago in (1, 0):
        day = today - timedelta(days=days_ago)
        if schedule.weekdays and day.weekday() not in schedule.weekdays:
            continue
        until = day if schedule.end_minute > schedule.start_minute else day + timedelta(days=1)
        begin = datetime.combine(day, _clock(schedule.start_minute), zone)
        end = datetime.combine(until, _clock(schedule.end_minute), zone).replace(fold=1)
        yield begin.timestamp(), end.timestamp()


def _clock(minute: int) -> time:
    return time(minute // 60, minute % 60)


def _fewest(schedule: Schedule) -> int:
    return schedule.min_replicas or 0


def _most(schedule: Schedule) -> int:
    return schedule.max_replicas or 0
