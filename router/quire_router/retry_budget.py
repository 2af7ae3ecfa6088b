"""How many attempts may be repeated: a share of the requests, and a reserve for the death of a worker with all it had in flight.

Without it, trouble at the workers would come back to them multiplied.
"""

MAX_RETRIES = 2
"""For each request before its first byte."""
RATIO = 0.2
"""Retries allowed for each request."""
RESERVE = 256.0
"""At the start, and at most: as many requests as a worker runs at once by default."""


class RetryBudget:
    """A token bucket filled by requests. Uses no clock: an idle router neither gains nor loses."""

    def __init__(self, *, ratio: float = RATIO, reserve: float = RESERVE) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._left = reserve

    @property
    def left(self) -> float:
        """Retries that may be made now."""
        return self._left

    def note_request(self) -> None:
        """A request came in."""
        left = self._left
        if left < self._reserve:
            self._left = min(self._reserve, left + self._ratio)

    def take(self) -> bool:
        """Use one retry. False: the budget is spent, and nothing changed."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
