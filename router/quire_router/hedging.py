"""A second worker for a stream whose first event does not come: the first to answer wins, the other is let go.

Off unless the configuration names a delay. Never for calls without a prompt to route by, and at most for a share of the requests: slow
workers must not get twice the work.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence

from quire_contract.openai.errors import ApiError
from quire_contract.router_settings import FaultSettings
from quire_router.attempt import Attempt
from quire_router.endpoints import Reservation
from quire_router.picker import Picker
from quire_router.scoring import Choice
from quire_router.upstream import RetryableError, Upstreams, WorkerRequest

MAX_SAVED = 10.0
"""Hedges that may follow each other at once after a quiet time."""


class Hedger:
    """Makes attempts, some of them twice. One for the process."""

    def __init__(
        self,
        *,
        upstreams: Upstreams,
        picker: Picker,
        faults: Callable[[], FaultSettings],
        on_hedge: Callable[[str], None],
    ) -> None:
        """`on_hedge` is told "first", "second" (who won) or "none" for each hedged request."""
        self._upstreams = upstreams
        self._picker = picker
        self._faults = faults
        self._on_hedge = on_hedge
        self._saved = 1.0

    def begin(
        self, request: WorkerRequest, reservation: Reservation, choice: Choice, tried: frozenset[str]
    ) -> Awaitable[Attempt]:
        """As `Upstreams.begin`. `tried`: endpoints that are no choice for the second attempt."""
        if not request.call.is_stream or request.call.fields is None:
            return self._upstreams.begin(request, reservation, choice)
        settings = self._faults()
        if settings.hedge_after_s is None:
            return self._upstreams.begin(request, reservation, choice)
        return self._begin_twice(request, reservation, choice, tried, settings, settings.hedge_after_s)

    async def _begin_twice(
        self,
        request: WorkerRequest,
        reservation: Reservation,
        choice: Choice,
        tried: frozenset[str],
        settings: FaultSettings,
        after_s: float,
    ) -> Attempt:
        self._saved = min(MAX_SAVED, self._saved + settings.max_hedged_percent / 100)
        reservation.take()  # before anybody else looks for room
        tasks = [asyncio.create_task(self._upstreams.begin(request, reservation, choice))]
        winner: Attempt | None = None
        try:
            await asyncio.wait(tasks, timeout=after_s)
            second = None if tasks[0].done() else self._second(request, tried | {reservation.endpoint.id})
            if second is None:
                winner = await tasks[0]
                return winner
            tasks.append(asyncio.create_task(self._upstreams.begin(request, *second)))
            winner = await self._first_of(tasks, second[0].endpoint.id)
            return winner
        finally:  # awaits nothing: a client that leaves meanwhile would have nobody close what won
            tasks[0].add_done_callback(functools.partial(_give_back, reservation))
            for task in tasks:
                task.cancel()
                task.add_done_callback(functools.partial(_let_go, winner))

    def _second(self, request: WorkerRequest, tried: frozenset[str]) -> tuple[Reservation, Choice] | None:
        if self._saved < 1:
            return None
        call = request.call
        reservation, choice = self._picker.pick(call.request_id, request.target, call.prompt, tried)
        if reservation is None:
            return None
        self._saved -= 1
        return reservation, choice

    async def _first_of(self, tasks: Sequence[asyncio.Task[Attempt]], second_id: str) -> Attempt:
        """The attempt that began first. If all fail: the first one's error."""
        pending = set(tasks)
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for number, task in enumerate(tasks):
                if task in done and task.exception() is None:
                    self._on_hedge(("first", "second")[number])
                    return task.result()
        self._on_hedge("none")
        error = tasks[0].exception()
        if isinstance(error, RetryableError):
            raise RetryableError(error.reason, str(error), also_tried=frozenset({second_id}))
        assert error is not None, "neither was answered"
        raise error


def _was_begun(task: asyncio.Task[Attempt]) -> bool:
    return not task.cancelled() and task.exception() is None


def _give_back(reservation: Reservation, task: asyncio.Task[Attempt]) -> None:
    """Of an attempt that failed, perhaps before it had begun."""
    if not _was_begun(task):
        reservation.give_back()


def _let_go(winner: Attempt | None, task: asyncio.Task[Attempt]) -> None:
    """Close what nobody takes, and tell of errors that are none of a worker's."""
    if _was_begun(task):
        if task.result() is not winner:
            task.result().end()
        return
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ApiError | RetryableError):
        task.get_loop().call_exception_handler({"message": "a hedged attempt failed", "exception": error, "task": task})
