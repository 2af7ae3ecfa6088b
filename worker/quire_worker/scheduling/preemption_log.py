"""One log line for each preemption, as far as a log can bear them: which request gave way, why, and what it may have to compute again.

Knows neither policy nor blocks.
"""

import logging
from collections.abc import Callable

from quire_contract.telemetry import log_event
from quire_worker.scheduling.choice import Choice

log = logging.getLogger(__name__)

FOR_BLOCKS = "blocks"
"""A running choice needed one more block."""
FOR_SHORTER = "shorter"
"""The policy let a shorter choice in."""
_MAX_LINES_PER_S = 10.0


class PreemptionLog:
    """Writes at most ten lines a second, and how many it left out."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._spare_lines = _MAX_LINES_PER_S
        self._filled_s = clock()
        self._num_left_out = 0

    def on_preemption(self, choice: Choice, reason: str) -> None:
        """`choice` loses its row and blocks for `reason`; its counts are still those of its run."""
        now_s = self._clock()
        self._spare_lines = min(_MAX_LINES_PER_S, self._spare_lines + (now_s - self._filled_s) * _MAX_LINES_PER_S)
        self._filled_s = now_s
        if self._spare_lines < 1.0:
            self._num_left_out += 1
            return
        self._spare_lines -= 1.0
        log_event(
            log,
            logging.INFO,
            "preempted",
            request_id=choice.request_id,
            choice=choice.index,
            reason=reason,
            tokens_lost=choice.num_computed,
            generated_tokens=len(choice.token_ids) - choice.num_prompt,
            times=choice.num_preemptions,
            left_out=self._num_left_out,
        )
        self._num_left_out = 0
