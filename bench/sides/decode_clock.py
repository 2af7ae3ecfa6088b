"""Times decoding apart from prefill, in the same way for every side of bench/engine.py."""

import time
from collections.abc import Callable


class DecodeClock:
    """Times the steps in which every row decodes: from when all have their first token until one has its last.

    Prefill, however it is cut into steps and mixed with others' decoding, lies outside.
    """

    def __init__(self, num_rows: int, max_tokens: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._max_tokens = max_tokens
        self._counts = [0] * num_rows
        self._started: float | None = None
        self.seconds = 0.0
        self.tokens = 0
        """Of all rows, in those seconds."""

    def saw(self, new_tokens: dict[int, int]) -> None:
        """A step is over and gave `new_tokens[row]` tokens."""
        now = self._now()
        is_over = self._max_tokens in self._counts
        for row, count in new_tokens.items():
            self._counts[row] += count
        if is_over:
            return
        if self._started is not None:
            self.tokens += sum(new_tokens.values())
            self.seconds = now - self._started
        elif all(self._counts):
            self._started = now
