"""Choices that wait for a row, in the order of their rank; a preempted choice goes back to where its rank puts it.

One client's request of many prompts or choices may not take all rows while others wait: beyond `max_rows` in the batch and in line, its
choices are parked. They come into line as its others end, and to the head when nobody else waits.

    head   <- in line, by rank   <- parked, by client's request    |   aside, while a trial runs

Knows order and bounds; not blocks or rows.
"""

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from operator import attrgetter

from quire_worker.scheduling.choice import Choice, Status
from quire_worker.scheduling.limits import ANY_ROWS

_BY_RANK = attrgetter("rank")


class WaitingQueue:
    """Waiting choices, first in rank first. A trial (see engine/quarantine.py) lets only some of them come to the head."""

    def __init__(self, rows_held: Mapping[str, int] | None = None, max_rows: int = ANY_ROWS) -> None:
        """`rows_held`: rows of the batch by the client's request that holds them, kept current by the batch. `max_rows`: so many may one
        hold while others wait."""
        self._rows_held = {} if rows_held is None else rows_held
        self._max_rows = max_rows
        self._choices: list[Choice] = []
        """In line."""
        self._num_in_line: Counter[str] = Counter()
        self._parked: dict[str, list[Choice]] = {}
        """By origin, none empty."""
        self._trial: frozenset[Choice] | None = None
        self._aside: list[Choice] = []
        self.num_tokens = 0
        """Prompt tokens of all waiting choices."""

    def __len__(self) -> int:
        return len(self._choices) + sum(map(len, self._parked.values())) + len(self._aside)

    def __iter__(self) -> Iterator[Choice]:
        yield from self._choices
        for parked in self._parked.values():
            yield from parked
        yield from self._aside

    @property
    def num_aside(self) -> int:
        """Choices that wait for a trial to end."""
        return len(self._aside)

    @property
    def head(self) -> Choice | None:
        """The first choice that may be admitted now."""
        if self._parked:
            self._line_up_parked()
        if self._choices:
            return self._choices[0]
        return min((parked[0] for parked in self._parked.values()), key=_BY_RANK, default=None)

    def has_room(self, choice: Choice, num_more: int) -> bool:
        """Whether `choice`, which does not wait here, may take a row now, if its request takes `num_more` others with it."""
        return not self._choices or self._num_taken(choice.origin) + num_more < self._max_rows

    def push(self, choice: Choice) -> None:
        """Add by rank."""
        choice.status = Status.WAITING
        self.num_tokens += choice.num_prompt
        if self._trial is None or choice in self._trial:
            self._line_up(choice)
        else:
            insort(self._aside, choice, key=_BY_RANK)

    def pop(self) -> Choice:
        """Take the head."""
        choice = self.head
        assert choice is not None, "nobody waits"
        self.remove(choice)
        return choice

    def remove(self, choice: Choice) -> None:
        """Take a choice out, wherever it stands."""
        self.num_tokens -= choice.num_prompt
        if choice in self._parked.get(choice.origin, ()):
            self._unpark(choice)
        elif choice in self._choices:
            self._leave_line(choice)
        else:
            self._aside.remove(choice)

    def restrict(self, trial: frozenset[Choice] | None) -> None:
        """Only the choices of `trial` may come to the head; None: all. The others keep their rank and wait aside."""
        self._trial = trial
        everyone = sorted(self, key=_BY_RANK)
        self._choices, self._aside = [], []
        self._parked.clear()
        self._num_in_line.clear()
        for choice in everyone:
            if trial is None or choice in trial:
                self._line_up(choice)
            else:
                self._aside.append(choice)

    def _num_taken(self, origin: str) -> int:
        return self._rows_held.get(origin, 0) + self._num_in_line[origin]

    def _line_up(self, choice: Choice) -> None:
        """Into line, or beside it; of one request the first in rank stand in line."""
        parked = self._parked.get(choice.origin)
        if parked is None and self._num_taken(choice.origin) < self._max_rows:
            self._enter_line(choice)
            return
        if parked is not None and choice.rank > parked[0].rank:
            insort(parked, choice, key=_BY_RANK)
            return
        later = [other for other in self._choices if other.origin == choice.origin and other.rank > choice.rank]
        if later:
            self._leave_line(later[-1])
            self._enter_line(choice)
            choice = later[-1]
        insort(self._parked.setdefault(choice.origin, []), choice, key=_BY_RANK)

    def _line_up_parked(self) -> None:
        for origin, parked in tuple(self._parked.items()):
            while parked and self._num_taken(origin) < self._max_rows:
                first = parked[0]
                self._unpark(first)
                self._enter_line(first)

    def _enter_line(self, choice: Choice) -> None:
        insort(self._choices, choice, key=_BY_RANK)
        self._num_in_line[choice.origin] += 1

    def _leave_line(self, choice: Choice) -> None:
        self._choices.remove(choice)
        self._num_in_line[choice.origin] -= 1
        if not self._num_in_line[choice.origin]:
            del self._num_in_line[choice.origin]

    def _unpark(self, choice: Choice) -> None:
        parked = self._parked[choice.origin]
        parked.remove(choice)
        if not parked:
            del self._parked[choice.origin]
