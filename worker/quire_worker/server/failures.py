"""What the engine says of a request that it refuses or cannot finish, as the error its client reads; counted and logged.

The same for text and for embeddings. Knows neither JSON nor HTTP.
"""

import logging
from collections.abc import Callable

from quire_contract import names
from quire_contract.openai.errors import ApiError
from quire_contract.telemetry import log_event
from quire_worker.engine.messages import ChoiceOutput, Rejected
from quire_worker.request import FAILED_GRAMMAR, FAILED_NO_TOKEN, FAILED_NOT_FINITE
from quire_worker.server import errors
from quire_worker.server.engine_client import EngineClient
from quire_worker.server.metrics import Metrics

FAILURES = frozenset({"error", names.REASON_QUEUE_TIMEOUT, names.REASON_DEADLINE})
"""Finish reasons that no client sees as one."""
_log = logging.getLogger(__name__)


class Failures:
    """Of one HTTP request."""

    def __init__(
        self,
        engine: EngineClient,
        metrics: Metrics,
        clock: Callable[[], float],
        request_id: str,
        *,
        arrived_s: float,
        grammar_field: str = "",
    ) -> None:
        """`request_id` is for logs, `arrived_s` by the clock; `grammar_field`: the field that the request's grammar comes from."""
        self._engine = engine
        self._metrics = metrics
        self._clock = clock
        self._request_id = request_id
        self._arrived_s = arrived_s
        self._grammar_field = grammar_field

    def spent_s(self, timeout_s: float | None) -> float:
        """Seconds since the request arrived. ApiError 504 if that is all the time it has."""
        spent_s = self._clock() - self._arrived_s
        if timeout_s is not None and spent_s >= timeout_s:
            self._metrics.on_rejected(names.REASON_DEADLINE)
            raise errors.deadline_passed(spent_s, "waiting")
        return spent_s

    def of_rejected(self, rejected: Rejected) -> ApiError:
        """For a request that was not taken."""
        self._metrics.on_rejected(rejected.reason)
        return errors.of_rejected(rejected, self._grammar_field)

    def of_slow_reader(self) -> ApiError:
        """For a request of whose answer its client takes too little."""
        log_event(_log, logging.WARNING, "client takes too little of its answer", request_id=self._request_id)
        return errors.slow_reader()

    def error_of(self, item: ChoiceOutput) -> ApiError:
        """For an output whose finish reason is one of FAILURES."""
        if item.finish_reason != "error":
            return self._timed_out(item)
        if item.error_code == FAILED_GRAMMAR:
            return errors.of_grammar(self._grammar_field, item.error or "")
        log_event(_log, logging.ERROR, "request failed in the engine", request_id=self._request_id, error=item.error)
        if item.error_code == FAILED_NOT_FINITE:
            self._metrics.on_not_finite()
            return errors.not_finite(self._engine.dtype)
        if item.error_code == FAILED_NO_TOKEN:
            return errors.no_token()
        return errors.step_failed(self._request_id)

    def _timed_out(self, item: ChoiceOutput) -> ApiError:
        after_s = self._clock() - self._arrived_s
        if item.finish_reason == names.REASON_QUEUE_TIMEOUT:
            self._metrics.on_rejected(names.REASON_QUEUE_TIMEOUT)
            stats = self._engine.stats
            return errors.queue_timed_out(after_s, 1 if stats is None else stats.retry_after_s)
        if item.error == "waiting":
            self._metrics.on_rejected(names.REASON_DEADLINE)
        else:
            self._metrics.on_deadline()
        return errors.deadline_passed(after_s, item.error or "running")
