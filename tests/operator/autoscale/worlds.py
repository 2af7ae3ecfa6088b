"""What the autoscaler's tests decide about: one reading, one policy, one history, and a service that obeys for a while."""

from collections.abc import Callable, Iterable
from typing import Any

from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import Change, History, Recommendation
from quire_operator.autoscale.policy import Direction, Limit, Metric, Policy, Target
from quire_operator.autoscale.signal import Signal
from quire_operator.autoscale.verdict import Verdict

NOW = 1_800_000_000.0
"""2027-01-15 08:00:00 UTC, a Friday."""
FREE = Direction(window_s=0.0, limits=(Limit(kind="Pods", value=1_000_000, period_s=1),))
"""No window, no limit: what the targets ask for is what happens."""
LONG_AGO = History(created_s=NOW - 1e6, last_active_s=NOW)


def policy(metric: Metric = "Demand", value: float = 1.0, **changed: Any) -> Policy:
    """One target, nothing that holds it, 1 to 2000 replicas."""
    fields: dict[str, Any] = {
        "min_replicas": 1,
        "max_replicas": 2000,
        "targets": (Target(metric=metric, value=value),),
        "up": FREE,
        "down": FREE,
    }
    return Policy(**{**fields, **changed})


def signal(replicas: int, demand: float | None = None, **changed: Any) -> Signal:
    """All replicas are ready; a demand of None is unknown, for once."""
    readings: dict[Metric, float] = {} if demand is None else {"Demand": demand}
    fields: dict[str, Any] = {
        "readings": readings,
        "replicas": replicas,
        "ready": replicas,
        "num_failures": 0 if demand is not None or changed.get("readings") else 1,
    }
    return Signal(**{**fields, **changed})


def asked(*ago: tuple[float, int]) -> tuple[Recommendation, ...]:
    """Recommendations, each as (seconds ago, replicas)."""
    return tuple(Recommendation(at_s=NOW - seconds, replicas=replicas) for seconds, replicas in ago)


def changes(amounts: Iterable[int], period_s: float) -> tuple[Change, ...]:
    """Spread evenly over the last `period_s`, each in the middle of its part; the oldest first."""
    each = list(amounts)
    part_s = period_s / len(each)
    return tuple(Change(at_s=NOW - period_s + part_s * (i + 0.5), amount=amount) for i, amount in enumerate(each))


class Service:
    """Replicas that do what they are told, ready after `startup_s`."""

    def __init__(self, of: Policy, *, replicas: int, startup_s: float = 0.0, now_s: float = NOW) -> None:
        self.policy = of
        self.now_s = now_s
        self.startup_s = startup_s
        self.history = History.begin(created_s=now_s, replicas=replicas, now_s=now_s)
        self.started_s = [now_s - startup_s] * replicas
        self.told: list[Verdict] = []

    @property
    def replicas(self) -> int:
        """What /scale says."""
        return len(self.started_s)

    def look(self, demand: float | None, **changed: Any) -> Verdict:
        """One decision, carried out."""
        ready = sum(self.now_s - at_s >= self.startup_s for at_s in self.started_s)
        reading = signal(self.replicas, demand, **{"ready": ready, "loading": self.replicas - ready, **changed})
        verdict = decide(reading, self.policy, self.history, self.now_s)
        self.started_s = (self.started_s + [self.now_s] * verdict.replicas)[: verdict.replicas]
        self.history = verdict.history
        self.told.append(verdict)
        return verdict

    def run(self, seconds: float, demand: Callable[[float], float | None], every_s: float = 5.0) -> list[int]:
        """Decisions every so often, from now on; the numbers. `demand` gets the seconds since the beginning of the run."""
        began_s, numbers = self.now_s, []
        while self.now_s - began_s < seconds:
            numbers.append(self.look(demand(self.now_s - began_s)).replicas)
            self.now_s += every_s
        return numbers
