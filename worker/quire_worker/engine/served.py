"""What the engine's loop drives: a scheduler and its steps, whether they make text or embeddings."""

from typing import Protocol

from quire_worker.dormant import Dormant
from quire_worker.embedding import Embed
from quire_worker.kv.events import CacheEvent
from quire_worker.request import ChoiceOutput, Submit
from quire_worker.scheduling.counters import Counters
from quire_worker.scheduling.intake import Rejection


class ServedScheduler(Protocol):
    """Takes requests and says how many there are. See scheduling.scheduler for what each part means."""

    counters: Counters

    @property
    def has_work(self) -> bool: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_deferred(self) -> int: ...
    @property
    def num_free_blocks(self) -> int: ...
    @property
    def num_uncached_tokens(self) -> int: ...
    def abort(self, request_id: str, choice: int | None = None) -> None: ...
    def take_cache_events(self) -> list[CacheEvent]: ...
    def drop_cache(self) -> None: ...


class ServedEngine(Protocol):
    """Carries out steps. See engine.engine."""

    last_step_tokens: int
    last_step_rows: int

    @property
    def scheduler(self) -> ServedScheduler: ...
    @property
    def dormant(self) -> Dormant | None: ...
    def add(self, message: Submit | Embed) -> Rejection | None: ...
    def step(self) -> list[ChoiceOutput]: ...
