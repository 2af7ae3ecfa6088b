"""Choices that wait for a row, in the order of their rank; a preempted choice goes back to where its rank puts it.

Knows order and bounds; not blocks or rows.
"""

from bisect import insort
from collections.abc import Iterator
from operator import attrgetter

from quire_worker.scheduling.choice import Choice, Status

_BY_RANK = attrgetter("rank")


class WaitingQueue:
    """Waiting choices, first in rank first. A trial (see engine/quarantine.py) lets only some of them come to the head."""

    def __init__(self) -> None:
        self._choices: list[Choice] = []
        self._trial: frozenset[Choice] | None = None
        self._aside: list[Choice] = []
        self.num_tokens = 0
        """Prompt tokens of all waiting choices."""

    def __len__(self) -> int:
        return len(self._choices) + len(self._aside)

    def __iter__(self) -> Iterator[Choice]:
        yield from self._choices
        yield from self._aside

    @property
    def num_aside(self) -> int:
        """Choices that wait for a trial to end."""
        return len(self._aside)

    @property
    def head(self) -> Choice | None:
        """The first choice that may be admitted now."""
        return self._choices[0] if self._choices else None

    def push(self, choice: Choice) -> None:
        """Add by rank."""
        choice.status = Status.WAITING
        may_run = self._trial is None or choice in self._trial
        self.num_tokens += choice.num_prompt
        insort(self._choices if may_run else self._aside, choice, key=_BY_RANK)

    def pop(self) -> Choice:
        """Take the head."""
        choice = self._choices.pop(0)
        self.num_tokens -= choice.num_prompt
        return choice

    def remove(self, choice: Choice) -> None:
        """Take a choice out, wherever it stands."""
        self.num_tokens -= choice.num_prompt
        (self._choices if choice in self._choices else self._aside).remove(choice)

    def restrict(self, trial: frozenset[Choice] | None) -> None:
        """Only the choices of `trial` may come to the head; None: all. The others keep their rank and wait aside."""
        self._trial = trial
        everyone = sorted(self, key=_BY_RANK)
        self._choices = [choice for choice in everyone if trial is None or choice in trial]
        self._aside = [choice for choice in everyone if trial is not None and choice not in trial]
