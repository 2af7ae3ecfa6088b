"""How many tokens a step may compute: fewer after one found no memory, and by and by as many as before.

Counts steps instead of time, so that the same steps always give the same plans. Knows neither requests nor devices.
"""

PATIENCE = 1000
"""Good steps after which twice as many tokens are tried: who is short of memory is so for a while."""


class StepBudget:
    """Between `least` and `most` tokens."""

    def __init__(self, most: int, least: int) -> None:
        self._most = most
        self._least = least
        self.num_tokens = most
        """Of one step, at most."""
        self._num_good = 0

    def on_no_memory(self, num_tokens: int) -> bool:
        """A step of `num_tokens` found no memory: from now on at most half as many. False: it was as small as steps get."""
        smaller = max(self._least, num_tokens // 2)
        if smaller >= num_tokens:
            return False
        self.num_tokens = min(self.num_tokens, smaller)
        self._num_good = 0
        return True

    def on_good_step(self) -> None:
        """A step came to its end."""
        if self.num_tokens == self._most:
            return
        self._num_good += 1
        if self._num_good >= PATIENCE:
            self.num_tokens = min(self._most, 2 * self.num_tokens)
            self._num_good = 0
