"""Copies of calls for a model whose answers nobody sees: to try it with the traffic that it would get.

A copy has no client: its answer is read and forgotten, nobody pays for it, and it may never cost the call that it is a copy of anything.
So it runs beside it in the background, behind everybody else wherever requests wait, and is the first to be dropped: when too many run,
or when the model's workers have requests waiting already.
"""

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec

from quire_contract.openai.errors import ApiError
from quire_contract.telemetry import log_event
from quire_router.answer import BrokenStreamError, Source
from quire_router.background import Background
from quire_router.call import Call, Outcome
from quire_router.endpoint_pool import EndpointPool
from quire_router.endpoints import Endpoint
from quire_router.route_metrics import RouteMetrics, ShadowResult

log = logging.getLogger("quire_router.shadow")

MAX_SHADOWS = 32
"""At a time."""
MAX_SHADOW_BYTES = 32 * 1024 * 1024
"""Bodies of those that run."""
LIMIT_S = 600.0
"""For one to end."""
PRIORITY = -100
"""The lowest."""


class ShadowTraffic:
    """One for the process."""

    def __init__(
        self,
        *,
        pool: EndpointPool,
        background: Background,
        metrics: RouteMetrics,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self._pool = pool
        self._background = background
        self._metrics = metrics
        self._rng = rng
        self._clock = clock
        self._num_running = 0
        self._num_bytes = 0

    def copy(self, call: Call, inner: Source) -> None:
        """Send a copy of `call` through `inner`, if its route wants one and there is room. Returns at once."""
        shadow = None if call.route is None or call.route.entry is None else call.route.entry.shadow
        if shadow is None or self._rng.random() * 100 >= shadow.percent:
            return
        size = len(call.body)
        is_full = self._num_running >= MAX_SHADOWS or self._num_bytes + size > MAX_SHADOW_BYTES
        if is_full or not any(_has_room(e) for e in self._pool.serving(shadow.model) or ()):
            self._metrics.shadows.labels("dropped").inc()
            return
        copied = msgspec.structs.replace(
            call,
            request_id=f"{call.request_id}-shadow",
            targets=(shadow.model,),
            tenant=None,
            route=None,
            priority=PRIORITY,
            deadline_s=self._clock() + LIMIT_S,
        )
        self._num_running += 1
        self._num_bytes += size
        self._background.start(self._run(copied, inner), "shadow request")

    async def _run(self, call: Call, inner: Source) -> None:
        started_s, outcome = self._clock(), Outcome()
        result: ShadowResult = "error"
        try:
            async with asyncio.timeout(LIMIT_S):
                outcome.status = await _read(call, outcome, inner)
            outcome.status = outcome.late_status or outcome.status  # refused after it began to wait
            result = "ok" if outcome.status < 400 else "error"
        except ApiError as error:
            outcome.status, outcome.problem = error.status, error.message
        except (BrokenStreamError, TimeoutError) as error:
            outcome.problem = str(error) or f"did not end within {LIMIT_S:g} s"
        finally:
            self._num_running -= 1
            self._num_bytes -= len(call.body)
            self._metrics.shadows.labels(result).inc()
        log_event(
            log,
            logging.INFO,
            "shadow",
            request_id=call.request_id,
            model=call.model,
            target=call.targets[0],
            status=outcome.status,
            total_ms=round((self._clock() - started_s) * 1000, 1),
            problem=outcome.problem or None,
        )


async def _read(call: Call, outcome: Outcome, inner: Source) -> int:
    """The status of an answer that was read to its end."""
    answer = await inner(call, outcome)
    try:
        if answer.parts is not None:
            async for _ in answer.parts:
                pass
    finally:
        await answer.close()
    return answer.status


def _has_room(endpoint: Endpoint) -> bool:
    return endpoint.is_usable and (endpoint.report is None or endpoint.report.waiting == 0)
