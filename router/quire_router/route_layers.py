"""The layers of routes: an answer tells how its model was chosen, and a call that one model's workers fail goes to the next model."""

from collections.abc import Awaitable

import msgspec

from quire_contract import names
from quire_contract.openai.errors import CODE_DEADLINE, ApiError
from quire_router.answer import Answer, Source
from quire_router.call import Call, Outcome
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
        while True:
            usable = [target for target in left if self._pool.has_usable(target)]
            if len(usable) < 2:
                break
            left.remove(usable[0])
            try:
                answer = await inner(_to(call, usable[0]), outcome)
            except ApiError as error:
                if not _may_go_on(error.status) or error.code == CODE_DEADLINE or not self._has_usable(left):
                    raise
                self._count(error.status)
            else:
                if not _may_go_on(answer.status) or not self._has_usable(left):
                    return answer
                self._count(answer.status)
                await answer.close()
            outcome.attempts = 0  # each model's workers are tried as often as usual
        return await inner(_to(call, *(usable or left)), outcome)

    def _has_usable(self, targets: list[str]) -> bool:
        """A model without a ready worker is no way out of a failure: the call would wait for it."""
        return any(self._pool.has_usable(target) for target in targets)

    def _count(self, status: int) -> None:
        self._metrics.fallbacks.labels("no_room" if status in STATUS_NO_ROOM else "error").inc()


def _to(call: Call, *targets: str) -> Call:
    return msgspec.structs.replace(call, targets=targets)


def _may_go_on(status: int) -> bool:
    return status >= 500 or status in STATUS_NO_ROOM
