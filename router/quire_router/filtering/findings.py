"""What the filters found of one call: names for the log line and for the client's header, and counts, once a call and stage."""

from collections.abc import Callable

from quire_router.call import Outcome
from quire_router.filtering.rules import Stage

Count = Callable[[str, str, str], None]
"""Counts by filter, stage and action."""


class Findings:
    """Of one call."""

    def __init__(self, outcome: Outcome, count: Count) -> None:
        self._outcome = outcome
        self._count = count
        self._seen: set[tuple[str, str, str]] = set()

    def note(self, name: str, stage: Stage, action: str) -> None:
        """A filter has found something."""
        key = (name, stage, action)
        if key in self._seen:
            return
        self._seen.add(key)
        self._count(*key)
        if action == "flag" and name not in self._outcome.flags:
            self._outcome.flags.append(name)
        if action == "block":
            self._outcome.problem = f"content filter {name} blocked the {stage}"
