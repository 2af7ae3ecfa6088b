"""The layers of routes: an answer tells how its model was chosen, and a call that one model's workers fail goes to the next model."""

from collections.abc import AsyncGenerator, Awaitable

import msgspec

from quire_contract import names
from quire_contract.openai.errors import CODE_DEADLINE, ApiError
from quire_router.admission import error_of, refused_late
from quire_router.answer import Answer, LateRefusalError, Source
from quire_router.call import Call, Outcome, Usage
from quire_router.complexity import Complexity
from quire_router.endpoint_pool import EndpointPool
from quire_router.route_metrics import RouteMetrics
from quire_router.shadow import ShadowTraffic

STATUS_NO_ROOM = frozenset({429, 503})


class RouteNotes:
    """Outside of what is kept and shared: these headers are each call's own."""

    def __init__(self, metrics: RouteMetrics) -> None:
        self._metrics = metrics

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The inner answer, with the score that its model was chosen by."""
        complexity = None if call.route is None else call.route.complexity
        return inner(call, outcome) if complexity is None else self._noted(call, outcome, inner, complexity)

    async def _noted(self, call: Call, outcome: Outcome, inner: Source, complexity: Complexity) -> Answer:
        self._metrics.count_complexity(call.model, call.targets[0], complexity.score)
        answer = await inner(call, outcome)
        answer.headers[names.HEADER_COMPLEXITY] = complexity.in_words()
        return answer


class RouteLayer:
    """Fallbacks after errors, and shadow traffic."""

    def __init__(self, *, pool: EndpointPool, shadow: ShadowTraffic, metrics: RouteMetrics) -> None:
        self._pool = pool
        self._shadow = shadow
        self._metrics = metrics

    def answer(self, call: Call, outcome: Outcome, inner: Source) -> Awaitable[Answer]:
        """The first good answer of the call's targets. The last one's failure if all fail."""
        if call.route is None:
            return inner(call, outcome)
        self._shadow.copy(call, inner)
        entry = call.route.entry
        if entry is None or not entry.fallback_on_error or len(call.targets) == 1:
            return inner(call, outcome)
        return self._fall_back(call, outcome, inner)

    async def _fall_back(self, call: Call, outcome: Outcome, inner: Source) -> Answer:
        left = list(call.targets)
        answer = await self._first_good(call, outcome, inner, left)
        if not answer.is_provisional:
            return answer
        current = [answer]

        async def close() -> None:
            await current[0].close()

        parts = self._parts(call, outcome, inner, left, current)
        return Answer(status=answer.status, headers=answer.headers, parts=parts, is_events=True, release=close)

    async def _first_good(self, call: Call, outcome: Outcome, inner: Source, left: list[str]) -> Answer:
        """Of the models in `left`, which are taken from there as they are tried. The last one's failure if all fail."""
        while True:
            usable = [target for target in left if self._pool.has_usable(target)]
            if len(usable) < 2:
                last = tuple(usable or left)
                left.clear()
                return await inner(_to(call, *last), outcome)
            left.remove(usable[0])
            try:
                answer = await inner(_to(call, usable[0], has_others=True), outcome)
            except ApiError as error:
                if not self._may_go_on(error, left):
                    raise
                self._count(error.status)
            else:
                if not _is_failure(answer.status) or not self._has_usable(left):
                    return answer
                self._count(answer.status)
                await answer.close()
            outcome.attempts = 0  # each model's workers are tried as often as usual

    async def _parts(
        self, call: Call, outcome: Outcome, inner: Source, left: list[str], current: list[Answer]
    ) -> AsyncGenerator[bytes, None]:
        """Of streams that had to begin before their workers were known, one after the other until one gives more than comments."""
        while True:
            refusal = None
            answer = current[0]
            if answer.parts is None or not answer.is_events:
                yield refused_late(call, outcome, error_of(answer), outcome.usage or Usage())
                return
            try:
                async for part in answer.parts:
                    yield part
            except LateRefusalError as late:
                refusal = late.error
            if refusal is None:
                return
            try:
                if not self._may_go_on(refusal, left):
                    raise refusal
                self._count(refusal.status)
                await answer.close()
                outcome.attempts = 0
                current[0] = await self._first_good(call, outcome, inner, left)
            except ApiError as error:
                yield refused_late(call, outcome, error, Usage())
                return

    def _may_go_on(self, error: ApiError, left: list[str]) -> bool:
        return _is_failure(error.status) and error.code != CODE_DEADLINE and self._has_usable(left)

    def _has_usable(self, targets: list[str]) -> bool:
        """A model without a ready worker is no way out of a failure: the call would wait for it."""
        return any(self._pool.has_usable(target) for target in targets)

    def _count(self, status: int) -> None:
        self._metrics.fallbacks.labels("no_room" if status in STATUS_NO_ROOM else "error").inc()


def _to(call: Call, *targets: str, has_others: bool = False) -> Call:
    return msgspec.structs.replace(call, targets=targets, has_other_models=has_others)


def _is_failure(status: int) -> bool:
    return status >= 500 or status in STATUS_NO_ROOM
