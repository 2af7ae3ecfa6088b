"""A second worker for a stream whose first event does not come: the first to answer wins, the other is let go.

Off unless the configuration names a delay. Never for calls without a prompt to route by, and at most for a share of the requests: slow
workers must not get twice the work.
"""

import asyncio
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
        finally:
            await _let_go(tasks, winner)
            if tasks[0].cancelled() or tasks[0].exception() is not None:  # perhaps before it began
                reservation.give_back()

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


async def _let_go(tasks: Sequence[asyncio.Task[Attempt]], winner: Attempt | None) -> None:
    """End what runs, close what nobody takes."""
    for task in tasks:
        task.cancel()
    for got in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(got, Attempt) and got is not winner:
            await got.close()
        elif isinstance(got, Exception) and not isinstance(got, ApiError | RetryableError):
            raise got
