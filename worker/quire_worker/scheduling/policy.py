"""Who goes first, and who gives way to whom: what the scheduler asks of a policy, and the two that need no prediction.

A policy ranks choices; the scheduler keeps its queue and its batch in the order of rank, takes the victim of preemption from the end, and
asks nothing else of a policy in a step in which nobody waits.

Nobody starves, because a rank is a *virtual arrival time*: the real one plus a handicap between two bounds (the idea of virtual deadlines
in Demers et al., "Analysis and Simulation of a Fair Queueing Algorithm", 1989, and of the EDF bound in Liu and Layland, 1973). The
handicaps of two choices differ by at most the policy's `aging_s`, so a choice is never overtaken by one that came more than `aging_s` after
it: its wait is at most `aging_s` longer than first come, first served would have it for a choice that comes `aging_s` later.
Within that, waiting needs no bookkeeping: all who wait age alike, so their order never changes.
"""

from collections.abc import Sequence
from typing import Protocol

from quire_worker.scheduling.choice import Choice, Rank

FCFS = "fcfs"
PRIORITY = "priority"
SHORTEST_FIRST = "sjf"
POLICIES = (FCFS, PRIORITY, SHORTEST_FIRST)


class Policy(Protocol):
    """Ranks choices. Holds no choices."""

    def rank(self, choice: Choice) -> Rank:
        """The order of service: smaller is sooner. Unique; asked when a choice arrives and when it is preempted."""
        ...

    def victims(
        self, head: Choice, running: Sequence[Choice], num_free_rows: int, num_waiting: int
    ) -> Sequence[Choice]:
        """Who of `running` gives way so that `head`, the first of those that wait, can enter the batch; mostly nobody."""
        ...

    def on_end(self, choice: Choice, *, of_itself: bool) -> None:
        """`choice` ended: `of_itself` by what it said, else because it was cut off (length, abort, deadline)."""
        ...


class FirstComeFirstServed:
    """By arrival. Nobody gives way but for blocks."""

    def rank(self, choice: Choice) -> Rank:
        return choice.age

    def victims(
        self, head: Choice, running: Sequence[Choice], num_free_rows: int, num_waiting: int
    ) -> Sequence[Choice]:
        return ()

    def on_end(self, choice: Choice, *, of_itself: bool) -> None:
        pass


class ByPriority:
    """By the request's priority, lower first (vLLM's meaning), then by arrival. Nobody gives way but for blocks; then the least urgent
    does, the youngest among equals, its wait credited.

    The handicap of priority p is aging_s/2 * p / (1 + |p|): every integer is less urgent than a smaller one, 0 and 1 are a quarter of
    aging_s apart, and no two priorities are further apart than aging_s."""

    def __init__(self, aging_s: float) -> None:
        """`aging_s`: a choice is overtaken only by those that come within so many seconds after it."""
        self._aging_s = aging_s

    def rank(self, choice: Choice) -> Rank:
        handicap_s = self._aging_s / 2 * choice.priority / (1 + abs(choice.priority))
        return (choice.arrived_s + handicap_s, choice.priority, *choice.age)

    def victims(
        self, head: Choice, running: Sequence[Choice], num_free_rows: int, num_waiting: int
    ) -> Sequence[Choice]:
        return ()

    def on_end(self, choice: Choice, *, of_itself: bool) -> None:
        pass
