"""The course of one service's scaling from one reading to the next: history, failures in a row, the last changes.

Every clock and every effect is the caller's: the operator, `quire up` and `quire simulate` go through the same steps. Must not know who
writes the number, or where.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from quire_operator.autoscale.aggregate import Reading, ScaleState, has_new_arrivals, signal_of
from quire_operator.autoscale.decide import decide
from quire_operator.autoscale.history import History
from quire_operator.autoscale.policy import Policy
from quire_operator.autoscale.signal import Demand, Signal
from quire_operator.autoscale.verdict import Verdict

MAX_EVENTS = 5
Decide = Callable[[Signal, Policy, History, float], Verdict]


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """One change of the number of replicas that was written."""

    at_s: float
    """Unix time in seconds."""
    replicas: int
    """The new number."""
    reason: str
    """CamelCase, and what a person reads after it."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What an earlier process left: an operator's status."""

    last_active_s: float | None = None
    """Unix time in seconds."""
    scalings: tuple[Scaling, ...] = ()
    """Newest first."""


@dataclass(frozen=True, kw_only=True)
class View:
    """How one service stands, for status, metrics and whoever else asks."""

    at_s: float
    """When it was decided; Unix time in seconds."""
    replicas: int
    """What /scale said then."""
    demand: Demand | None
    """The last one that was complete, or what there is at least."""
    is_known: bool
    """The demand is complete and fresh."""
    num_failures: int
    """Readings in a row that were not."""
    age_s: float
    """Of the oldest router's report."""
    trouble: str
    """Why it is not known."""
    verdict: Verdict
    """What was decided."""
    last_active_s: float | None
    """When demand was last above activation."""
    scalings: tuple[Scaling, ...]
    """The last changes, newest first."""
    refusal: str = ""
    """Why the verdict was not carried out; empty: it was, or nobody tried."""


@dataclass(kw_only=True)
class Course:
    """Of one service."""

    decide: Decide = decide
    history: History | None = None
    num_failures: int = 0
    scalings: tuple[Scaling, ...] = ()
    _demand: Demand | None = field(default=None)
    """The last complete one."""

    def begin(self, state: ScaleState, memory: Memory, now_s: float) -> None:
        """Go on where an earlier process ended. Does nothing on a course that has begun."""
        if self.history is not None:
            return
        self.history = History.begin(
            created_s=state.created_s, replicas=state.replicas, now_s=now_s, last_active_s=memory.last_active_s
        )
        self.scalings = memory.scalings[:MAX_EVENTS]

    def step(self, reading: Reading, state: ScaleState, policy: Policy, now_s: float) -> View:
        """Decide once. The course has begun. Whoever carries the verdict out tells `written` or `refused`."""
        history = self.history
        assert history is not None, "begin the course first"
        if reading.is_known:
            self.num_failures = 0
        elif not reading.is_settling or self.num_failures == 0:  # routers that begin are not a failure after another
            self.num_failures += 1
        if state.replicas and policy.activation == 0 and has_new_arrivals(self._demand, reading.demand):
            history = replace(history, last_active_s=now_s)  # one that came and went since the last reading
        verdict = self._verdict(reading, state, policy, history, now_s)
        self.history = verdict.history
        if reading.is_known:
            self._demand = reading.demand
        return self._view(reading, state, verdict, now_s)

    def written(self, verdict: Verdict, now_s: float) -> None:
        """The verdict's number is what /scale says now."""
        reason = f"{verdict.reason}: {verdict.message}" if verdict.message else verdict.reason
        new = Scaling(at_s=now_s, replicas=verdict.replicas, reason=reason[:1024])
        self.scalings = (new, *self.scalings)[:MAX_EVENTS]

    def refused(self, before: History) -> None:
        """It could not be written: no change was made, and none counts against the rate limits."""
        if self.history is not None:
            self.history = replace(
                self.history, ups=before.ups, downs=before.downs, loading_since_s=before.loading_since_s
            )

    def _verdict(self, reading: Reading, state: ScaleState, policy: Policy, history: History, now_s: float) -> Verdict:
        """An incomplete demand may only add replicas, or keep the service awake."""
        if reading.is_known:
            return self.decide(signal_of(reading.demand, state, 0), policy, history, now_s)
        if reading.demand is not None:
            at_least = self.decide(signal_of(reading.demand, state, 0), policy, history, now_s)
            if at_least.replicas > state.replicas:
                return at_least
            if at_least.is_active and state.replicas:
                history = replace(history, last_active_s=at_least.history.last_active_s)
        return self.decide(signal_of(None, state, self.num_failures), policy, history, now_s)

    def _view(self, reading: Reading, state: ScaleState, verdict: Verdict, now_s: float) -> View:
        return View(
            at_s=now_s,
            replicas=state.replicas,
            demand=reading.demand if reading.is_known or reading.demand is not None else self._demand,
            is_known=reading.is_known,
            num_failures=self.num_failures,
            age_s=reading.age_s,
            trouble=reading.trouble,
            verdict=verdict,
            last_active_s=verdict.history.last_active_s,
            scalings=self.scalings,
        )
