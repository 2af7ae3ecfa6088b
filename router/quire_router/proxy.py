"""Carries one request to a worker and its answer back: original bytes, whole SSE events as they come, retries before the first byte.

    connect -> (retry) -> headers -> (retry) -> first event -> the answer begins -> ... (goes on elsewhere) -> end | BrokenStreamError

A retry goes to another endpoint, only while nothing was sent to the client, at most MAX_RETRIES times and within the retry budget; what
happens to a stream afterwards is `mending`'s.
A call by a route's name has several models that may answer; each is sent the body with its own name in "model", and an answer tells the
name of the model that gave it. It must not know how endpoints are chosen or what bodies mean beyond that.
"""

import logging
from collections.abc import Callable

from quire_contract import names
from quire_contract.openai.errors import unavailable
from quire_contract.resume import HEADER_USAGE
from quire_contract.telemetry import log_event
from quire_router.answer import Answer
from quire_router.attempt import Attempt
from quire_router.call import Call, Outcome, Usage
from quire_router.endpoints import Reservation
from quire_router.hedging import Hedger
from quire_router.mending import MendedStream, Mender
from quire_router.passed_headers import PassedHeaders
from quire_router.picker import Picker
from quire_router.refusals import NobodyLeftError
from quire_router.replay import usage_of_header
from quire_router.retry_budget import MAX_RETRIES, RetryBudget
from quire_router.scoring import Choice
from quire_router.upstream import RetryableError, WorkerRequest, request_of

log = logging.getLogger("quire_router.proxy")

_BUSY = frozenset({names.REASON_QUEUE_FULL, names.REASON_NOT_READY})
"""A worker that says so is there, and would say so again."""


class Proxy:
    """Forwards calls. One for the process; the source behind all layers."""

    def __init__(
        self,
        *,
        hedger: Hedger,
        mender: Mender,
        picker: Picker,
        budget: RetryBudget,
        on_retry: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._hedger = hedger
        self._mender = mender
        self._picker = picker
        self._budget = budget
        self._on_retry = on_retry
        self._clock = clock

    async def answer(self, call: Call, outcome: Outcome) -> Answer:
        """A worker's answer. ApiError if no endpoint gave one, NobodyLeftError if another one might."""
        tried: frozenset[str] = frozenset()
        is_busy, targets = False, call.targets
        self._budget.note_request()
        while True:
            if len(targets) == 1:  # mostly, and then without a step of its own
                reservation, choice = self._picker.pick(call.request_id, targets[0], call.prompt, tried)
                if reservation is not None:
                    outcome.target = targets[0]
            else:
                reservation, choice = self._pick(call, tried, outcome)
            if reservation is None:
                if tried:
                    message = f"{outcome.problem}; {choice.reason}"
                    is_gone = not is_busy and await self._mender.are_gone(tried)
                    raise NobodyLeftError(message) if is_gone else unavailable(message)
                outcome.choice = choice
                raise NobodyLeftError(f"The model `{call.model}` has no ready worker now: {choice.reason}.")
            outcome.choice = choice
            outcome.attempts += 1
            try:
                request = request_of(call, outcome.target or call.model)
                attempt = await self._hedger.begin(request, reservation, choice, tried)
                return self._answer_of(request, attempt, outcome)
            except RetryableError as error:
                outcome.problem, is_busy = str(error), error.reason in _BUSY
                tried |= {reservation.endpoint.id} | error.also_tried
                if outcome.attempts > MAX_RETRIES or not self._budget.take():
                    raise unavailable(f"No worker could answer: {error}.") from None
                self._on_retry(error.reason)
                log_event(
                    log,
                    logging.INFO,
                    "retry",
                    request_id=call.request_id,
                    endpoint=reservation.endpoint.id,
                    reason=error.reason,
                )

    def _pick(self, call: Call, tried: frozenset[str], outcome: Outcome) -> tuple[Reservation | None, Choice]:
        """A place at the first target that has one; if none has, why not the first target."""
        refusal: Choice | None = None
        for target in call.targets:
            reservation, choice = self._picker.pick(call.request_id, target, call.prompt, tried)
            if reservation is not None:
                outcome.target = target
                return reservation, choice
            refusal = refusal or choice
        assert refusal is not None, "a call has a target"
        return None, refusal

    def _answer_of(self, request: WorkerRequest, attempt: Attempt, outcome: Outcome) -> Answer:
        """The answer that has begun."""
        call, begun, response = request.call, attempt.begun, attempt.response
        outcome.first_byte_s = self._clock()
        outcome.choice = attempt.choice
        passed = PassedHeaders(response.headers, call.request_id, attempt.endpoint.id, route_in_short(attempt.choice))
        outcome.usage = _usage_of(attempt) if attempt.is_asked else None
        if begun.is_whole:
            return Answer(status=response.status, headers=passed, body=begun.data)
        stream = MendedStream(self._mender, request, attempt, outcome)
        return Answer(
            status=response.status,
            headers=passed,
            parts=stream.parts(),
            is_events=begun.cutter is not None,
            release=stream.close,
            attach=None if begun.cutter is None else stream.attach,
        )


def _usage_of(attempt: Attempt) -> Usage | None:
    """What the answer of a worker that was asked costs: of a stream, a record that goes on being written. None: it does not say."""
    if attempt.begun.cutter is None:
        return usage_of_header(attempt.response.headers.get(HEADER_USAGE))
    replay = attempt.replay
    return None if replay is None or replay.state is None else replay.usage


def route_in_short(choice: Choice) -> str:
    """The choice as a header's value."""
    return f"{choice.level}; cached={choice.matched_tokens}/{choice.num_tokens or 0}"
