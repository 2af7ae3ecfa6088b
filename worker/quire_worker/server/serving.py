"""What the handlers share: the collaborators of one worker, and the gate every request passes."""

import asyncio
import contextlib
import dataclasses
import itertools
import secrets
from collections.abc import Callable, Iterator
from typing import Protocol

from quire_contract.openai.limits import Limits
from quire_worker.server import errors
from quire_worker.server.engine_client import EngineClient
from quire_worker.server.lifecycle import Lifecycle
from quire_worker.server.metrics import REJECTED_DRAINING, REJECTED_NOT_READY, Metrics
from quire_worker.server.served_model import ServedModel, Tokeniser
from quire_worker.server.urgency import UrgencyRules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded:
    """What exists once the engine is ready."""

    model: ServedModel
    tokeniser: Tokeniser


class Movable(Protocol):
    """An answer that can go on, or begin anew, at another worker."""

    def move(self) -> None: ...


class Serving:
    """Collaborators, and the count of requests inside."""

    def __init__(
        self,
        *,
        lifecycle: Lifecycle,
        engine: EngineClient,
        metrics: Metrics,
        limits: Limits,
        clock: Callable[[], float],
        base_seed: int | None,
        log_requests: bool,
        urgency: UrgencyRules,
    ) -> None:
        self.lifecycle = lifecycle
        self.engine = engine
        self.metrics = metrics
        self.limits = limits
        self.clock = clock
        self.log_requests = log_requests
        self.urgency = urgency
        self.num_inside = 0
        """Requests that passed the gate and have not been answered to the end."""
        self._movable: dict[int, Movable] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._base_seed = base_seed
        self._serials = itertools.count()
        self._loaded: Loaded | None = None

    def set_loaded(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @property
    def loaded(self) -> Loaded:
        """ApiError 503 while there is no model."""
        if self._loaded is None:
            raise errors.not_ready(self.lifecycle.detail)
        return self._loaded

    @contextlib.contextmanager
    def request(self) -> Iterator[Loaded]:
        """Counts a request while it is inside. ApiError 503 when none is taken: loading, draining or failed."""
        phase = self.lifecycle.phase
        if phase == "failed":
            raise errors.engine_dead(self.lifecycle.failure or "unknown")
        if phase == "draining":
            self.metrics.on_rejected(REJECTED_DRAINING)
            raise errors.draining()
        if phase == "asleep":
            self.metrics.on_rejected(REJECTED_NOT_READY)
            raise errors.asleep()
        if phase == "loading":
            self.metrics.on_rejected(REJECTED_NOT_READY)
            raise errors.not_ready(self.lifecycle.detail)
        self.num_inside += 1
        self._empty.clear()
        try:
            yield self.loaded
        finally:
            self.num_inside -= 1
            if self.num_inside == 0:
                self._empty.set()

    @contextlib.contextmanager
    def movable(self, answer: Movable, *, is_asked: bool) -> Iterator[None]:
        """`answer` can be had from another worker, while entered, if its router asked for that."""
        if is_asked:
            self._movable[id(answer)] = answer
        try:
            yield
        finally:
            self._movable.pop(id(answer), None)

    def move_on(self) -> None:
        """End everything that can go on elsewhere, so that it does."""
        for answer in tuple(self._movable.values()):
            answer.move()

    async def wait_empty(self) -> None:
        """Until no request is inside."""
        await self._empty.wait()

    def next_serial(self) -> int:
        """Counts requests; makes ids unique within this process."""
        return next(self._serials)

    def seed(self, serial: int) -> int:
        """For a request that brings none: from the configured seed, or random. 64-bit unsigned."""
        return secrets.randbits(64) if self._base_seed is None else (self._base_seed + serial) % 2**64
