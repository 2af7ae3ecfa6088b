"""When a client that finds the queue full should come back: from what waits, and from how fast the queue has been moving.

The queue lets choices go at the rate at which rows come free or at which prompts are computed, whichever is slower:

    rows / (mean output * decode step)        and        prefill tokens/s / mean prompt

Those refused come back, too. They stand in an imaginary queue of their own, and each is told when its turn there will be, so that a
thousand clients refused at once do not all return in the same second.
Pure: the caller gives times.
"""

import math

from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.speeds import StepSpeeds

MIN_S = 1
MAX_S = 60
_GUESSED_OUTPUT_TOKENS = 256.0
"""Until a choice has ended."""


class RetryAdvice:
    """Seconds for Retry-After."""

    def __init__(self, speeds: StepSpeeds, counters: Counters, max_num_seqs: int) -> None:
        self.speeds = speeds
        self._counters = counters
        self._max_num_seqs = max_num_seqs
        self._num_refused = 0.0
        """Choices that were told to come back, and whose turn has not come."""
        self._at_s = 0.0

    def on_refused(self, num_choices: int, now_s: float) -> int:
        """A request of so many choices found the queue full: when there is likely room for it, whole seconds from MIN_S to MAX_S."""
        rate = self._choices_per_s()
        if rate is None:
            return MIN_S
        self._num_refused = max(0.0, self._num_refused - (now_s - self._at_s) * rate) + num_choices
        self._num_refused = min(self._num_refused, MAX_S * rate + num_choices)
        self._at_s = now_s
        return _bounded(self._num_refused / rate)

    def for_queue(self, num_waiting: int) -> int:
        """When those that wait now will have entered the batch: for a request that waited in vain."""
        rate = self._choices_per_s()
        return MIN_S if rate is None else _bounded(num_waiting / rate)

    def _choices_per_s(self) -> float | None:
        """How fast the queue gets shorter; None while nothing was measured."""
        counters, speeds, rates = self._counters, self.speeds, []
        if speeds.decode_step_s:
            output = counters.mean_output_tokens or _GUESSED_OUTPUT_TOKENS
            rates.append(self._max_num_seqs / (output * speeds.decode_step_s))
        if speeds.prefill_tokens_per_s and counters.mean_prompt_tokens:
            rates.append(speeds.prefill_tokens_per_s / counters.mean_prompt_tokens)
        return min(rates, default=None)


def _bounded(seconds: float) -> int:
    return min(MAX_S, max(MIN_S, math.ceil(seconds)))
